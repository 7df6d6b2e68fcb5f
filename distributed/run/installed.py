"""Versions of what is installed, and the one place that imports torchaudio: late, and with one sentence where it fails.

torchaudio is compiled against one release of torch, and pip does not know which: beside another one its import dies of
an undefined symbol or of another CUDA release. Nothing but the sound of a report needs it, and encoders of others.
Versions are read from the metadata of the packages, which broken ones have too.
"""

import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

from pupujepa.errors import UserError

LOCK = Path(__file__).parents[2] / "requirements.lock"


class TorchaudioError(UserError):
    """A torchaudio that is not installed, or was not built for this torch."""


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """Returns the versions of Python and of those packages that are installed, in their order."""
    found = {"python": sys.version.split()[0]}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def torchaudio_functional(*, without: str) -> ModuleType:
    """Imports torchaudio.functional.

    Args:
        without: the consequence where it cannot be loaded, e.g. "the page has no sound".

    Raises:
        TorchaudioError: it cannot be loaded; names both versions and the pair that fits.
    """
    try:
        return import_module("torchaudio.functional")
    # respectively: it is not there; it needs a symbol of another torch; it was built for another CUDA release; it calls
    # what this torch no longer has
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise TorchaudioError(f"{_misfit()}, so {without}; install a pair that fits: {_install_command()}") from error


def _misfit() -> str:
    found = {"torch": "of unknown version", **installed_versions(["torch", "torchaudio"])}
    if "torchaudio" in found:
        return f"torchaudio {found['torchaudio']} cannot be loaded beside torch {found['torch']}"
    return f"torchaudio is not installed beside torch {found['torch']}"


def _install_command() -> str:
    """Returns the command that installs torch and torchaudio in the versions of requirements.lock, if it is here."""
    text = LOCK.read_text() if LOCK.is_file() else ""
    pins = re.findall(r"^(?:torch|torchaudio)==[^\s;\\]+", text, re.MULTILINE) or ["--upgrade", "torch", "torchaudio"]
    return " ".join(["pip install", *pins])

"""Versions of installed packages, and the only import of torchaudio, late, with a clear error.

torchaudio is compiled against one release of torch, and its import fails beside another, which pip does not prevent.
Only the sound of a report and foreign encoders need it. Versions come from metadata, which broken packages have too.
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
    """torchaudio is not installed, or was built for another torch."""


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """Returns the versions of Python and of the installed ones of `packages`, in their order."""
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
        TorchaudioError: it cannot be loaded.
    """
    try:
        return import_module("torchaudio.functional")
    # in this order: not installed; a symbol of another torch; another CUDA release; a function that torch has removed
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise TorchaudioError(f"{_misfit()}, so {without}; install a pair that fits: {_install_command()}") from error


def _misfit() -> str:
    found = {"torch": "of unknown version", **installed_versions(["torch", "torchaudio"])}
    if "torchaudio" in found:
        return f"torchaudio {found['torchaudio']} cannot be loaded beside torch {found['torch']}"
    return f"torchaudio is not installed beside torch {found['torch']}"


def _install_command() -> str:
    """Returns the command that installs torch and torchaudio, as in requirements.lock if it exists."""
    text = LOCK.read_text() if LOCK.is_file() else ""
    pins = re.findall(r"^(?:torch|torchaudio)==[^\s;\\]+", text, re.MULTILINE) or ["--upgrade", "torch", "torchaudio"]
    return " ".join(["pip install", *pins])

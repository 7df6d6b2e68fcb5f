"""The house holds nothing that no product code uses: no dead definition, no parameter that nobody passes.

Methods and calls are matched by name alone, so a dead one that shares its name with a live one is missed. Fields of
dataclasses, which configs fill, are not looked at, and a function in a table counts as called with everything.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("pupujepa", "data", "distributed", "sweeps")
READERS = ("examples", "benchmarks", "docs")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
# decorators that hand a function to nobody; any other one may register it
PLAIN = {"abstractmethod", "cache", "cached_property", "classmethod", "contextmanager", "dataclass", "inference_mode"}
PLAIN |= {"no_grad", "property", "staticmethod"}
IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
# what torch, logging, io, pupujepa.front_door, distributed.marble.encoders.resolve and Ray Tune call by its name
CALLED_BY_NAME = {"reset_parameters", "emit", "readable", "seekable", "add_arguments", "run", "open_encoder"}
CALLED_BY_NAME |= {"suggest", "on_trial_start", "on_trial_result", "on_trial_error", "on_experiment_end"}
# time, randomness and the machine come in as arguments, so that tests can hand in their own
SEAMS = {"clock", "clock_ns", "now_s", "sleep", "rng", "stream", "free_bytes", "leave", "first_host"}
SEAMS |= {"headers", "proc", "root", "ask_time_left"}


@dataclass(frozen=True)
class Site:
    """One call: how many positional arguments it shows, its keywords, and whether it may pass any parameter."""

    positional: int
    keywords: frozenset[str]
    opaque: bool = False

    def passes(self, name: str, place: int | None) -> bool:
        """Returns True if the call passes the parameter, at `place` among the positional ones."""
        return self.opaque or name in self.keywords or (place is not None and place < self.positional)


UNSEEN = Site(0, frozenset(), opaque=True)


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    """The source of every module of the product, by path."""
    paths = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


@pytest.fixture(scope="module")
def readers() -> list[str]:
    """Sources that use the product and are no part of it."""
    return [path.read_text() for room in READERS for path in sorted((ROOT / room).rglob("*.py"))]


@pytest.fixture(scope="module")
def words() -> set[str]:
    """Names in the code of the documentation, and all names in templates."""
    text = re.sub(r"<!-- tree:.*?<!-- /tree -->", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    pages = [text, *(path.read_text() for path in (ROOT / "docs").glob("*.md"))]
    code = [part for page in pages for part in re.findall(r"```.*?```|`[^`\n]+`", page, flags=re.DOTALL)]
    templates = [path.read_text() for room in ROOMS for path in (ROOT / room).rglob("*.html*")]
    return {word for part in [*code, *templates] for word in IDENTIFIER.findall(part)}


def test_every_definition_is_used(sources, readers, words):
    """Product code, a template or the documentation names every top-level definition and method."""
    found = dead_definitions(sources, readers=readers, words=[*words, *public_names(sources), *CALLED_BY_NAME])
    assert found == [], "delete them, with their tests"


def test_every_parameter_is_passed(sources, readers):
    """Some call in product code passes every parameter that has a default; the public classes take what users pass."""
    public = tuple(f"{name}{mark}" for name in public_names(sources) for mark in ".(")
    found = [x for x in unpassed_parameters(sources, readers=readers) if not x.partition(": ")[2].startswith(public)]
    unexplained = {x for x in found if re.findall(r"\((\w+)\)$", x)[0] not in SEAMS}
    assert unexplained == set(), "delete them, or pass them"


PLANTED = {
    "room/ground.py": """
import logging
USED, DEAD = 1, 2
def recursive(n): return recursive(n - 1)
def shown(x, *, unit="", digits=3, far=0): return x
@register
def registered(): pass
class Base:
    def __init__(self, size, depth=1, width=2): self.size = shown(size, unit="m")
    def __len__(self): return USED
    def used(self, a, b=1, c=2): return a
    def dead(self): return self
class Child(Base): pass
def table(key, flag=False): return {"x": table}[key]
""",
    "room/above.py": """
from functools import partial
from room.ground import Base, Child, shown as display
def start(**options):
    partial(display, far=1)
    return Child(1, 2).used(1, 2)
""",
}


def test_planted_dead_definitions_are_found():
    """A constant, functions that only name themselves, a method and an entry; no decorated one, no dunder method."""
    found = [x.partition(": ")[2] for x in dead_definitions(PLANTED)]
    assert found == ["DEAD", "recursive", "Base.dead", "table", "start"]
    reader = "from room.ground import DEAD, recursive, table\nfrom room import above\nabove.start(x.dead)"
    assert dead_definitions(PLANTED, readers=[reader]) == []
    assert dead_definitions(PLANTED, readers=["other.start(x.DEAD)"]) == dead_definitions(PLANTED), "not of our module"
    assert "room/ground.py: DEAD" not in dead_definitions(PLANTED, words=["DEAD"])


def test_planted_parameters_are_found():
    """By place and by keyword, through a subclass, `partial` and another name; a function in a table is not blamed."""
    found = [x.partition(": ")[2] for x in unpassed_parameters(PLANTED)]
    assert found == ["shown(digits)", "Base.__init__(width)", "Base.used(c)"]
    assert unpassed_parameters(PLANTED, readers=["shown(1, **x); Base(*y); z.used(1, 2, 3)"]) == []


def public_names(sources: Mapping[str, str]) -> list[str]:
    """Returns the names in `__all__` of the library."""
    for node in parsed(sources["pupujepa/__init__.py"]).body:
        if isinstance(node, ast.Assign) and name_of(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    raise AssertionError("pupujepa/__init__.py names no public interface")


@cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


def dead_definitions(
    sources: Mapping[str, str], *, readers: Iterable[str] = (), words: Iterable[str] = ()
) -> list[str]:
    """Lists definitions of modules that neither they nor `readers` refer to.

    Args:
        sources: the source of each module, by path.
        readers: further sources that may refer to the definitions.
        words: names that count as referred to: the documented interface, and templates.
    """
    trees = {path: parsed(source) for path, source in sources.items()}
    everything = [*trees.values(), *map(parsed, readers)]
    places = {id(tree): list(references(tree)) for tree in everything}
    used = Counter(name for found in places.values() for name, _ in found)
    imported, kept = {pair for tree in everything for pair in imports(tree)}, set(words)
    dead = []
    for path, tree in trees.items():
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        lines: dict[str, list[int]] = {}
        for name, line in places[id(tree)]:
            lines.setdefault(name, []).append(line)
        for name, title, node in definitions(tree):
            # a recursive function keeps nobody alive but itself
            here = [x for x in lines.get(name, ()) if not node.lineno <= x <= (node.end_lineno or 0)]
            elsewhere = (module, name) in imported if name == title else used[name] > len(lines.get(name, ()))
            if not here and not elsewhere and name not in kept:
                dead.append(f"{path}: {title}")
    return dead


def unpassed_parameters(sources: Mapping[str, str], *, readers: Iterable[str] = ()) -> list[str]:
    """Lists parameters with a default that no call passes, as `path: function(parameter)`."""
    trees = {path: parsed(source) for path, source in sources.items()}
    sites: dict[str, list[Site]] = {}
    for tree in (*trees.values(), *map(parsed, readers)):
        collect_sites(tree, sites)
    inherit_sites(trees.values(), sites)
    found = []
    for path, tree in trees.items():
        for title, called, function, bound in callables(tree):
            for name, place in defaulted(function, bound=bound):
                if not any(site.passes(name, place) for site in sites.get(called, ())):
                    found.append(f"{path}: {title}({name})")
    return found


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yields (module, name) of what code imports, or reads as an attribute of a module that it imports."""
    real: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)
            real |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            real |= {alias.asname or alias.name.rpartition(".")[2]: alias.name for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and name_of(node.value) in real:
            yield real[name_of(node.value)], node.attr


def references(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yields the names that code reads, imports under another name, or looks up by a string, each with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Load):
                yield node.id, node.lineno
        elif isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.asname)
        elif isinstance(node, ast.Call) and name_of(node.func) in ("getattr", "hasattr", "attrgetter", "methodcaller"):
            texts = (x.value for x in node.args if isinstance(x, ast.Constant))
            yield from ((text, node.lineno) for text in texts if isinstance(text, str))


def definitions(tree: ast.Module) -> Iterator[tuple[str, str, ast.stmt]]:
    """Yields (name, title, node) of top-level functions, classes and constants, and of methods."""
    for node in tree.body:
        if isinstance(node, (*FUNCTION, ast.ClassDef)) and not registered(node):
            yield node.name, node.name, node
        for name in constants(node):
            yield name, name, node
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, FUNCTION) and not registered(method):
                    yield method.name, f"{node.name}.{method.name}", method


def constants(node: ast.stmt) -> list[str]:
    """Returns the names that a statement assigns."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    names = [x.id for target in targets for x in ast.walk(target) if isinstance(x, ast.Name)]
    return [name for name in names if not is_dunder(name)]


def registered(node: Definition) -> bool:
    """Returns True for a definition that Python or a decorator may call by itself."""
    return is_dunder(node.name) or any(name_of(x) not in PLAIN for x in node.decorator_list)


def is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def name_of(node: ast.AST) -> str:
    """Returns the last name of `a`, `x.a`, `a(...)` or `a[...]`; "" for anything else."""
    while isinstance(node, ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def collect_sites(tree: ast.Module, sites: dict[str, list[Site]]) -> None:
    """Adds the calls of a module, each under the name that it calls; `cls(...)` and `super().__init__(...)` too."""
    imports = [x for node in tree.body if isinstance(node, ast.ImportFrom) for x in node.names if x.asname]
    real = {alias.asname: alias.name for alias in imports}
    rest: list[tuple[ast.AST, ast.ClassDef | None]] = [(tree, None)]
    while rest:
        node, owner = rest.pop()
        if isinstance(node, ast.Call):
            for name in callees(node, owner):
                sites.setdefault(real.get(name, name), []).append(site_of(node.args, node.keywords))
            if name_of(node.func) == "partial":
                name = name_of(node.args[0])
                sites.setdefault(real.get(name, name), []).append(site_of(node.args[1:], node.keywords))
        for name in handed_on(node):
            sites.setdefault(real.get(name, name), []).append(UNSEEN)
        inside = node if isinstance(node, ast.ClassDef) else owner
        rest += [(child, inside) for child in ast.iter_child_nodes(node)]


def callees(call: ast.Call, owner: ast.ClassDef | None) -> list[str]:
    """Returns the names that a call calls."""
    name = "" if isinstance(call.func, ast.Call | ast.Subscript) else name_of(call.func)
    if owner and name == "cls":
        return [owner.name]
    if owner and name == "__init__":
        return [name_of(base) for base in owner.bases]
    return [name]


def site_of(args: Iterable[ast.expr], keywords: Iterable[ast.keyword]) -> Site:
    """Returns what a call passes; `*` and `**` may pass anything."""
    args, names = list(args), [x.arg for x in keywords]
    opaque = None in names or any(isinstance(x, ast.Starred) for x in args)
    return Site(len(args), frozenset(x for x in names if x), opaque)


def handed_on(node: ast.AST) -> Iterator[str]:
    """Yields names that a node hands on as values, so that their calls cannot be seen."""
    if isinstance(node, ast.Call):
        known = name_of(node.func) in ("partial", "isinstance", "issubclass", "cast", "field", "suppress")
        values = [] if known else [*node.args, *(x.value for x in node.keywords)]
    elif isinstance(node, ast.Dict):
        values = node.values
    elif isinstance(node, ast.List | ast.Set):
        values = node.elts
    elif isinstance(node, ast.Assign | ast.Return):
        values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
    elif isinstance(node, ast.IfExp):
        values = [node.body, node.orelse]
    else:
        values = []
    yield from (name_of(x) for x in values if isinstance(x, ast.Name | ast.Attribute))


def inherit_sites(trees: Iterable[ast.Module], sites: dict[str, list[Site]]) -> None:
    """Adds the calls of a class without an `__init__` of its own to those of its bases."""
    bases: dict[str, list[str]] = {}
    for node in (x for tree in trees for x in tree.body if isinstance(x, ast.ClassDef)):
        if not any(isinstance(x, FUNCTION) and x.name == "__init__" for x in node.body):
            bases[node.name] = [name_of(base) for base in node.bases]
    for name in bases:
        own, above, todo = sites.get(name, []), {name}, [name]
        while todo:
            new = set(bases.get(todo.pop(), ())) - above
            for base in new:
                sites.setdefault(base, []).extend(own)
            above |= new
            todo += new


def callables(tree: ast.Module) -> Iterator[tuple[str, str, ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """Yields (title, name it is called by, function, whether its first parameter is bound)."""
    for node in tree.body:
        if isinstance(node, FUNCTION) and not registered(node):
            yield node.name, node.name, node, False
        for method in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(method, FUNCTION) and (method.name == "__init__" or not registered(method)):
                called = node.name if method.name == "__init__" else method.name
                static = any(name_of(x) == "staticmethod" for x in method.decorator_list)
                yield f"{node.name}.{method.name}", called, method, not static


def defaulted(function: ast.FunctionDef | ast.AsyncFunctionDef, *, bound: bool) -> Iterator[tuple[str, int | None]]:
    """Yields parameters with a default: name, and place among the positional arguments of a call."""
    positional = [*function.args.posonlyargs, *function.args.args][int(bound) :]
    first = len(positional) - len(function.args.defaults)
    yield from ((x.arg, place) for place, x in enumerate(positional) if place >= first)
    for x, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        if default is not None:
            yield x.arg, None

"""The library's docstrings exist, and give errors, shapes and the letters of shapes."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from pupujepa.errors import UserError

ROOM = Path(__file__).parents[2] / "pupujepa"
FILES = sorted(ROOM.rglob("*.py"))
CONSTRUCTORS = ("__init__", "__post_init__")
ARRAYS = re.compile(r"\b(Tensor|NDArray)\b")
# x_BND, mel_TF: at least one capital after the last underscore, n for a number that has no letter
SUFFIX = re.compile(r"^_?[a-z][a-z0-9_]*_(n?[A-Z]{1,5})$")


def module_name(path: Path) -> str:
    """Returns the dotted name by which a file of the room is imported."""
    return ".".join(path.relative_to(ROOM.parent).with_suffix("").parts).removesuffix(".__init__")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def documented(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """Yields the public classes, functions and methods of a module by name."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name, node
            for inner in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    yield f"{node.name}.{inner.name}", inner


def bodies(node: ast.FunctionDef | ast.ClassDef) -> list[ast.FunctionDef]:
    """Returns the functions behind a call of the name: the function itself, or the constructors of a class."""
    if isinstance(node, ast.FunctionDef):
        return [node]
    return [inner for inner in node.body if isinstance(inner, ast.FunctionDef) and inner.name in CONSTRUCTORS]


def user_errors(path: Path) -> set[str]:
    """Returns a module's names of user errors, and of the function that makes one."""
    module = import_module(module_name(path))
    classes = {n for n, value in vars(module).items() if isinstance(value, type) and issubclass(value, UserError)}
    return classes | {"foreign"}


def private_functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    """Returns the private functions and methods, which may hold the checks of documented ones."""
    functions = (f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef))
    # `super().__init__()` calls no constructor of the same file
    return {f.name: f for f in functions if f.name.startswith("_") and not f.name.startswith("__")}


def raises_user_error(node: ast.AST, private: dict[str, ast.FunctionDef], errors: set[str]) -> bool:
    """Returns True if code raises a user error without catching it, itself or in a private function of its module."""
    if isinstance(node, ast.Try) and any(name_of(handler.type) in errors for handler in node.handlers):
        return any(raises_user_error(part, private, errors) for part in (*node.handlers, *node.orelse))
    called = name_of(node.func) if isinstance(node, ast.Call) else ""
    if called == "require_known" or (isinstance(node, ast.Raise) and name_of(node.exc) in errors):
        return True
    inside = list(ast.iter_child_nodes(node))
    if called in private:
        inside += private[called].body
        private = {name: function for name, function in private.items() if name != called}
    return any(raises_user_error(part, private, errors) for part in inside)


def name_of(node: ast.AST | None) -> str:
    """Returns the last name of `a`, `b.a` or `a(...)`."""
    node = node.func if isinstance(node, ast.Call) else node
    return getattr(node, "id", getattr(node, "attr", ""))


def annotations(node: ast.FunctionDef | ast.ClassDef) -> dict[str, str]:
    """Returns the annotations of a function's arguments and result, or of a class's fields."""
    if isinstance(node, ast.ClassDef):
        fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
        return {part.target.id: ast.unparse(part.annotation) for part in fields if isinstance(part.target, ast.Name)}
    written = {arg.arg: arg.annotation for arg in (*node.args.args, *node.args.kwonlyargs)} | {"return": node.returns}
    return {name: ast.unparse(annotation) for name, annotation in written.items() if annotation}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_every_public_name_is_explained(path):
    """The module, and each public class, function and method in it, has a docstring."""
    tree = tree_of(path)
    assert ast.get_docstring(tree), "the module"
    assert [name for name, node in documented(tree) if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_errors_are_announced(path):
    """A function that raises a UserError, also through a private one of its file, documents it with the reason."""
    tree, errors = tree_of(path), user_errors(path)
    private = private_functions(tree)
    silent = [
        name
        for name, node in documented(tree)
        if any(raises_user_error(body, private, errors) for body in bodies(node))
        and not re.search(r"Raises(:\n\s+\w+Error: \S| \w+Error (unless|when) )", ast.get_docstring(node) or "")
    ]
    assert silent == []


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_shapes_are_told(path):
    """Functions and classes with arrays have a shape in brackets in their docstring."""
    shapeless = [
        name
        for name, node in documented(tree_of(path))
        if any(ARRAYS.search(written) for written in annotations(node).values())
        and not re.search(r"\[[A-Za-z0-9.]", ast.get_docstring(node) or "")
    ]
    assert shapeless == []


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_every_letter_of_a_shape_is_in_the_legend(path):
    """Each letter of a name like x_BND is in the file's legend: `Shapes: B batch, N tokens, D width.`"""
    tree = tree_of(path)
    named = [
        part.id if isinstance(part, ast.Name) else part.arg
        for part in ast.walk(tree)
        if isinstance(part, (ast.Name, ast.arg))
    ]
    letters = {letter for name in named if (m := SUFFIX.match(name)) for letter in m[1] if letter.isupper()}
    _, _, legend = (ast.get_docstring(tree) or "").partition("Shapes:")
    assert sorted(letters - set(re.findall(r"\b[A-Z]\b", legend))) == []


def test_the_checks_can_fail():
    """The checks find a function without a docstring, a silent error and an array without a shape."""
    source = (
        "def load(x: Tensor) -> None:\n    '''Loads.'''\n    _check(x)\ndef _check(x):\n    raise UserError('no')\n"
    )
    tree = ast.parse(source)
    ((name, node),) = documented(tree)
    assert name == "load"
    assert raises_user_error(node, private_functions(tree), {"UserError"})
    assert any(ARRAYS.search(written) for written in annotations(node).values())
    assert SUFFIX.match("x_BND")[1] == "BND"
    assert SUFFIX.match("x_nD")[1] == "nD"
    assert not SUFFIX.match("MASK_TOKEN")

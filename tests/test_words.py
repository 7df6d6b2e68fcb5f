"""Plain English, as far as a program can check it: the word list, and the first lines of docstrings."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("pupujepa", "data", "distributed", "sweeps")
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
# archaic or indirect, and what to write: "is not finite", "slowest", "every n-th", "resumes", "shows", "allows"
PHRASES = (
    r"\b(is|are|be|was) no (finite )?numbers?\b",
    r"\bhindmost\b",
    r"\bforemost\b",
    r"\bso many-th\b",
    r"\bhas no say\b",
    r"\bis believed\b",
    r"\bgo(es)? on\b",
    r"\btells? of\b",
    r"\bbears?\b",
    r"\b(it|they|which|that) lies?\b",
)
WORD_LIST = re.compile("|".join(PHRASES), re.IGNORECASE)
# a docstring says what a thing is or does; these continue its name
CONTINUES_THE_NAME = ("What ", "Whether ", "Which ", "How ")
LONGEST_FIRST_LINE = 100


def prose(source: str) -> list[tuple[int, str]]:
    """Comments and string literals by line: docstrings, help texts, messages."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    return [(token.start[0], " ".join(token.string.split())) for token in tokens if token.type in kinds]


def first_lines(source: str) -> list[tuple[int, str]]:
    """The first line of every docstring, module, class and function."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, owners)]
    found = [(getattr(node, "lineno", 1), ast.get_docstring(node)) for node in nodes]
    return [(line, doc.partition("\n")[0]) for line, doc in found if doc]


def listed(source: str) -> list[str]:
    return [f"line {line}: {m[0]}" for line, text in prose(source) for m in WORD_LIST.finditer(text)]


def misleading(source: str) -> list[str]:
    return [
        f"line {line}: {text}"
        for line, text in first_lines(source)
        if text.startswith(CONTINUES_THE_NAME) or len(text) >= LONGEST_FIRST_LINE
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_no_phrase_of_the_word_list(room):
    """In comments, docstrings, help texts and messages."""
    found = {
        path.relative_to(ROOT).as_posix(): listed(path.read_text())
        for path in FILES
        if path.is_relative_to(ROOT / room)
    }
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize("room", ROOMS)
def test_first_lines_say_what_a_thing_is(room):
    """Short, and not "What ...", "Whether ...", "Which ..." or "How ..."."""
    found = {
        path.relative_to(ROOT).as_posix(): misleading(path.read_text())
        for path in FILES
        if path.is_relative_to(ROOT / room)
    }
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    ["# the loss is no number\n", "x = f'the hindmost {1} of all'\n", '"""A doc.\n\n    It goes on\n    here."""\n'],
)
def test_a_phrase_would_be_seen(source):
    """In a comment, in a message, and across the lines of a docstring."""
    assert len(listed(source)) == 1


@pytest.mark.parametrize("doc", ["Whether it is.", "x" * 100])
def test_a_misleading_first_line_would_be_seen(doc):
    """Of a module, and of a method in a class."""
    assert misleading(f'"""{doc}"""\n') == [f"line 1: {doc}"]
    assert misleading(f'class A:\n    def f(self):\n        """{doc}"""\n') == [f"line 2: {doc}"]

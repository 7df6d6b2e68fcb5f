"""Writes the map of folders into CONTRIBUTING.md: `python docs/tree.py --write`.

A folder's line is the first line of its `__init__.py`. Without --write it prints the map; a test compares it with
CONTRIBUTING.md, so that the map never lags behind the house.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- tree: python docs/tree.py --write -->\n```", "```\n<!-- /tree -->"
ROOMS = ("pupujepa", "data", "distributed", "sweeps", "benchmarks")
# folders and files without a docstring
OTHERS = {
    "slurm/": "batch scripts: build, train, evaluate, sweep",
    "examples/": "the demo, its calibration, songs that sound alike, a local S3 server",
    "docs/": "pages, and the scripts that write their figures",
    "tests/": "mirrors the rooms; integration/ holds SLURM and the demo, gpu/ what needs a GPU",
    "Makefile": "demo, test, setup, lint, bench, gpu, lock, compat, clean",
    "pyproject.toml": "version ranges, extras, tools, arrows between rooms",
    "requirements.lock": "the versions that all tests passed with, with hashes",
}
COLUMN = 34


def tree() -> str:
    """Returns one line per folder: its path, and its purpose."""
    lines = []
    for room in ROOMS:
        for init in sorted((ROOT / room).rglob("__init__.py")):
            folder = f"{init.parent.relative_to(ROOT).as_posix()}/"
            doc = (ast.get_docstring(ast.parse(init.read_text())) or "").partition("\n")[0]
            lines.append(f"{folder:<{COLUMN}}{doc.rstrip('.')}")
    return "\n".join([*lines, *(f"{name:<{COLUMN}}{purpose}" for name, purpose in OTHERS.items())])


def write() -> None:
    """Puts the map between its marks in CONTRIBUTING.md."""
    text = PAGE.read_text()
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    PAGE.write_text(re.sub(pattern, lambda _: f"{BEGIN}\n{tree()}\n{END}", text, flags=re.DOTALL))


if __name__ == "__main__":
    if "--write" in sys.argv:
        write()
    else:
        print(tree())

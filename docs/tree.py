"""File tree of the README, from the first lines of docstrings: `python docs/tree.py --write`.

Without --write it prints the tree; a test compares it with the README.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- tree: python docs/tree.py --write -->\n```", "```\n<!-- /tree -->"
ROOMS = ("pupujepa", "data", "distributed", "sweeps", "slurm", "benchmarks", "examples", "docs")
# what has no docstring to read
OTHERS = {
    "tests": "mirrors the rooms; integration/ holds the real SLURM and the whole demo",
    "Makefile": "demo, test, setup, lint, bench, gpu, lock, compat, clean",
    "pyproject.toml": "ranges, extras, tools",
    "requirements.lock": "the versions that all tests passed with, with hashes; `make lock` renews it",
}
WIDTH = 120


def tree() -> str:
    """Returns one line per file: its path below the room, and its purpose."""
    lines = []
    for room in ROOMS:
        lines.append(f"{room}/")
        for path in sorted((ROOT / room).rglob("*")):
            summary = _summary(path)
            if summary:
                lines.append(_line(path.relative_to(ROOT / room).as_posix(), summary))
    return "\n".join([*lines, *(f"{name:<30}{summary}" for name, summary in OTHERS.items())])


def write() -> None:
    """Puts the tree between its marks in the README."""
    text = README.read_text()
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    README.write_text(re.sub(pattern, lambda _: f"{BEGIN}\n{tree()}\n{END}", text, flags=re.DOTALL))


def _summary(path: Path) -> str:
    if path.suffix == ".py" and path.name != "__init__.py":
        doc = ast.get_docstring(ast.parse(path.read_text())) or ""
        return " ".join(doc.partition("\n\n")[0].split())
    if path.suffix in (".sbatch", ".sh"):
        comments = [x for x in path.read_text().splitlines() if x.startswith("# ")]
        return comments[0][2:] if comments else ""
    if path.suffix == ".md":
        return path.read_text().splitlines()[0].lstrip("# ")
    return ""


def _line(name: str, summary: str) -> str:
    """Returns a line of the tree; a long summary ends at the last clause that fits."""
    room = WIDTH - 30
    if len(summary) > room:
        ends = [m.start() for m in re.finditer(r"[:;.,] | - ", summary[:room])]
        summary = summary[: ends[-1]] if ends else summary[:room].rsplit(" ", 1)[0]
    return f"  {name:<28}{summary.rstrip('.')}"


if __name__ == "__main__":
    if "--write" in sys.argv:
        write()
    else:
        print(tree())

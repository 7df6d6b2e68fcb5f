"""Runs benchmarks: `python -m benchmarks [NAME ...]`; without a name, all of them. Prints Markdown.

Long ones (step, memory, stream, build, simulate, cache, codes, diagnostics, engine, faults, training_faults, endings,
feature_store, probe, gpu) run only when named. Options after a name belong to that benchmark, such
as --models large of step.
"""

import sys
from importlib import import_module
from itertools import takewhile
from pathlib import Path

from pupujepa.front_door import quiet_when_unread

QUICK = ("frontend", "masks")


def main(names: list[str]) -> None:
    """Runs the named benchmarks in turn, or shows how they are called."""
    if names[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return
    chosen = list(takewhile(lambda word: not word.startswith("-"), names))
    for name in chosen or QUICK:
        module = import_module(module_of(name))
        print(f"\n## {name}\n\n{(module.__doc__ or '').splitlines()[0]}\n")
        module.main()


def module_of(name: str) -> str:
    """Returns the module with a benchmark's `main`: its own, or `command` of its folder."""
    folder = Path(__file__).parent / name
    return f"benchmarks.{name}.command" if (folder / "command.py").exists() else f"benchmarks.{name}"


if __name__ == "__main__":
    with quiet_when_unread():
        main(sys.argv[1:])

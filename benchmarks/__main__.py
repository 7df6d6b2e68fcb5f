"""Runs benchmarks: `python -m benchmarks [NAME ...]`; without a name, all of them. Prints Markdown.

Long ones run only when named.
"""

import sys
from importlib import import_module

QUICK = ("frontend", "masks", "attention")


def main(names: list[str]) -> None:
    """Runs the named benchmarks in turn."""
    for name in names or QUICK:
        module = import_module(f"benchmarks.{name}")
        print(f"\n## {name}\n\n{module.__doc__.splitlines()[0]}\n")
        module.main()


if __name__ == "__main__":
    main(sys.argv[1:])

"""Measurement of the differences from the release: `python docs/differences.py --write`

Prints the tables, or with --write puts them into docs/differences.md. Features are those of Tiny with initial weights
and audio of seed 0, so everybody gets the same numbers without a download. With `--weights FOLDER` they are those of
your weights (printed, never written). It takes about a minute on two cores.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from docs.differences_measured import SECTIONS, SEED  # noqa: E402 - run as a script, the root is not on the path before
from docs.marks import with_section  # noqa: E402
from pupujepa.cost.cost import model_size  # noqa: E402
from pupujepa.model.model import PupuJEPA  # noqa: E402
from pupujepa.weights.weights import load  # noqa: E402

PAGE = ROOT / "docs" / "differences.md"


def write(tables: dict[str, str]) -> None:
    """Puts every table between its marks in the page."""
    text = PAGE.read_text()
    for name, content in tables.items():
        text = with_section(text, name, content, command="python docs/differences.py --write")
    PAGE.write_text(text)


def main(argv: Sequence[str]) -> None:
    """Prints the tables, or writes them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="renew docs/differences.md")
    parser.add_argument("--weights", help="measure features of these weights instead of untrained ones")
    args = parser.parse_args(argv)
    if args.write and args.weights:
        parser.error("the page holds numbers that everybody can measure; omit --write to print those of your weights")
    model = load(args.weights) if args.weights else PupuJEPA(model_size("tiny"), seed=SEED).eval()
    tables = {name: section(model) for name, section in SECTIONS.items()}
    if args.write:
        write(tables)
    else:
        print("\n\n".join(f"{name}\n\n{content}" for name, content in tables.items()))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Cost of each fault of a training on two ranks: the run with the fault against the run without.

  python -m benchmarks training_faults            all cases, about 8 min
  python -m benchmarks training_faults --write    also puts the rows into docs/training_faults.md
  python -m benchmarks training_faults --only NaN --write    plays those cases alone and keeps the other rows

The cases are those of the tests (tests/distributed/fault_cases.py): a small model on two CPU ranks, restarted until it
finishes. Seconds lost include the starts, the steps since the last checkpoint, and waiting.
"""

import argparse
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks import arguments_of
from tests.distributed.fault_cases import CASES, Case, Outcome, Site, build_shards, start_anew, straight

PAGE = Path(__file__).parents[1] / "docs" / "training_faults.md"
HEADER = "| fault | outcome | exit codes | what is said | starts | seconds lost |\n|---|---|---|---|---|---|\n"
MARKS = ("<!-- table: python -m benchmarks training_faults --write -->\n", "<!-- end of table -->\n")


def main() -> None:
    """Plays all cases and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the rows into docs/training_faults.md")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose name matches")
    args = parser.parse_args(arguments_of("training_faults"))
    print(HEADER, end="", flush=True)
    rows = {}
    with tempfile.TemporaryDirectory(prefix="training-faults-") as folder:
        for case, row in _rows(Path(folder), args.only):
            print(row, end="", flush=True)
            rows[case.fault] = row
    if args.write:
        PAGE.write_text(updated(PAGE.read_text(), rows))


def updated(page: str, rows: Mapping[str, str]) -> str:
    """Returns the page with new rows by fault; other cases keep their rows."""
    before, _, rest = page.partition(MARKS[0])
    table, _, after = rest.partition(MARKS[1])
    known = {line.split(" | ")[0].removeprefix("| "): line for line in table.splitlines(keepends=True)} | dict(rows)
    lines = [known[case.fault] for case in CASES if case.fault in known]
    return before + MARKS[0] + HEADER + "".join(lines) + MARKS[1] + after


def _rows(folder: Path, only: str) -> Iterator[tuple[Case, str]]:
    shards = str(folder / "shards")
    build_shards(shards)
    straight(Site(folder / "warm", shards, start_anew))  # warms the page cache
    usual_s = straight(Site(folder / "straight", shards, start_anew)).seconds
    for number, case in enumerate(CASES):
        if re.search(only, case.fault):
            outcome = case.play(Site(folder / str(number), shards, start_anew))
            yield case, row_of(case, outcome, lost_s=outcome.seconds - usual_s)


def row_of(case: Case, outcome: Outcome, *, lost_s: float) -> str:
    """Returns a row of the table: the observed outcome of a case.

    Raises:
        RuntimeError: it did not end as expected, or the fault did not occur.
    """
    lines = [line for text in outcome.said for line in text.splitlines() if re.search(case.said, line)]
    if not lines or outcome.codes[0] != case.codes:
        said = "".join(text[-2000:] for text in outcome.said)
        raise RuntimeError(f"{case.fault}: exit codes {outcome.codes[0]} for {case.codes}; no {case.said!r} in: {said}")
    said = re.sub(r"^\d\d:\d\d:\d\d (rank \d: )?", "", lines[0])
    said = re.sub(r"127\.0\.0\.1(\]?:)\d+", "HOST", re.sub(r"/\S*/run(?=[/:])", "RUN", said)).replace("|", "/")
    codes = " and ".join(str(code) for code in outcome.codes[0])
    return f"| {case.fault} | {case.outcome} | {codes} | {said} | {len(outcome.codes)} | {max(lost_s, 0.0):.0f} |\n"

"""Cost of each fault of object storage for a stream: a real server behind a proxy with faults.

  python -m benchmarks faults            with the retries of a training, about 20 min: some cases last a deadline
  python -m benchmarks faults --quick    with short retries, about 2 min: the same outcomes, other seconds
  python -m benchmarks faults --write    also puts the table into docs/faults.md

The cases are those of the tests (tests/data/fault_cases.py). Seconds lost are those of the stream with the fault minus
those without, on shards of about 40 kB, so they are waiting and not transfer.
"""

import argparse
import logging
import re
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import arguments_of
from data.store.files import RetryPolicy
from examples.local_s3 import LocalS3
from tests.data.fault_cases import CASES, EXACT, Case, healthy
from tests.data.fault_site import SAMPLES_PER_SHARD, Outcome, Site, environment
from tests.data.shardsets import build_shard_set

PAGE = Path(__file__).parents[1] / "docs" / "faults.md"
HEADER = "| fault | outcome | what is said | counter | seconds lost |\n|---|---|---|---|---|\n"
STOPS = "the run stops"
_MARKS = ("<!-- table: python -m benchmarks faults --write -->\n", "<!-- end of table -->\n")
_QUICK = RetryPolicy(first_wait_s=0.02, max_wait_s=0.2, min_download_bytes_per_s=2e4)


class Heard(logging.Handler):
    """Keeps the warnings of the data room."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a line."""
        self.lines.append(record.getMessage())


def main() -> None:
    """Plays all cases and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="with short retries")
    parser.add_argument("--write", action="store_true", help="put the table into docs/faults.md")
    args = parser.parse_args(arguments_of("faults"))
    policy = RetryPolicy()
    deadline_s, silence_s = (1.5, 1.0) if args.quick else (policy.deadline_s, policy.read_timeout_s)
    lines = [f"Cases that are given up were insisted on for {deadline_s:g} s; silence was taken for lost after "]
    lines[0] += f"{silence_s:g} s.\n\n"
    lines += [HEADER]
    print(*lines, sep="", end="", flush=True)
    with _data_room_heard() as heard, tempfile.TemporaryDirectory(prefix="faults-") as folder:
        for row in _rows(Path(folder), _QUICK if args.quick else policy, (deadline_s, silence_s), heard):
            print(row, end="", flush=True)
            lines.append(row)
    if args.write:
        before, _, rest = PAGE.read_text().partition(_MARKS[0])
        PAGE.write_text(before + _MARKS[0] + "".join(lines) + _MARKS[1] + rest.partition(_MARKS[1])[2])


@contextmanager
def _data_room_heard() -> Iterator[list[str]]:
    """Gives the list that the warnings of the data room go to, instead of to the terminal."""
    heard, room = Heard(), logging.getLogger("data")
    room.addHandler(heard)
    room.propagate = False
    try:
        yield heard.lines
    finally:
        room.removeHandler(heard)
        room.propagate = True


def _rows(folder: Path, policy: RetryPolicy, limits_s: tuple[float, float], heard: list[str]) -> Iterator[str]:
    url = "s3://set/train"
    with (
        LocalS3(folder / "s3", buckets=["set"]) as server,
        environment(**server.environment(), AWS_PROFILE=None, AWS_SESSION_TOKEN=None),
    ):
        site = Site(server, url, build_shard_set(url, SAMPLES_PER_SHARD), folder, policy, *limits_s)
        healthy(site)  # imports the client library
        usual_s = statistics.median(healthy(site).seconds for _ in range(3))
        for case in CASES:
            heard.clear()
            outcome = case.play(site)
            yield row_of(case, outcome, heard, lost_s=outcome.seconds - usual_s)


def row_of(case: Case, outcome: Outcome, lines: list[str], *, lost_s: float) -> str:
    """Returns a row of the table: the observed outcome of a case, not the expected one."""
    said = outcome.error or next((line for line in lines if case.said and re.search(case.said, line)), "-")
    said = re.sub(r"127\.0\.0\.1:\d+", "HOST", re.sub(r"/\S*/cache-\d+", "CACHE", said)).replace("|", "/")
    counter = f"{case.counter} {outcome.counters[case.counter]:.0f}" if case.counter else "-"
    return f"| {case.fault} | {STOPS if outcome.error else EXACT} | {said} | {counter} | {max(lost_s, 0.0):.1f} |\n"

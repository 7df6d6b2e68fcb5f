"""Ends trainings at random moments in every way, continues them, and compares their losses bit for bit.

  python -m benchmarks endings                50 endings, about 10 min
  python -m benchmarks endings --count 12     two runs, each ended six times
  python -m benchmarks endings --seed 3       other moments

The kinds are those of tests/distributed/endings.py, which the tests play once each: SIGKILL, SIGTERM, Ctrl-C and SIGHUP
on one of two ranks, a killed data worker, a full disk. Ends with an error if a run ends otherwise or its losses differ.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks import arguments_of
from tests.distributed.endings import end_and_continue, rounds, straight_losses
from tests.distributed.fault_cases import Site, build_shards
from tests.distributed.rank_server import RankServer


def main() -> None:
    """Plays the endings and prints how often each kind ended as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, help="endings (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the order and the moments (default: 0)")
    args = parser.parse_args(arguments_of("endings"))
    with tempfile.TemporaryDirectory(prefix="endings-") as folder, RankServer() as server:
        play(Path(folder), server, count=args.count, seed=args.seed)


def play(folder: Path, server: RankServer, *, count: int, seed: int) -> None:
    """Plays `count` endings in runs of a few each.

    Raises:
        RuntimeError: a rank ended with another code, or the losses are not those of a run that nothing ended.
    """
    shards = str(folder / "shards")
    build_shards(shards)
    whole = straight_losses(Site(folder / "straight", shards, server.start))
    turns: Counter[str] = Counter()
    for number, kinds in enumerate(rounds(count, seed=seed)):
        site = Site(folder / str(number), shards, server.start)
        ended, losses = end_and_continue(site, kinds, seed=seed * 1000 + number)
        for ending in ended:
            if not ending.is_as_expected:
                raise RuntimeError(f"{ending.kind} of rank {ending.rank} ended with {ending.codes}: {ending.said}")
        if losses != whole:
            raise RuntimeError(f"run {number}, ended by {kinds}: its losses are not those of a straight run")
        turns.update(kinds)
        print(f"run {number}: {', '.join(kinds)}: {len(losses)} losses equal, bit for bit", flush=True)
    print("\n| ending | times |\n|---|---|")
    print("\n".join(f"| {kind} | {times} |" for kind, times in turns.items()))

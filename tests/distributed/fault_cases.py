"""The faults of a training on two ranks, one case each: what strikes which rank, and what must come of it.

The tests play those that cost little; `python -m benchmarks training_faults` plays all, measures what each costs, and
writes the table of docs/training_faults.md. Ranks are started as srun starts them: a process each, nobody above them.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from distributed.run.directory import RunDirectory
from distributed.run.log import read_metrics
from examples.local_s3 import LocalS3
from tests.data.fault_cases import kill_server
from tests.data.fault_site import environment as variables
from tests.data.shardsets import build_shard_set
from tests.distributed.launch import train_command
from tests.distributed.rank_server import RankServer, world
from tests.faultproxy import Fault, FaultProxy

STEPS, STRUCK_STEP, STALL_S = 20, 9, 20.0
# a checkpoint at 7 and 14: a rank that is killed at 9 has lost two steps
SETTINGS = (f"train.steps={STEPS}", f"faults.stall_s={STALL_S}", "faults.skipped_in_row=2", "diagnostics.every=0")


@dataclass(frozen=True)
class Site:
    """Where a case is played.

    Args:
        folder: of its own.
        shards: that all cases share.
        start: starts ranks, see RankServer.
        to_the_end: whether a training that was ended is continued until it is through.
    """

    folder: Path
    shards: str
    start: Callable[[Sequence[dict[str, Any]]], list[int]]
    to_the_end: bool = True

    @property
    def run_dir(self) -> Path:
        """Of the training that is struck."""
        return self.folder / "run"


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Args:
        codes: exit codes of the ranks, for each start of the command.
        said: what the first start wrote to stderr, by rank.
        losses: by step, of the whole run.
        skipped: steps that were left out.
        counters: of the data, over the run.
    """

    codes: list[tuple[int, ...]]
    said: tuple[str, ...]
    losses: dict[int, float]
    skipped: list[int]
    counters: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Case:
    """One fault.

    Args:
        fault: in words.
        outcome: in words, for the table.
        play: strikes a training on the site, continues it as often as it asks for, and returns what was seen.
        codes: exit codes of the ranks in the start that was struck; None is whatever the launcher gives it.
        said: regular expression of what a rank that is left says.
        in_suite: whether it is cheap enough to be played by the tests.
    """

    fault: str
    outcome: str
    play: Callable[[Site], Outcome] = field(repr=False)
    codes: tuple[int, ...]
    said: str
    skipped: tuple[int, ...] = ()
    in_suite: bool = True


def build_shards(url: str, *, longer: int = 0) -> None:
    """Writes what all cases read, by so many frames a sample longer."""
    build_shard_set(url, (16, 16, 16, 16), num_frames=lambda number: 64 + longer + number % 9)


def straight(site: Site) -> Outcome:
    """No fault: what the others are compared with."""
    return _played(site, None)


def _played(site: Site, fault: dict[str, Any] | None, *words: str, **changes: str) -> Outcome:
    """Starts the ranks with a fault, and then without until they are through; what diverged is not tried again."""
    started = time.monotonic()
    starts = [start_ranks(site, fault, words, changes)]
    while site.to_the_end and any(starts[-1][0]) and 2 not in starts[-1][0]:
        assert len(starts) < 5, starts[-1][1]
        starts.append(start_ranks(site, None, (), changes))
    rows = read_metrics(RunDirectory(site.run_dir).metrics)
    counters = ("data/retries", "data/wait_s")
    return Outcome(
        codes=[codes for codes, _ in starts],
        said=starts[0][1],
        losses={row["step"]: row["loss"] for row in rows if "loss" in row},
        skipped=[row["step"] for row in rows if row.get("skipped")],
        counters={name: sum(row.get(name, 0.0) for row in rows) for name in counters},
        seconds=time.monotonic() - started,
    )


def start_ranks(
    site: Site, fault: dict[str, Any] | None, words: Sequence[str], changes: Mapping[str, str] = MappingProxyType({})
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Starts two ranks, waits for them, and returns their exit codes and what they said."""
    site.folder.mkdir(parents=True, exist_ok=True)
    command = train_command(site.run_dir, site.shards, *SETTINGS, *words)
    ranks = world(2, "tests.distributed.faulty:main", command[command.index("train") :], fault, logs=site.folder)
    for rank in ranks:
        rank["environ"] |= changes
    codes = site.start(ranks)
    return tuple(codes), tuple(Path(str(rank["log"])).read_text() for rank in ranks)


def start_anew(ranks: Sequence[dict[str, Any]]) -> list[int]:
    """Starts ranks with all that a start takes."""
    with RankServer() as server:
        return server.start(ranks)


def struck(what: str, *steps: int, rank: int = 1, words: Sequence[str] = ()) -> Callable[[Site], Outcome]:
    """Strikes one rank at certain steps; `what` as in faulty.strike; `words` are of the command line."""
    fault = {"rank": rank, "steps": steps or (STRUCK_STEP,), "what": what}
    return lambda site: _played(site, fault, *words)


def _out_of_time(site: Site) -> Outcome:
    """A limit that is nearly over when training begins: one step a start would do, were it not for the next start."""
    return _played(site, None, "--time-limit=0:01")


@contextmanager
def _store(site: Site, *, longer: int = 0) -> Iterator[tuple[LocalS3, FaultProxy, Callable[[], Outcome]]]:
    """The shards in an object store, a proxy before it, and a training that reads them through it."""
    url, words = "s3://set/train", (f"stream.cache_dir={site.folder / 'cache'}", "stream.prefetch_bytes=0")
    with (
        LocalS3(site.folder / "server", buckets=["set"]) as server,
        FaultProxy(upstream_port=server.port) as proxy,
        variables(**server.environment(), AWS_PROFILE=None, AWS_SESSION_TOKEN=None),
    ):
        build_shards(url, longer=longer)
        through = {"AWS_ENDPOINT_URL": proxy.endpoint_url, "AWS_ENDPOINT_URL_S3": proxy.endpoint_url}
        yield server, proxy, partial(_played, replace(site, shards=url), None, *words, **through)


def _store_refuses(site: Site) -> Outcome:
    """The store answers five times in a row that it cannot serve a shard, some five seconds of waits."""
    with _store(site) as (_, proxy, play):
        proxy.inject(Fault("503", times=5, match="shard-000000.tar$"))
        return play()


def _store_killed(site: Site) -> Outcome:
    """The store's server is killed while it sends a shard, and another one starts on what it has left."""
    # 24 MB a shard: of less, what the server has not sent yet lies in the sockets' buffers and arrives all the same
    with _store(site, longer=6000) as (server, proxy, play), ThreadPoolExecutor(1) as accident:
        proxy.inject(Fault("hold", match="shard-000000.tar$"))
        over = threading.Event()
        accident.submit(kill_server, server, proxy, True, over)
        try:
            return play()
        finally:
            over.set()


_SAVED = rf"asked to stop \(1 of 2 ranks\): saving step {STRUCK_STEP + 1}"
_WORKER = ("stream.workers=1",)
_GONE = r"rank 1 on \S+ \(process \d+\), silent for \d+ s, last seen in .*: rank 0 cannot continue"

CASES: tuple[Case, ...] = (
    *(
        Case(f"{name} on one rank", "both save the same step", struck(name), (85, 85), _SAVED, in_suite=False)
        for name in ("SIGTERM", "SIGUSR2", "SIGINT", "SIGHUP")
    ),
    Case(
        "time limit",
        "saved before its end",
        _out_of_time,
        (85, 85),
        r"asked to stop \(2 of 2 ranks\): saving step 1",
        in_suite=False,
    ),
    Case("SIGKILL of a rank", "the other names it and ends", struck("SIGKILL"), (86, -9), _GONE),
    Case(
        "SIGKILL of rank 0",
        "the other names it and ends",
        struck("SIGKILL", rank=0),
        (-9, 86),
        _GONE.replace("rank 0", "rank 2").replace("rank 1", "rank 0").replace("rank 2", "rank 1"),
        in_suite=False,
    ),
    Case(
        "a rank stands still",
        "it shows its stacks and ends; the other names it",
        struck("hang"),
        (86, 86),
        rf"rank 1 on \S+ .*has been in the wait for data \(step {STRUCK_STEP}\)",
    ),
    Case(
        "out of memory on one rank",
        "both end at once, and the other names it",
        struck("out of memory", words=_WORKER),
        (1, 1),
        r"rank 1 failed first \(OutOfMemoryError: CUDA out of memory\. .*\): rank 0 cannot continue",
    ),
    Case(
        "a data worker is killed",
        "both end and name it",
        struck("killed worker", words=_WORKER),
        (86, 86),
        r"data worker 0 \(process \d+\) was killed by SIGKILL",
    ),
    Case(
        "the disk of the run directory is full",
        "both end, with one sentence",
        struck("full disk", rank=0),
        (2, 2),
        r"error: \S+: No space left on device, so the training ended",
    ),
    Case(
        "a rank is frozen (SIGSTOP)",
        "the other names it and ends",
        struck("SIGSTOP"),
        (86, -9),
        r"it waits for rank 1 on \S+ \(process \d+\), silent for \d+ s",
        in_suite=False,
    ),
    Case(
        "a loss of NaN on one rank, once",
        "the step is left out on both",
        struck("nan"),
        (0, 0),
        rf"step {STRUCK_STEP}: the loss is nan: left out on all ranks \(1 in a row\)",
        skipped=(STRUCK_STEP,),
    ),
    Case(
        "losses of NaN, three in a row",
        "it stops, with what went in",
        struck("nan", 9, 10, 11),
        (2, 2),
        r"training diverged: the loss is nan at step 11, the last of 3 in a row \(what went in is in \S+\); "
        r"the checkpoint of step 7 is from before",
        skipped=(9, 10, 11),
    ),
    Case(
        "the object store refuses a shard for some seconds",
        "the training waits for it",
        _store_refuses,
        (0, 0),
        r"download s3://set/train/shard-000000.tar: 503 SlowDown",
    ),
    Case(
        "the object store's server is killed and comes back",
        "the training waits for it",
        _store_killed,
        (0, 0),
        r"download s3://set/train/shard-00000\d.tar: .*(cut short|connection was lost|no connection)",
        in_suite=False,
    ),
)

"""Writing in the background: nothing is published before all is written, and a failure reaches the training."""

import errno
import json
import logging
import threading
from pathlib import Path

import pytest

from distributed.checkpoints.config import CheckpointConfig
from distributed.checkpoints.manifest import CheckpointError
from distributed.checkpoints.store import CheckpointStore
from distributed.processes.topology import Topology
from tests.distributed.checkpoints.test_snapshot import BEYOND_BYTES, LIMIT_BYTES, files_up_to
from tests.distributed.rank_server import world

pytestmark = pytest.mark.usefixtures("alone")
PATIENCE_S = 120


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", Topology(), keep=3)


class Writer:
    """Writes a file, in the thread, when it is allowed to."""

    def __init__(self, *, error: OSError | None = None, size_bytes: int = 10):
        self.allowed, self.error, self.size_bytes = threading.Event(), error, size_bytes
        self.thread: threading.Thread | None = None

    def __call__(self, directory: Path):
        def write() -> None:
            assert self.allowed.wait(PATIENCE_S)
            self.thread = threading.current_thread()
            if self.error:
                raise self.error
            (directory / "weights.pt").write_bytes(b"w" * self.size_bytes)

        return write

    def go(self):
        self.allowed.set()
        return self


def poll_until_landed(store, step):
    """What the trainer does between steps; returns how often, bounded by the writer's own end."""
    for polls in range(1_000_000):
        store.poll()
        if store.last is not None and store.last.step == step:
            return polls
        if store._task._running is not None:
            store._task._running.exception(PATIENCE_S)
    raise AssertionError("it never landed")


def test_training_goes_on_while_a_checkpoint_is_written(store):
    """`begin` returns before anything is written; it is published by `poll`, once its thread is done, not before."""
    writer = Writer()
    store.begin(5, writer, {})
    assert store.holds(5)
    for _ in range(3):
        store.poll()
        assert store.steps() == []
        assert store.last is None
    writer.go()
    poll_until_landed(store, 5)
    assert writer.thread is not threading.main_thread()
    assert store.steps() == [5]
    assert store.newest_whole().step == 5
    assert (store.root / "LATEST").read_text() == "step-0000005\n"


def test_one_is_in_flight_at_most(store):
    """The next one waits for the one before, which is published first."""
    first, second = Writer(), Writer()
    store.begin(5, first, {})
    threading.Timer(0.05, first.go).start()
    store.begin(10, second.go(), {})
    assert store.steps()[-1] == 5
    assert store.holds(10)
    assert not store.holds(5)
    store.finish(10)
    assert store.steps() == [10, 5]


def test_a_save_that_is_waited_for_is_whole(store):
    """`finish` returns when the checkpoint is there."""
    writer = Writer()
    store.begin(5, writer, {})
    threading.Timer(0.05, writer.go).start()
    store.finish(5)
    assert store.steps() == [5]


def test_a_full_disk_stops_the_run_at_the_next_step(store):
    """The kernel refuses the bytes: one sentence at `poll`, with what is left; nothing of the failed one stays."""
    store.save(5, Writer().go(), {})
    with files_up_to(LIMIT_BYTES):
        store.begin(10, Writer(size_bytes=BEYOND_BYTES).go(), {})
        with pytest.raises(
            CheckpointError,
            match=r"step-0000010 could not be written: File too large.*newest whole one is step-0000005; remedy this",
        ):
            store.poll(wait=True)
    assert store.newest_whole().step == 5
    assert {p.name for p in store.root.iterdir()} == {"LATEST", "step-0000005"}
    store.save(15, Writer().go(), {})
    assert store.steps() == [15, 5]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO])
def test_or_the_run_goes_on_if_it_is_told_to(tmp_path, caplog, number):
    """With on_failure=go_on a refusal is a warning, the old ones stay, and the next checkpoint is made."""
    store = CheckpointStore(tmp_path, Topology(), config=CheckpointConfig(every=5, on_failure="go_on"))
    store.save(5, Writer().go(), {})
    with caplog.at_level(logging.WARNING):
        store.begin(10, Writer(error=OSError(number, "refused here", "weights.pt")).go(), {})
        store.poll(wait=True)
    assert "step-0000010 could not be written: refused here weights.pt" in caplog.text
    assert "training continues" in caplog.text
    assert not store.holds(10)
    assert store.steps() == [5]
    store.begin(15, Writer().go(), {})
    store.finish(15)
    assert store.steps() == [15, 5]


def test_the_last_checkpoint_must_succeed_whatever_the_setting(tmp_path):
    """A run must not end, or give its place to others, as if its last steps were saved."""
    store = CheckpointStore(tmp_path, Topology(), config=CheckpointConfig(every=5, on_failure="go_on"))
    store.begin(5, Writer(error=OSError(errno.ENOSPC, "No space left on device")).go(), {})
    with pytest.raises(CheckpointError, match=r"step-0000005 could not be made .* would be lost"):
        store.finish(5)


def test_a_folder_that_cannot_be_written_to_is_said_before_anything_is_copied(tmp_path):
    """A file in the place of the folder: the refusal comes from `begin`, which has asked for no snapshot yet."""
    (tmp_path / "checkpoints").write_text("in the way")
    store = CheckpointStore(tmp_path / "checkpoints", Topology(), keep=1)
    with pytest.raises(CheckpointError, match="step-0000005 could not be written: File exists"):
        store.begin(5, lambda directory: pytest.fail("a snapshot was taken"), {})


def test_an_error_of_the_program_is_no_full_disk(store):
    """What is not a refusal of the disk keeps its traceback."""

    def write(directory):
        def rest():
            raise ZeroDivisionError("a mistake")

        return rest

    store.begin(5, write, {})
    with pytest.raises(ZeroDivisionError, match="a mistake"):
        store.poll(wait=True)


def test_retention_while_writing(tmp_path):
    """Newest two, every tenth, and the best by the log: the rest is deleted after each new one is safe."""
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(f'{{"step": {s}, "probe/key": {v}}}\n' for s, v in ((2, 0.1), (4, 0.8), (6, 0.3))))
    config = CheckpointConfig(every=2, keep=2, keep_every=10, keep_best="probe/key")
    store = CheckpointStore(tmp_path / "checkpoints", Topology(), config=config, metrics=metrics)
    for step in range(2, 17, 2):
        store.save(step, Writer().go(), {})
    assert store.steps() == [16, 14, 10, 4]


def test_two_ranks_agree(tmp_path, rank_server):
    """Nothing is published before the slower rank has written; a refusal, or damage, that one sees is both's."""
    ranks = world(2, "tests.distributed.checkpoint_ranks:main", str(tmp_path), logs=tmp_path)
    assert rank_server.start(ranks) == [0, 0], "".join(Path(rank["log"]).read_text() for rank in ranks)
    first, second = (json.loads((tmp_path / f"said-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert (first["steps"], first["last"]) == ([5], 5)
    assert first["files"] == ["manifest.json", "random-rank-00000.pt", "random-rank-00001.pt"]
    assert "step-0000010 could not be written: No space left on device" in first["error"]
    assert first["taken"] == 5
    assert "random-rank-00001.pt is damaged" in first["refused"][0]

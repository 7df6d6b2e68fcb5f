"""How a session ends: sinks are told, and what a failing one had counted is not lost."""

import json
from types import SimpleNamespace

import pytest
import torch

from data.store.files import MissingObjectError
from data.store.store import open_store
from data.stream.stream import Stream, StreamConfig
from distributed.processes.watchdog import Whereabouts
from distributed.run.speed import StreamCounts
from distributed.train import SessionEnd
from distributed.trainer import Ending
from pupujepa.training.masks import MaskConfig
from tests.data.shardsets import build_shard_set


class Log:
    """Remembers how it was closed."""

    def __init__(self, counts):
        self.outcome, self.unsaid_counts = None, lambda: counts

    def close(self, outcome):
        self.outcome = outcome


def trainer_at(step, *, counts=None):
    log = Log(counts or {})
    topology = SimpleNamespace(rank=3)
    return SimpleNamespace(step=step, topology=topology, log=log, whereabouts=Whereabouts()), log


@pytest.mark.parametrize(("ending", "outcome"), [(Ending.FINISHED, "finished"), (Ending.STOPPED, "stopped")])
def test_sinks_are_told_how_it_ended(tmp_path, ending, outcome):
    """All steps trained, or stopped before that to be continued; neither leaves a record of a failure."""
    trainer, log = trainer_at(7)
    with SessionEnd(trainer, tmp_path) as end:
        end.ending = ending
    assert log.outcome == outcome
    assert not list(tmp_path.iterdir())


def test_a_run_that_the_guard_stopped_has_failed(tmp_path):
    """wandb shows it among the failed ones, not among those to be continued."""
    trainer, log = trainer_at(7)
    with SessionEnd(trainer, tmp_path) as end:
        end.ending = Ending.COLLAPSED
    assert log.outcome == "failed"


def test_a_failure_leaves_a_record(tmp_path):
    """With the step, the error and the counts of this rank; the error goes on."""
    trainer, log = trainer_at(7, counts={"data/retries": 4.0})
    with pytest.raises(ZeroDivisionError), SessionEnd(trainer, tmp_path):
        _ = 1 / 0
    assert log.outcome == "failed"
    assert isinstance(trainer.whereabouts.error, ZeroDivisionError), "the watchdog tells the other ranks"
    record = json.loads((tmp_path / "failed-step-0000007-rank-3.json").read_text())
    assert record == {"step": 7, "rank": 3, "error": "ZeroDivisionError: division by zero", "data/retries": 4.0}


def test_a_record_that_cannot_be_written_hides_no_error(tmp_path, caplog):
    """A full disk is often what ended the session in the first place."""
    trainer, log = trainer_at(7)
    (tmp_path / "file").touch()
    with pytest.raises(ZeroDivisionError), SessionEnd(trainer, tmp_path / "file" / "no folder"):
        _ = 1 / 0
    assert log.outcome == "failed"
    assert "could not be written" in caplog.text


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1])
def test_what_was_counted_when_the_stream_failed_is_in_the_record(tmp_path, workers):
    """A shard is missing: the bytes that were read for the batch that never came are counted all the same."""
    url = str(tmp_path / "shards")
    manifest = build_shard_set(url, (4, 4), num_frames=lambda number: 20)
    config = StreamConfig(
        url=url, crop_frames=32, global_batch=8, lanes=1, window_shards=1, workers=workers, max_bad_fraction=0.9
    )
    stream = Stream(config, manifest=manifest, rank=0, world_size=1, micro_batch=8, masks=MaskConfig(), total_steps=4)
    open_store(url).local_path(manifest.shards[1].name).unlink()
    counts = StreamCounts(stream, device=torch.device("cpu"))
    run_root = tmp_path / "run"
    run_root.mkdir()
    trainer, _ = trainer_at(0)
    trainer.log.unsaid_counts = counts.unsaid
    with pytest.raises(MissingObjectError), SessionEnd(trainer, run_root):
        next(iter(stream))
    (path,) = run_root.iterdir()
    record = json.loads(path.read_text())
    assert record["error"].startswith("MissingObjectError")
    assert record["data/bytes_read"] > 0

"""How a session ends: sinks are told, and what a failing one had counted is not lost."""

import json
from types import SimpleNamespace

import pytest
import torch

from data.files import MissingObjectError
from data.store import open_store
from data.stream import Stream, StreamConfig
from distributed.session_end import SessionEnd
from distributed.stream_counts import StreamCounts
from pupujepa.masks import MaskConfig
from tests.data.shardsets import build_shard_set


class Sink:
    """Remembers how it was closed."""

    outcome = None

    def close(self, outcome):
        self.outcome = outcome


def trainer_at(step, *, counts=None):
    sink = Sink()
    parts = SimpleNamespace(sinks=[sink], topology=SimpleNamespace(rank=3))
    return SimpleNamespace(step=step, total_steps=10, parts=parts, unsaid_counts=lambda: counts or {}), sink


@pytest.mark.parametrize(("step", "outcome"), [(10, "finished"), (7, "stopped")])
def test_sinks_are_told_how_it_ended(tmp_path, step, outcome):
    """All steps trained, or stopped before that to be continued; neither leaves a record of a failure."""
    trainer, sink = trainer_at(step)
    with SessionEnd(trainer, tmp_path):
        pass
    assert sink.outcome == outcome
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_a_record(tmp_path):
    """With the step, the error and the counts of this rank; the error goes on."""
    trainer, sink = trainer_at(7, counts={"data/retries": 4.0})
    with pytest.raises(ZeroDivisionError), SessionEnd(trainer, tmp_path):
        _ = 1 / 0
    assert sink.outcome == "failed"
    record = json.loads((tmp_path / "failed-step-0000007-rank-3.json").read_text())
    assert record == {"step": 7, "rank": 3, "error": "ZeroDivisionError: division by zero", "data/retries": 4.0}


def test_a_record_that_cannot_be_written_hides_no_error(tmp_path, caplog):
    """A full disk is often what ended the session in the first place."""
    trainer, sink = trainer_at(7)
    (tmp_path / "file").touch()
    with pytest.raises(ZeroDivisionError), SessionEnd(trainer, tmp_path / "file" / "no folder"):
        _ = 1 / 0
    assert sink.outcome == "failed"
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
    trainer.unsaid_counts = counts.unsaid
    with pytest.raises(MissingObjectError), SessionEnd(trainer, run_root):
        next(iter(stream))
    (path,) = run_root.iterdir()
    record = json.loads(path.read_text())
    assert record["error"].startswith("MissingObjectError")
    assert record["data/bytes_read"] > 0

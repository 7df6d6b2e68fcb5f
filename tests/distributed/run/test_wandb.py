"""wandb offline, as wandb itself would read it; and what happens when it cannot be reached or breaks."""

import json
import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
import wandb

from distributed.run.directory import RunDirectory
from distributed.run.wandb import REMOVED, WandbSink, scrubbed, scrubbed_command
from pupujepa.errors import UserError
from tests.distributed.launch import environment
from tests.distributed.wandb_records import records

HUSH = "hush-hush-8d1f"
SETTINGS = {"stream": {"url": f"s3://key:{HUSH}@bucket/train?signature={HUSH}"}, "aws_secret_access_key": HUSH}
# two sessions of a run: the second one trains steps 2 and 3 again
SESSIONS = f"""
import sys
from pathlib import Path
from distributed.run.directory import RunDirectory
from distributed.run.wandb import FINISHED, STOPPED, WandbSink
run = RunDirectory(Path(sys.argv[1]))
for first, outcome in ((0, STOPPED), (2, FINISHED)):
    sink = WandbSink(run, project="music", name=None, mode="offline", settings={SETTINGS!r})
    for step in range(first, first + 4):
        sink.write({{"step": step, "loss": (first + 1) / (step + 1)}})
    print("{HUSH} on stdout")
    sink.close(outcome)
"""


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """The run directory, and the records of each session, oldest first."""
    root = tmp_path_factory.mktemp("wandb") / "run"
    root.mkdir()
    secrets = {"WANDB_API_KEY": HUSH * 4, "AWS_SECRET_ACCESS_KEY": HUSH}
    command = [sys.executable, "-c", SESSIONS, str(root), f"--password={HUSH}"]
    subprocess.run(command, check=True, timeout=900, env=environment() | secrets, stdout=subprocess.DEVNULL)
    files = sorted(root.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    return root, [list(records(path)) for path in files]


def of_kind(session, kind):
    return [getattr(record, kind) for record in session if record.WhichOneof("record_type") == kind]


def test_all_sessions_are_one_run(offline):
    """The id of the run directory, in both sessions' files; the name is the run's."""
    root, sessions = offline
    own_id = (root / "wandb-id.txt").read_text().strip()
    started = [of_kind(session, "run")[0] for session in sessions]
    assert [run.run_id for run in started] == [own_id, own_id]
    assert [(run.project, run.display_name) for run in started] == [("music", "run")] * 2


def test_our_step_is_the_axis(offline):
    """Every metric is drawn over it, and rows that are logged again are not dropped."""
    _, sessions = offline
    for first, session in zip((0, 2), sessions, strict=True):
        axes = {metric.glob_name: metric.step_metric for metric in of_kind(session, "metric") if metric.glob_name}
        assert axes == {"*": "step"}
        rows = [
            {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.item}
            for row in of_kind(session, "history")
        ]
        assert [row["step"] for row in rows] == list(range(first, first + 4))
        assert [row["loss"] for row in rows] == [(first + 1) / (row["step"] + 1) for row in rows]


def test_how_a_session_ended_is_told(offline):
    """A run that is stopped to be continued is no finished one, and no crash either."""
    _, (stopped, finished) = offline
    assert [ending.exit_code for ending in of_kind(stopped, "exit")] == [85]
    assert len(of_kind(stopped, "preempting")) == 1
    assert [ending.exit_code for ending in of_kind(finished, "exit")] == [0]
    assert not of_kind(finished, "preempting")


def test_no_secret_is_in_any_file(offline):
    """Not those of the configuration, the environment, the command line or the output."""
    root, _ = offline
    files = [path for path in root.rglob("*") if path.is_file()]
    assert len(files) > 4
    assert [path for path in files if HUSH.encode() in path.read_bytes()] == []


def test_configurations_are_scrubbed():
    """By the names of keys and in URLs, at any depth; all else stays."""
    assert scrubbed(SETTINGS | {"mask_token_std": 0.02, "tokens": [1, "s3://a@b/c"], "lr": 1e-3, "none": None}) == {
        "stream": {"url": "s3://bucket/train"},
        "aws_secret_access_key": REMOVED,
        "mask_token_std": REMOVED,
        "tokens": [1, "s3://b/c"],
        "lr": 1e-3,
        "none": None,
    }


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["train", "stream.url=a b/#1"], "train 'stream.url=a b/#1'"),
        (["stream.url=s3://me:pw@host/x?X-Amz-Signature=1"], "stream.url=s3://host/x"),
        (["s3://me:pw@host/x?sig=1"], "s3://host/x"),
        (["telemetry.api_key=1", "--token=2"], f"'telemetry.api_key={REMOVED}' '--token={REMOVED}'"),
        (["--api-key", "3", "x"], f"--api-key '{REMOVED}' x"),
        (["--run-dir", "runs/my key", "train.steps=3"], "--run-dir 'runs/my key' train.steps=3"),
    ],
)  # fmt: skip
def test_a_command_is_kept_without_secrets(words, kept):
    """In the words of a shell, so that it can be run again."""
    assert scrubbed_command(words) == kept


class BrokenRun:
    """A run whose service has died."""

    def define_metric(self, *names, **axes):
        pass

    def log(self, row):
        raise BrokenPipeError("the service is gone")

    def finish(self, exit_code):
        raise AssertionError("it is broken already")


def open_sink(tmp_path, mode):
    return WandbSink(RunDirectory(tmp_path), project="p", name="n", mode=mode, settings={})


def test_a_broken_wandb_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    """It is said once, and metrics.jsonl has the numbers."""
    monkeypatch.setattr(wandb, "init", lambda **start: BrokenRun())
    sink = open_sink(tmp_path, "offline")
    with caplog.at_level(logging.WARNING):
        sink.write({"step": 0})
        sink.write({"step": 1})
        sink.close()
    assert [record.message.partition(":")[0] for record in caplog.records] == ["wandb failed (the service is gone)"]


def test_without_a_network_it_goes_offline(tmp_path, monkeypatch, caplog):
    """A compute node that cannot reach the server trains all the same."""
    modes = []

    def init(mode, **start):
        modes.append(mode)
        if mode == "online":
            raise wandb.errors.CommError("no route to host")
        return SimpleNamespace(define_metric=lambda *names, **axes: None)

    monkeypatch.setattr(wandb, "init", init)
    with caplog.at_level(logging.WARNING):
        open_sink(tmp_path, "online")
    assert modes == ["online", "offline"]
    assert "kept offline" in caplog.text


def test_online_without_a_key_is_refused(tmp_path, monkeypatch):
    """It was asked for by name, so it is not silently left out."""

    def init(**start):
        raise wandb.errors.UsageError("No API key configured")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(UserError, match=r"No API key configured.*WANDB_API_KEY"):
        open_sink(tmp_path, "online")

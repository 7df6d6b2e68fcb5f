"""The records of a run's sessions: every start, its command, and what a damaged file becomes."""

import json
from types import SimpleNamespace

import pytest
import torch

from distributed.experiment import load_experiment
from distributed.processes.topology import Topology
from distributed.run.directory import RunDirectory, read_sessions
from distributed.sessions.history import begin_session
from tests.distributed.launch import PRESET


@pytest.fixture
def session(tmp_path):
    experiment = load_experiment([str(PRESET)], overrides=["stream.url=shards"])
    sizes = SimpleNamespace(global_batch=8, micro_batch=8, accumulation=1)
    return SimpleNamespace(
        experiment=experiment,
        sizes=sizes,
        topology=Topology(),
        device=torch.device("cpu"),
        directory=RunDirectory(tmp_path),
    )


def test_a_session_keeps_its_command_without_secrets(session, monkeypatch):
    """Quoted for a shell, in the order of the starts."""
    monkeypatch.setattr("sys.argv", ["distributed", "train", "--run-dir", "my runs", "stream.url=s3://me:pw@host/x"])
    for _ in range(2):
        begin_session(session, None)
    commands = [record["command"] for record in read_sessions(session.directory)]
    assert commands == ["train --run-dir 'my runs' stream.url=s3://host/x"] * 2


@pytest.mark.parametrize("damage", [b'[{"step": 0', b"[1, 2]", b'{"a": 1}', b"[" * 100_000], ids=range(4))
def test_a_damaged_history_is_kept_aside(session, caplog, damage):
    """The session is recorded, and what was in the file is beside it."""
    session.directory.history.write_bytes(damage)
    begin_session(session, None)
    assert f"{session.directory.history} is damaged" in caplog.text
    assert len(json.loads(session.directory.history.read_text())) == 1
    (aside,) = session.directory.root.glob("history.json.damaged-*")
    assert aside.read_bytes() == damage

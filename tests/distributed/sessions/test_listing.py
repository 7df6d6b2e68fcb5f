"""`python -m distributed checkpoints`: what a run has, and whether it is whole."""

import errno
from pathlib import Path

import pytest

from distributed.__main__ import COMMANDS
from distributed.checkpoints.store import CheckpointStore
from distributed.experiment import Experiment
from distributed.processes.topology import Topology
from pupujepa.config import to_yaml
from pupujepa.front_door import enter

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def run_dir(tmp_path):
    experiment = Experiment()
    text = to_yaml(experiment).replace("keep_best: ''", "keep_best: probe/key")
    assert "keep_best: probe/key" in text
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "probe/key": 0.9}\n{"step": 10, "probe/key": 0.5}\n')
    store = CheckpointStore(tmp_path / "checkpoints", Topology(), keep=9)
    for step in (5, 10):
        store.save(step, lambda directory: (directory / "w").write_bytes(b"w" * 2**20) and None, {"world_size": 2})
    return tmp_path


def listed(capsys, *words):
    code = enter("distributed", COMMANDS, manual="", argv=["checkpoints", *map(str, words)])
    said = capsys.readouterr()
    return code, [line.split() for line in said.out.splitlines()], said.err


def test_whole_ones_are_listed(run_dir, capsys):
    """A line each, oldest first: step, size, ranks; the pointer and the best are marked; exit code 0."""
    code, lines, _ = listed(capsys, "--run", run_dir)
    assert code == 0
    assert lines[1] == ["5", "1.0", "2", "-", "-", "whole", "best"]
    assert lines[2] == ["10", "1.0", "2", "-", "-", "whole", "LATEST"]
    code, lines, _ = listed(capsys, "--run", run_dir, "--step", 10)
    assert [line[0] for line in lines[1:]] == ["10"]


def test_a_damaged_one_is_named(run_dir, capsys):
    """What is wrong, and with which file; exit code 1, so that a script notices."""
    file = run_dir / "checkpoints" / "step-0000005" / "w"
    file.write_bytes(b"v" + file.read_bytes()[1:])
    (run_dir / "checkpoints" / "step-0000010" / "manifest.json").unlink()
    code, lines, _ = listed(capsys, "--run", run_dir)
    assert code == 1
    assert " ".join(lines[1]).endswith(f"damaged: {file} is damaged: its sha256 is not the one that was written")
    assert "no readable manifest.json" in " ".join(lines[2])


def test_one_that_cannot_be_read_is_not_called_damaged(run_dir, capsys, monkeypatch):
    """The line has the errno; the others are listed as ever; exit code 1."""
    file, open_file = run_dir / "checkpoints" / "step-0000005" / "w", Path.open

    def fail(self, *args, **kwargs):
        if self == file:
            raise OSError(errno.EIO, "Input/output error", str(self))
        return open_file(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", fail)
    code, lines, _ = listed(capsys, "--run", run_dir)
    assert code == 1
    assert f"not verified: {file} cannot be read now (Input/output error, errno 5)" in " ".join(lines[1])
    assert lines[2][5] == "whole"


def test_what_is_not_there_is_one_sentence(run_dir, tmp_path, capsys):
    """No run, and no such step: exit code 2."""
    code, _, said = listed(capsys, "--run", tmp_path / "nowhere")
    assert code == 2
    assert "is not a run: it has no config.yaml" in said
    code, _, said = listed(capsys, "--run", run_dir, "--step", 7)
    assert code == 2
    assert "has no checkpoint of step 7; there are: 5, 10" in said

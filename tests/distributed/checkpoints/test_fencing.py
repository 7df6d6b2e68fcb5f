"""Fencing: a start of a run takes the next generation, and a leftover of an older one writes nothing any more."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.store.store import LocalStore, StoreError, open_store
from distributed.checkpoints.fencing import Fence, FencedSink, generations, take_generation
from distributed.checkpoints.store import CheckpointStore
from distributed.processes.collectives import SupersededError
from distributed.processes.topology import Topology
from distributed.run.directory import RunDirectory
from distributed.run.log import MetricsLog
from pupujepa.locks import LOCK_NAME
from tests.distributed.launch import ROOT, TIMEOUT_S, environment, launch, losses, slowed, train_command


def test_generations_are_counted(tmp_path):
    """1, 2, 3, ...; each says who took it; the newest is current, the others are told who superseded them."""
    fences = [take_generation(tmp_path, facts={"ranks": 2}) for _ in range(3)]
    assert [fence.generation for fence in fences] == [1, 2, 3]
    fences[2].require_current()
    about = json.loads((tmp_path / "generations" / "0000003").read_text())
    assert (about["pid"], about["ranks"]) == (os.getpid(), 2)
    for fence in fences[:2]:
        with pytest.raises(SupersededError, match=rf"generation 3 was started on .*pid {os.getpid()}.*must not write"):
            fence.require_current()


def test_a_number_is_taken_once(tmp_path):
    """Two starts that see the same generations at the same moment: O_EXCL gives the number to one of them."""
    store = open_store(str(tmp_path))
    assert store.create("0000001", b"first")
    assert not store.create("0000001", b"second")
    assert store.read("0000001") == b"first"


def test_two_starts_at_once_take_two_numbers(tmp_path, monkeypatch):
    """A start that another one overtakes between its look and its taking looks again."""
    from distributed.checkpoints import fencing

    look, overtaken = fencing.generations, []

    def look_and_be_overtaken(store):
        seen = look(store)
        if not overtaken:
            overtaken.append(None)
            overtaken.append(take_generation(tmp_path, facts={}))
        return seen

    monkeypatch.setattr(fencing, "generations", look_and_be_overtaken)
    late = take_generation(tmp_path, facts={})
    monkeypatch.undo()
    assert (overtaken[1].generation, late.generation) == (1, 2)
    late.require_current()


def test_a_token_that_was_replaced_is_superseded(tmp_path):
    """In a store that ignores conditions the later of two writers of one number has it; the other finds out."""
    first = take_generation(tmp_path, facts={})
    second = Fence(first.store, first.generation, "another")
    (tmp_path / "generations" / "0000001").write_text(json.dumps({"token": "another"}))
    second.require_current()
    with pytest.raises(SupersededError, match="generation 1 was started, so this process"):
        first.require_current()


def test_a_check_costs_the_same_after_any_number_of_starts(tmp_path, monkeypatch):
    """A hundred generations are kept; a check lists nothing; a process whose own is gone is superseded."""
    monkeypatch.setattr("distributed.checkpoints.fencing.KEPT_GENERATIONS", 3)
    first, second, *_, last = (take_generation(tmp_path, facts={}) for _ in range(6))
    assert generations(last.store) == [4, 5, 6]
    for old in (first, second):
        with pytest.raises(SupersededError, match="generation 6 was started"):
            old.require_current()

    def refuse(self, prefix=""):
        raise AssertionError("a check listed the generations")

    monkeypatch.setattr(LocalStore, "list", refuse)
    last.require_current()


def test_a_store_that_is_away_supersedes_nobody(tmp_path, monkeypatch):
    """An outage while the generation is read is told as such: the run was not started again."""
    fence = take_generation(tmp_path, facts={})

    def fail(self, path=""):
        raise StoreError("cannot read: 3 tries failed")

    monkeypatch.setattr(LocalStore, "read", fail)
    with pytest.raises(StoreError, match="3 tries failed"):
        fence.require_current()


def test_a_run_directory_and_its_url_are_both_asked(tmp_path):
    """Checkpoints elsewhere: a newer start in either place ends this one; rows ask the run directory alone."""
    beside = take_generation(tmp_path / "run", facts={})
    fence = Fence(**vars(take_generation(tmp_path / "elsewhere", facts={})) | {"beside": beside})
    sink = FencedSink(fence)
    fence.require_current()
    take_generation(tmp_path / "elsewhere", facts={})
    sink.write({"step": 1})
    with pytest.raises(SupersededError, match="elsewhere"):
        fence.require_current()
    take_generation(tmp_path / "run", facts={})
    with pytest.raises(SupersededError, match="run/generations"):
        sink.write({"step": 2})


def test_on_s3_a_number_is_taken_once(bucket):
    """The server knows the condition: the second writer of a name is told no, and the next start counts on."""
    store = open_store(bucket)
    assert store.create("0000001", b"first")
    assert not store.create("0000001", b"second")
    assert store.read("0000001") == b"first"
    first, second = (take_generation(bucket, facts={}) for _ in range(2))
    assert (first.generation, second.generation) == (1, 2)
    second.require_current()
    with pytest.raises(SupersededError, match=r"generation 1 of the run at s3://.* is over"):
        first.require_current()


LEFTOVER = """
import sys, torch
from pathlib import Path
from distributed.checkpoints.store import CheckpointStore
from distributed.checkpoints.fencing import FencedSink, SupersededError, take_generation
from distributed.run.log import MetricsLog
from distributed.processes.topology import Topology, process_group

run = Path(sys.argv[1])
with process_group(Topology(), timeout_s=300, device=torch.device("cpu")):
    fence = take_generation(run, facts={})
    store = CheckpointStore(run / "checkpoints", Topology(), keep=3)
    store.write_as(fence)
    write = lambda directory: (directory / "weights").write_text("of the leftover") and None
    sinks = [FencedSink(fence), MetricsLog(run / "metrics.jsonl", resume_step=0)]
    for sink in sinks:
        sink.write({"step": 4})
    store.save(5, write, {})
    # it is writing the files of the next one when the other start comes
    store.begin(10, lambda directory: lambda: write(directory) or print("written", flush=True), {})
    sys.stdin.readline()
    for attempt in (lambda: store.finish(10), lambda: store.save(15, write, {}),
                    lambda: [sink.write({"step": 9}) for sink in sinks]):
        try:
            attempt()
        except SupersededError as error:
            print("stopped:", error, flush=True)
"""


@pytest.mark.usefixtures("alone")
def test_a_leftover_of_another_process_publishes_nothing(tmp_path):
    """A process in mid-checkpoint when the run is started again: no checkpoint and no row of it appears."""
    command = [sys.executable, "-c", LEFTOVER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(), cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == "written\n"
        store = CheckpointStore(tmp_path / "checkpoints", Topology(), keep=3)
        assert store.newest_whole().step == 5
        store.write_as(take_generation(tmp_path, facts={}))
        log = MetricsLog(tmp_path / "metrics.jsonl", resume_step=5)
        said, _ = process.communicate("go on\n", timeout=TIMEOUT_S)
        assert process.returncode == 0
    assert said.count("stopped: generation 1 of the run") == 3
    assert f"generation 2 was started on {os.uname().nodename} (pid {os.getpid()})" in said
    log.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [4]
    assert store.steps() == [5]
    store.save(10, lambda directory: (directory / "weights").write_text("of the new start") and None, {})
    assert (store.newest_whole().path / "weights").read_text() == "of the new start"
    assert not list(store.root.glob("*.tmp"))


def test_a_training_that_comes_back_writes_nothing(tmp_path, shards):
    """A frozen training whose lock was lost: another one continues the run; thawed, it ends with a named error."""
    run_dir = tmp_path / "run"
    command = train_command(run_dir, shards, "train.steps=24", "checkpoint.every=4", "stream.workers=0")
    words, environ = slowed(command, from_step=9)
    frozen = subprocess.Popen(words, env=environ, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        _wait_for_step(run_dir, 9, frozen)
        os.kill(frozen.pid, signal.SIGSTOP)
        # a file server forgets the locks of a node that does not answer
        (run_dir / LOCK_NAME).unlink()
        done = launch(command)
        assert done.returncode == 0, done.stderr
        before = _everything(run_dir)
        os.kill(frozen.pid, signal.SIGCONT)
        _, said = frozen.communicate(timeout=TIMEOUT_S)
    finally:
        frozen.kill()
        frozen.wait()
    assert frozen.returncode == 2, said
    assert "error: generation 1 of the run" in said
    assert "must not write; end" in said
    assert _everything(run_dir) == before
    assert len(losses(run_dir)) == 24
    assert generations(open_store(str(run_dir / "generations"))) == [1, 2]
    assert RunDirectory(run_dir).facts.exists()


def _wait_for_step(run_dir: Path, step: int, process: subprocess.Popen) -> None:
    deadline, metrics = time.monotonic() + TIMEOUT_S, run_dir / "metrics.jsonl"
    while not metrics.exists() or f'"step": {step},' not in metrics.read_text():
        assert process.poll() is None, "training ended before it could be frozen"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _everything(run_dir: Path) -> dict[str, bytes]:
    """What a run is: its log, its checkpoints, its weights and what is told about it."""
    files = [p for folder in ("checkpoints", "export") for p in (run_dir / folder).rglob("*") if p.is_file()]
    files += [run_dir / name for name in ("metrics.jsonl", "config.yaml", "history.json", "facts.json")]
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in files if ".tmp/" not in str(path)}

"""The train command as a user meets it: killed and run again, asked to stop, misspelt, finished, launched by others."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from distributed.__main__ import COMMANDS
from distributed.checkpoints.store import CheckpointStore
from distributed.processes.topology import Topology
from pupujepa.front_door import enter
from pupujepa.weights import weights
from tests.distributed.launch import (
    PRESET,
    ROOT,
    TIMEOUT_S,
    deterministic_rows,
    environment,
    launch,
    losses,
    slowed,
    train_command,
)
from tests.processes import wait_until_gone


@pytest.fixture(scope="module")
def straight(tmp_path_factory, shards):
    """A run that is never interrupted: one process, started by plain python."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    python, *words = train_command(run_dir, shards, "train.steps=60", "checkpoint.every=5")
    done = launch([python, "-X", "importtime", *words])
    assert done.returncode == 0, done.stderr
    (run_dir.parent / "stderr").write_text(done.stderr)
    return run_dir


def test_a_training_loads_what_it_uses(straight):
    """Neither the probes' libraries nor torch's compiler, nor what a C++ compiler is run with: seconds on each rank."""
    loaded = set(re.findall(r"^import time:.*\| +(\S+)$", (straight.parent / "stderr").read_text(), re.MULTILINE))
    assert {"deepspeed.runtime.engine", "distributed.trainer", "torch.optim"} <= loaded
    assert not loaded & {"sklearn", "pandas", "mir_eval", "torch._inductor.compile_fx", "setuptools", "ray", "wandb"}


@pytest.fixture(scope="module")
def straight_on_two(tmp_path_factory, shards):
    """The same on two ranks, started by DeepSpeed's own launcher, with wandb."""
    root = tmp_path_factory.mktemp("two")
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--module", "distributed"]
    words = ["train", "--preset", str(PRESET), "--run-dir", str(root / "run"), f"stream.url={shards}"]
    done = subprocess.run(
        [*launcher, *words, "train.steps=60", "checkpoint.every=5", "telemetry.wandb=auto"],
        check=False,
        # no key of the developer's, and DeepSpeed's launcher counts GPUs unless it is told
        env=environment() | {"DS_ACCELERATOR": "cpu", "HOME": str(root)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return root / "run"


@pytest.fixture
def front_door(monkeypatch, capsys):
    """Enters `python -m distributed` in this process; returns the exit code and what was written to stderr."""
    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)
    handlers, level = logging.root.handlers[:], logging.root.level

    def call(*words):
        code = enter("distributed", COMMANDS, manual="", argv=list(words))
        return code, capsys.readouterr().err

    yield call
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    metrics = run_dir / "metrics.jsonl"
    while not metrics.exists() or f'"step": {step},' not in metrics.read_text():
        assert process.poll() is None, "training ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_at_any_moment_and_run_again(tmp_path, shards, straight_on_two):
    """SIGKILL of the launcher, twice: ranks and workers end with it, and the same command continues to the same log."""
    run_dir = tmp_path / "run"
    command = train_command(run_dir, shards, "train.steps=60", "checkpoint.every=5", "stream.workers=1", ranks=2)
    # the checkpoint of step 10 was begun, so that of step 5 is there
    for step in (11, 31):
        words, environ = slowed(command, from_step=step)
        process = subprocess.Popen(words, env=environ, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
        wait_for_step(run_dir, step, process)
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 4, "two ranks, each with a worker"
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        wait_until_gone(process.pid for process in family)
    done = launch(command)
    assert done.returncode == 0, done.stderr
    assert "continuing" in done.stderr
    assert deterministic_rows(run_dir) == deterministic_rows(straight_on_two)
    facts = json.loads((run_dir / "facts.json").read_text())
    assert len(facts["resumed"]) == 2
    assert all(session["step"] >= 5 for session in facts["resumed"])
    assert not list(run_dir.rglob("*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP])
def test_asked_to_stop_it_saves_and_exits_with_85(tmp_path, shards, straight, number):
    """Signals to every process, as SLURM and a terminal send them: the run saves, exits with 85 and continues."""
    run_dir = tmp_path / "run"
    command = train_command(run_dir, shards, "train.steps=60", "checkpoint.every=1000", "stream.workers=1")
    words, environ = slowed(command, from_step=10)
    process = subprocess.Popen(
        words,
        env=environ,
        cwd=ROOT,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        # as on a terminal, even if these tests run where it is ignored
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # noqa: PLW1509 - no other thread
    )
    wait_for_step(run_dir, 10, process)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 85, said
    assert "Traceback" not in said
    assert "the same command continues from there (exit code 85)" in said
    (step,) = CheckpointStore(run_dir / "checkpoints", Topology(), keep=9).steps()
    assert 10 < step < 60
    if number == signal.SIGTERM:
        done = launch(command)
        assert done.returncode == 0, done.stderr
        assert f"continuing {run_dir} from step-{step:07d}" in done.stderr
        assert losses(run_dir) == losses(straight)


@pytest.mark.parametrize("gone", ["full", "unread"])
def test_a_lost_output_does_not_end_a_training(tmp_path, shards, gone):
    """The log goes to a full disk, or to a pipe that nobody reads any more: all steps are trained, exit code 0."""
    reader, writer = os.pipe()
    os.close(reader)
    command = train_command(tmp_path / "run", shards, "train.steps=3", "telemetry.log_every=1")
    with os.fdopen(writer, "w") as unread, Path("/dev/full").open("w") as full:
        output = full if gone == "full" else unread
        done = subprocess.run(command, check=False, env=environment(), cwd=ROOT, stdout=output, stderr=output)
    assert done.returncode == 0
    assert len(losses(tmp_path / "run")) == 3


def test_a_flipped_bit_falls_back_and_the_log_is_the_same(tmp_path, shards, straight):
    """With its newest checkpoint damaged a run names the file, goes back to the one before, and ends the same."""
    run_dir = tmp_path / "run"
    overrides = ("train.steps=60", "checkpoint.every=5")
    words, environ = slowed(train_command(run_dir, shards, *overrides), from_step=17)
    process = subprocess.Popen(words, env=environ, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    wait_for_step(run_dir, 17, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    newest = (
        run_dir / "checkpoints" / f"step-{CheckpointStore(run_dir / 'checkpoints', Topology(), keep=9).steps()[0]:07d}"
    )
    damaged = newest / "engine" / "mp_rank_00_model_states.pt"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    done = launch(train_command(run_dir, shards, *overrides))
    assert done.returncode == 0, done.stderr
    assert f"{damaged} is damaged" in done.stderr
    assert "falling back to the previous checkpoint" in done.stderr
    assert deterministic_rows(run_dir) == deterministic_rows(straight)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, shards):
    """A rate that explodes: one sentence with step, last good checkpoint and remedy; the samples are left in a file."""
    run_dir = tmp_path / "run"
    wild = ("schedule.peak_lr=1e30", "optimizer.clip_norm=0", "checkpoint.every=1", "diagnostics.every=0")
    wild += ("faults.skipped_in_row=0",)
    done = launch(train_command(run_dir, shards, *wild))
    assert done.returncode == 2
    (said,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    match = re.search(
        r"training diverged: the .* is (nan|inf) at step (\d+), the last of (\d+) in a row .* lower schedule.peak_lr",
        said,
    )
    assert match, said
    step, in_row = int(match[2]), int(match[3])
    snapshot = json.loads((run_dir / f"diverged-step-{step:07d}-rank-0.json").read_text())
    assert len(snapshot["micro_batches"][0]["uids"]) == 8
    assert f"the checkpoint of step {step - in_row + 1} is from before" in said


def test_a_checkpoint_can_be_exported_by_hand(tmp_path, straight, front_door):
    """`export` writes an older checkpoint, verified, in the format that the library reads."""
    code, said = front_door("export", str(straight), "--step", "55", "--out", str(tmp_path / "weights"))
    assert code == 0, said
    older, last = weights.load(tmp_path / "weights"), weights.load(straight / "export")
    assert older.config == last.config
    assert older.frontend == last.frontend
    assert not torch.equal(older.teacher.norm.weight, last.teacher.norm.weight)
    code, said = front_door("export", str(straight), "--step", "54")
    assert code == 2
    assert "there is no checkpoint" in said


def test_a_finished_run_has_nothing_to_do(straight, shards):
    """The same command after the end changes nothing and says so."""
    before = {p: p.stat().st_mtime_ns for p in straight.rglob("*") if p.is_file() and p.name != "writer.lock"}
    done = launch(train_command(straight, shards, "train.steps=60", "checkpoint.every=5"))
    assert done.returncode == 0
    assert "is finished: all 60 steps are trained" in done.stderr
    assert before == {p: p.stat().st_mtime_ns for p in straight.rglob("*") if p.is_file() and p.name != "writer.lock"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train.stepz=3"], "error: command line: unknown key train.stepz; did you mean train.steps?"),
        (["model=lage"], "error: there is no model 'lage'; choose one of base"),
        (["--preset", "dem"], "error: there is no preset 'dem'; choose one of a_jepa, control_flat"),
        (["stream.url=/nowhere/shards"], "/nowhere/shards"),
        (["stream.global_batch=7", "engine.micro_batch=2"], "error: engine.micro_batch=2 does not divide the 7 crops"),
        (["train.seed=5"], "holds another run: train.seed: 0 -> 5; continuing would mix the two"),
        (["--fresh"], "error: --fresh was asked for, but"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(front_door, straight, shards, words, sentence):
    """Exit code 2 and one line that says what is wrong, before anything is started."""
    command = train_command(straight, shards, "train.steps=60")
    code, said = front_door(*command[command.index("train") :], *words)
    assert code == 2
    assert len(said.splitlines()) == 1
    assert sentence in said


def test_two_experiments_started_at_once_into_one_directory(tmp_path, shards):
    """One trains, the other exits with 2 and the keys that differ; every file is of the one that trained."""
    run_dir, seeds = tmp_path / "run", ("3", "5")
    steps = ("train.steps=4", "checkpoint.every=2")
    commands = [train_command(run_dir, shards, *steps, f"train.seed={s}", f"schedule.peak_lr=1e-{s}") for s in seeds]
    pipes = {"stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(c, env=environment(), cwd=ROOT, **pipes) for c in commands]
    said = [process.communicate(timeout=TIMEOUT_S)[1] for process in started]
    codes = [process.returncode for process in started]
    assert sorted(codes) == [0, 2], said
    winner, refused = seeds[codes.index(0)], said[codes.index(2)]
    assert f"train.seed: {winner} -> " in refused
    assert "schedule.peak_lr: " in refused
    assert f"seed: {winner}\n" in (run_dir / "config.yaml").read_text()
    assert len(losses(run_dir)) == 4
    assert len(json.loads((run_dir / "history.json").read_text())) == 1


def test_a_run_that_lost_its_checkpoints_does_not_begin_again(front_door, tmp_path, shards, straight):
    """Deleted checkpoints are an error, not step 0 over the log of a run."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        (run_dir / name).write_text((straight / name).read_text())
    command = train_command(run_dir, shards, "train.steps=60", "checkpoint.every=5")
    code, said = front_door(*command[command.index("train") :])
    assert code == 2
    assert "was trained to step 60, but its checkpoints are gone" in said


def test_half_a_launcher_does_not_train_alone(front_door, tmp_path, shards, monkeypatch):
    """A RANK without a WORLD_SIZE is an error on the command line too."""
    monkeypatch.setenv("RANK", "0")
    command = train_command(tmp_path / "run", shards)
    code, said = front_door(*command[command.index("train") :])
    assert code == 2
    assert "would train alone" in said
    assert not (tmp_path / "run").exists()


def test_the_deepspeed_launcher_gives_the_same_run(straight, straight_on_two):
    """`deepspeed --module distributed train` on two ranks: the losses of one process; rank 0 alone speaks to wandb."""
    assert losses(straight_on_two) == pytest.approx(losses(straight), rel=1e-5)
    assert len(list(straight_on_two.glob("wandb/offline-run-*/*.wandb"))) == 1


def test_help_teaches(front_door, capsys):
    """--help names the launchers, the presets and the override syntax."""
    with pytest.raises(SystemExit, match="0"):
        front_door("train", "--help")
    text = capsys.readouterr().out
    for words in (
        "torchrun --nproc-per-node",
        "srun python -m distributed",
        "demo",
        "KEY=VALUE",
        "Exit codes: 85 after a stop request",
    ):
        assert words in text

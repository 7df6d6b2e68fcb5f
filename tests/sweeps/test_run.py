"""Sweeps as a user meets them, on real Ray: end to end, with failures, killed and run again."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from distributed.run.directory import lock_run
from pupujepa.errors import UserError
from sweeps.plan.plan import Launch, Plan, commands_for, read_plan, write_plan
from sweeps.report import write_report
from sweeps.run import add_arguments
from sweeps.tune.driver import LONGEST_RAY_DIR, private_directory, ray_environment
from sweeps.tune.search import PlanningSearch
from tests.processes import is_running
from tests.sweeps.trials.test_leash import wait_until

ROOT = Path(__file__).parents[2]
RATIO = {"key": "masks.ratio"}


@pytest.fixture
def sweep_command(write_sweep, shards, corpus, tmp_path):
    """The command line of a sweep into tmp_path/out."""

    def command(*words: str, **fields) -> list[str]:
        path = write_sweep(**fields)
        inputs = ["--shards", str(shards), "--corpus", str(corpus), "--out", str(tmp_path / "out")]
        return [sys.executable, "-m", "sweeps", "run", str(path), *inputs, "--cpus", "2", "--grace", "1", *words]

    return command


def launch(command, **kwargs) -> subprocess.CompletedProcess:
    """Runs a command to its end; what it wrote comes with the assertion that fails."""
    return subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=900, **kwargs)


def started(command, said: Path, **environ: str) -> subprocess.Popen:
    """Starts a command; what it says goes to a file, as nobody would empty a pipe while the test waits."""
    with said.open("w") as log:
        return subprocess.Popen(command, cwd=ROOT, stderr=log, env=os.environ | environ)


def trainer_and_rank(out: Path) -> list[int]:
    """Process ids of the one trial that goes on for long."""
    (pids,) = out.glob("trials/*/pids")
    return [int(pid) for pid in pids.read_text().split()]


def records(out: Path) -> dict[str, dict]:
    return {p.parent.name.rpartition("-")[0]: json.loads(p.read_text()) for p in out.glob("trials/*/trial.json")}


def processes_about(text: str) -> list[str]:
    """Command lines of living processes that name `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if text in line and int(path.parent.name) != os.getpid():
            found.append(line)
    return found


def ray_worker_of(pid: int) -> int:
    """The process that runs a trial in Ray: the parent of the leash that the trainer is on."""
    for _ in range(2):
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid


def phases_of(out: Path) -> dict[str, list[str]]:
    return {
        path.parent.name.rpartition("-")[0]: [line.split()[0] for line in path.read_text().splitlines()]
        for path in out.glob("trials/*/starts")
    }


def test_tiny_trials_of_two_ranks_end_to_end(sweep_command, tmp_path):
    """The real trainer and evaluator on real Ray, DeepSpeed over two ranks, a model that is looked at twice, a report.

    Ranks of a trial meet at a port of their own, and none outlives the sweep.
    """
    axes = {"readout": {"key": "evaluate.readout", "values": ["mean"]}}
    ranks = ("--ranks", "2", "--cpus-per-trial", "2")
    command = sweep_command(*ranks, budget={"samples": 32}, tasks=["collection"], probe_tracks=16, axes=axes)
    done = launch(command)
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "out"
    [directory] = (path.parent for path in out.glob("trials/*/metrics.jsonl"))
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [0, 1, 2, 3]
    assert (directory / "export" / "args.json").exists()
    assert json.loads((directory / "facts.json").read_text())["ranks"] == 2
    reported = launch([sys.executable, "-m", "sweeps", "report", str(out)])
    assert reported.returncode == 0, reported.stderr
    assert "evaluate.readout: frames \N{RIGHTWARDS ARROW} mean" in reported.stdout
    assert "There is one seed (0), so there is no interval over seeds" in reported.stdout
    rows = [json.loads(line) for line in (out / "sweep.jsonl").read_text().splitlines()]
    base, look = rows
    assert (look["train_s"], look["model"], look["crops"]) == (0, base["name"], 32)
    difference = look["results"]["collection"]["value"] - base["results"]["collection"]["value"]
    assert look["delta"]["collection"]["value"] == pytest.approx(difference)
    [result] = (json.loads(line) for line in (out / look["directory"] / "results.jsonl").read_text().splitlines())
    assert result["encoder"].endswith(":mean")
    assert (out / "sweep.html").read_text().count("<svg") >= 1
    wait_until(lambda: not processes_about(str(out)))


def test_failures_kill_and_continue(sweep_command, stand_in_commands, tmp_path):
    """A crash and a divergence are recorded while others go on; a trial whose Ray worker is killed is started again.

    After SIGKILL of the driver nothing lives; the same command goes on. In the end no finished trial was run twice, the
    crashed one was tried again, the interrupted one went on.
    """
    axes = {"ratio": RATIO | {"values": [0.5, 0.6, 0.7]}}
    command = sweep_command(axes=axes, commands=stand_in_commands)
    out = tmp_path / "out"
    sweep = started(command, tmp_path / "said")
    try:

        def settled() -> bool:
            assert sweep.poll() is None, (tmp_path / "said").read_text()
            statuses = sorted(record["status"] for record in records(out).values())
            return statuses == ["crashed", "diverged", "finished", "running"] and bool([*out.glob("trials/*/pids")])

        wait_until(settled, timeout_s=500)
        lost = trainer_and_rank(out)
        os.kill(ray_worker_of(lost[0]), signal.SIGKILL)
        wait_until(lambda: phases_of(out)["ratio=0.7-seed0"] == ["train", "train"], timeout_s=500)
        wait_until(lambda: trainer_and_rank(out) != lost)
        wait_until(lambda: not any(is_running(pid) for pid in lost))
    finally:
        sweep.kill()
        sweep.wait()
    wait_until(lambda: not processes_about(str(out)))
    wait_until(lambda: not any(is_running(pid) for pid in trainer_and_rank(out)))

    (tmp_path / "behave").touch()
    done = launch(command)
    assert done.returncode == 1, done.stderr  # one diverged, and that stands
    statuses = {name: record["status"] for name, record in records(out).items()}
    assert statuses == {
        "base-seed0": "finished", "ratio=0.5-seed0": "finished", "ratio=0.6-seed0": "diverged",
        "ratio=0.7-seed0": "finished",
    }  # fmt: skip
    assert phases_of(out) == {
        "base-seed0": ["train", "evaluate"], "ratio=0.5-seed0": ["train", "train", "evaluate"],
        "ratio=0.6-seed0": ["train"], "ratio=0.7-seed0": ["train", "train", "train", "evaluate"],
    }  # fmt: skip
    reported = launch([sys.executable, "-m", "sweeps", "report", str(out)])
    assert "**ratio=0.6-seed0 diverged**: the loss is None at step 2" in reported.stdout


def test_a_search_that_ends_what_is_behind(sweep_command, stand_in_commands, tmp_path):
    """Optuna suggests, probes at equal crops decide who goes on; started again, it knows what was found.

    One after the other, so that who is compared with whom is known: the base, which is never ended, then four draws
    from a worse and a better ratio.
    """
    axes = {"ratio": RATIO | {"values": [0.3, 0.9]}}
    fields = {"plan": "optuna", "draws": 4, "compare_on": "valid", "budget": {"samples": 40}}
    scheduler = {"kind": "asha", "every": 0.2, "reduction_factor": 2}
    command = sweep_command("--cpus", "1", axes=axes, commands=stand_in_commands, scheduler=scheduler, **fields)
    out = tmp_path / "out"
    done = launch(command)
    assert done.returncode == 0, done.stdout + done.stderr
    found = records(out)
    assert {name: record["status"] for name, record in found.items()} == {
        "base-seed0": "finished", "ratio=0.3-seed0": "pruned", "ratio=0.9-seed0": "finished",
    }  # fmt: skip
    assert found["ratio=0.3-seed0"]["reason"].startswith("behind others after 8 crops, at a quality of 0.300")
    phases = phases_of(out)
    assert phases["ratio=0.9-seed0"] == ["train", "evaluate"]
    assert phases["ratio=0.3-seed0"] == ["train"]
    wait_until(lambda: not processes_about(str(out)))
    assert "| ratio = 0.9 | 0.590" in write_report(out)
    # two of four draws said what had been said before; a search that is started again asks for as many
    again = PlanningSearch(out)
    assert again.left == 2
    assert again.suggest("a") in ({"trial": name, "out": str(out)} for name in found)


def test_sigterm_ends_everything(sweep_command, stand_in_commands, tmp_path):
    """A scheduler's SIGTERM: trials are ended, Ray is stopped, the exit code says that it was stopped."""
    out = tmp_path / "out"
    command = sweep_command(axes={"ratio": RATIO | {"values": [0.7]}}, commands=stand_in_commands)
    # a place of its own, as other sweeps of this machine have theirs in the usual one; short, for the sake of sockets
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as temporary:
        sweep = started(command, tmp_path / "said", TMPDIR=temporary)
        wait_until(lambda: [*out.glob("trials/*/pids")] or sweep.poll() is not None, timeout_s=500)
        assert [*Path(temporary).glob("sweep-*")], "Ray's directory is not where this test looks for it"
        sweep.send_signal(signal.SIGTERM)
        code = sweep.wait(timeout=300)
        assert code == 128 + signal.SIGTERM, (tmp_path / "said").read_text()
        wait_until(lambda: not processes_about(str(out)))
        wait_until(lambda: not any(is_running(pid) for pid in trainer_and_rank(out)))
        assert not [*Path(temporary).glob("sweep-*")]
    assert records(out)["ratio=0.7-seed0"]["status"] == "running"


def test_a_dry_run_starts_nothing(sweep_command, tmp_path):
    """It checks everything, lists the trials and writes nothing; a wrong key is one sentence and exit code 2."""
    axes = {"ratio": RATIO | {"values": [0.6, 0.8]}}
    done = launch(sweep_command("--dry-run", axes=axes))
    assert done.returncode == 0, done.stderr
    assert "ratio=0.6-seed0: 5 steps, 40 crops" in done.stdout
    assert "ratio=0.8-seed0: the same as base-seed0, runs once" in done.stdout
    assert not (tmp_path / "out").exists()
    wrong = launch(sweep_command("--dry-run", axes={"ratio": {"key": "masks.ration", "values": [0.6]}}))
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: axis 'ratio', value '0.6': ")
    assert "did you mean masks.ratio?" in wrong.stderr


def test_two_sweeps_at_once_do_not_share_a_directory(sweep_command, tmp_path, monkeypatch):
    """Another sweep that comes first writes its plan before this one has the lock, so this one is refused."""
    from sweeps import run as module

    out = tmp_path / "out"
    launch = Launch("small", "shards", "corpus", (), commands_for(1))

    def overtaken(run, *, check):
        write_plan(Plan("other", "", launch, (), {}), out)
        return lock_run(run, check=check)

    monkeypatch.setattr(module, "lock_run", overtaken)
    monkeypatch.setattr(module, "configure_logging", lambda rank: None)
    argv = sweep_command()
    with pytest.raises(UserError, match=r"out holds a sweep of other trials \(0 of its 0 are not in this one, 1 are"):
        module.run(arguments(argv[argv.index("run") + 1 :]))
    assert read_plan(out).name == "other"


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def test_a_private_ray_can_be_joined_by_nobody_else():
    """Each sweep draws a token of its own; settings of another Ray do not leak in."""
    first, second = (ray_environment({"RAY_ADDRESS": "somewhere"}, root=ROOT) for _ in range(2))
    assert "RAY_ADDRESS" not in first
    assert first["RAY_AUTH_MODE"] == "token"
    assert len(first["RAY_AUTH_TOKEN"]) == 64
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]


def test_the_private_directory_is_short_enough_for_sockets(tmp_path, monkeypatch):
    """With a long TMPDIR, Ray's socket paths would be cut by the kernel."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 80)))
    directory = private_directory()
    try:
        assert len(str(directory)) <= LONGEST_RAY_DIR
    finally:
        directory.rmdir()

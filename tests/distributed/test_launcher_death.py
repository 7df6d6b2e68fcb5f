"""Ranks do not outlive their launcher."""

import signal
import subprocess
import time

import psutil

from tests.data.shardsets import build_shard_set
from tests.distributed.launch import ROOT, TIMEOUT_S, environment, train_command
from tests.processes import wait_until_gone


def test_ranks_die_with_torchrun_and_the_command_continues(tmp_path):
    """SIGKILL to torchrun alone takes its ranks along, so the same command can be run again at once."""
    shards, run_dir = str(tmp_path / "shards"), tmp_path / "run"
    build_shard_set(shards, (16, 16), num_frames=lambda number: 64)
    # long enough that the ranks cannot have finished by themselves
    command = train_command(run_dir, shards, "train.steps=2000", "checkpoint.every=5", ranks=2)
    torchrun = subprocess.Popen(command, env=environment(), cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + TIMEOUT_S
    while not (run_dir / "checkpoints" / "LATEST").exists():
        assert torchrun.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = psutil.Process(torchrun.pid).children(recursive=True)
    assert len(family) >= 2
    torchrun.send_signal(signal.SIGKILL)
    torchrun.wait()
    wait_until_gone(process.pid for process in family)
    again = subprocess.Popen(command, env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert again.stderr is not None
    said = next(line for line in again.stderr if "continuing" in line or "error:" in line)
    again.kill()
    again.communicate()
    assert "continuing" in said

"""Runs a function of the engine's benchmark on fresh ranks and brings its result back."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# time for an interrupted process to write its results
GRACE_S = 15.0


class RanksFailedError(RuntimeError):
    """A launch ended without a result."""


class OutOfTimeError(RanksFailedError):
    """A launch that exceeded its time."""


def on_ranks(
    function: Callable[..., Any],
    settings: dict[str, Any],
    *,
    ranks: int,
    environ: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> Any:
    """Calls `function(settings, topology, device)` on fresh ranks and returns the result of rank 0.

    Args:
        ranks: processes of one thread each; a single one starts without a launcher.
        environ: additional environment variables.

    Raises:
        RanksFailedError: with the end of their output; OutOfTimeError if they took longer than `timeout_s`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.json"
        path.write_text(json.dumps({"function": f"{function.__module__}:{function.__name__}", "settings": settings}))
        command = [sys.executable, "-m"]
        if ranks > 1:
            command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
        code, said = run_within(
            [*command, "benchmarks.engine.rank", str(path)],
            timeout_s=timeout_s,
            environ={**(environ or {}), "OMP_NUM_THREADS": "1"},
        )
        result = path.with_suffix(".result")
        if code or not result.exists():
            raise RanksFailedError(f"{settings} on {ranks} ranks: {said[-5000:]}")
        return json.loads(result.read_text())


def run_within(
    command: Sequence[str], *, timeout_s: float | None, environ: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Runs a command in the checkout; returns exit code and output, and leaves no process behind.

    Args:
        timeout_s: after this time it is interrupted, as by Ctrl-C, and killed some seconds later.
        environ: additional environment variables.

    Raises:
        OutOfTimeError: with the end of its output.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | dict(environ or {}),
            stdout=output,
            stderr=subprocess.STDOUT,
            # a session of its own, so its children can be killed with it
            start_new_session=True,
        )
        try:
            in_time = _ends_within(process, timeout_s)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        said = output.read()
    if not in_time:
        raise OutOfTimeError(f"{said[-5000:]}\nended after {timeout_s:.0f} s, its time limit")
    return process.returncode, said


def _ends_within(process: subprocess.Popen, timeout_s: float | None) -> bool:
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        return False
    return True

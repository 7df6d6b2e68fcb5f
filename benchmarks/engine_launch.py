"""Runs a function of the engine's benchmark on fresh ranks and brings its result back."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class RanksFailedError(RuntimeError):
    """A launch ended without a result."""


def on_ranks(
    function: Callable[..., Any], settings: dict[str, Any], *, ranks: int, environ: Mapping[str, str] | None = None
) -> Any:
    """Calls `function(settings, topology, device)` on fresh processes, one thread each, and returns the first's result.

    Args:
        environ: variables of theirs beside those of this process.

    Raises:
        RanksFailedError: with the end of what they said.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.json"
        path.write_text(json.dumps({"function": f"{function.__module__}:{function.__name__}", "settings": settings}))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        done = subprocess.run(
            [*command, "-m", "benchmarks.engine_rank", str(path)],
            check=False,
            cwd=ROOT,
            env=os.environ | dict(environ or {}) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        result = path.with_suffix(".result")
        if done.returncode or not result.exists():
            raise RanksFailedError(f"{settings} on {ranks} ranks: {done.stdout[-1000:]}{done.stderr[-4000:]}")
        return json.loads(result.read_text())

"""A trainer and an evaluator in one small program, for sweeps whose subject is the sweep: real processes, no learning.

  python stand_in.py train RUN_DIR FLAG [overrides]      logs five steps; what else it does is decided by masks.ratio
  python stand_in.py evaluate RUN_DIR FLAG [overrides]   writes one result, larger for a larger ratio

0.5 crashes at step 2; 0.6 loses its loss at step 2; 0.7 starts a rank in a session of its own, ignores SIGTERM and goes
on for ten minutes; 0.91 and 0.92 wait until both run. Probes, where they are asked for, come after every step and grow
with the ratio. When the file FLAG exists, all of them behave. Every start leaves a line in RUN_DIR/starts: phase,
process, GPUs.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main(phase: str, run_dir: Path, flag: Path, overrides: list[str]) -> int:
    """Plays one phase and returns the exit code."""
    settings = dict(text.split("=", 1) for text in overrides)
    ratio = 0.8 if flag.exists() else float(settings.get("masks.ratio", "0.8"))
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "starts").open("a") as file:
        file.write(f"{phase} {os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES', '')}\n")
    if phase == "train":
        return train(run_dir, ratio, probes="probe.every_steps" in settings)
    value = 0.5 + float(settings.get("masks.ratio", "0.8")) / 10
    row = {"task": "collection", "encoder": run_dir.name, "protocol": "clean", "metric": "accuracy"}
    score = {"value": value, "interval": [value - 0.1, value + 0.1]}
    row |= score | {"test_items": 40, "selection": {"metric": "accuracy", "items": 20} | score}
    (run_dir / "results.jsonl").write_text(json.dumps(row) + "\n")
    return 0


def train(run_dir: Path, ratio: float, *, probes: bool) -> int:
    """Logs five steps, or fails on the way."""
    metrics = run_dir / "metrics.jsonl"
    metrics.unlink(missing_ok=True)
    if ratio == 0.7:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        (run_dir / "pids.new").write_text(f"{os.getpid()} {rank.pid}")
        (run_dir / "pids.new").rename(run_dir / "pids")
    while ratio in (0.91, 0.92) and len([*run_dir.parent.glob("ratio=0.9[12]-*/starts")]) < 2:
        time.sleep(0.05)
    for step in range(6000 if ratio == 0.7 else 5):
        loss = None if ratio == 0.6 and step == 2 else 1 / (step + 1)
        with metrics.open("a") as file:
            file.write(json.dumps({"step": step, "loss": loss}) + "\n")
            if probes:
                file.write(json.dumps({"step": step + 1, "probe/mean": ratio}) + "\n")
        if ratio == 0.5 and step == 2:
            sys.stderr.write("out of memory on purpose\n")
            return 7
        if ratio == 0.6 and step == 2:
            time.sleep(600)  # a run without a loss would go on for long: it must be ended
        time.sleep(0.1 if ratio == 0.7 else 0.02)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]))

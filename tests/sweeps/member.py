"""A trainer and an evaluator in one small program, for populations: what a run has learnt goes over to its copies.

  python member.py train RUN_DIR [--until STEP] [overrides]    gains ten times its rate in quality at each step
  python member.py evaluate RUN_DIR [overrides]                writes the quality that it ended with as a result

Like the real one it goes on from its newest checkpoint, or from that of branch.parent after branch.step, ends
at --until, probes every probe.every_steps and writes metrics.jsonl from where it begins. A rate above 0.1 loses
its loss after the first step. Its loss falls the more the worse it learns. Every start leaves a line in RUN_DIR/starts.
"""

import json
import sys
from pathlib import Path


def main(phase: str, run_dir: Path, words: list[str]) -> int:
    """Plays one phase and returns the exit code."""
    until = int(words[1]) if words[:1] == ["--until"] else sys.maxsize
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "starts").open("a") as file:
        file.write(f"{phase}\n")
    if phase == "train":
        return train(run_dir, settings, until=until)
    quality = json.loads(max(run_dir.glob("saved-*.json")).read_text())
    row = {"task": "collection", "encoder": run_dir.name, "protocol": "clean", "metric": "accuracy"}
    score = {"value": quality, "interval": [quality - 0.1, quality + 0.1]}
    row |= score | {"test_items": 40, "selection": {"metric": "accuracy", "items": 20} | score}
    (run_dir / "results.jsonl").write_text(json.dumps(row) + "\n")
    return 0


def train(run_dir: Path, settings: dict[str, str], *, until: int) -> int:
    """Trains to the end or to `until`."""
    rate, end = float(settings.get("schedule.peak_lr", "0.002")), int(settings["train.steps"])
    step, quality = begin(run_dir, settings)
    rows = [json.loads(line) for line in read(run_dir / "metrics.jsonl").splitlines()]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] < step))
    while True:
        with (run_dir / "metrics.jsonl").open("a") as file:
            if step % int(settings["probe.every_steps"]) == 0 or step == end:
                file.write(json.dumps({"step": step, "probe/mean": quality}) + "\n")
            if step < min(until, end):
                loss = None if rate > 0.1 and step else 1 / (1 + step) + rate
                file.write(json.dumps({"step": step, "loss": loss}) + "\n")
        if step >= min(until, end):
            return 0
        step, quality = step + 1, quality + 10 * rate
        (run_dir / f"saved-{step:03d}.json").write_text(json.dumps(quality))


def begin(run_dir: Path, settings: dict[str, str]) -> tuple[int, float]:
    """Finished steps and what they have brought."""
    own = max(run_dir.glob("saved-*.json"), default=None)
    step = int(settings.get("branch.step", "0"))
    if own is None and step:
        own = run_dir / f"saved-{step:03d}.json"
        own.write_text((Path(settings["branch.parent"].strip('"')) / own.name).read_text())
    return (int(own.stem.removeprefix("saved-")), json.loads(own.read_text())) if own else (0, 0.0)


def read(path: Path) -> str:
    """What a file holds, nothing when it is not there."""
    return path.read_text() if path.is_file() else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))

"""Prediction of the demo's duration on this machine, from a few seconds of its own kinds of work.

  python examples/calibration.py                times one process and prints its rates as JSON
  python examples/calibration.py runs/demo      makes a finished demo the reference: writes examples/reference_run.json

The demo runs one copy per rank at once, because ranks share caches, memory and clock frequency. A phase of the demo is
bound either by the model (training, probes, the sweep) or by plain Python and decoding (scores, shards, the page). So
two rates scale the seconds of a reference run. The demo only prints the prediction.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.alternate import machine  # noqa: E402 - a script's path lacks the root
from distributed.experiment import load_experiment  # noqa: E402
from pupujepa.errors import UserError  # noqa: E402
from pupujepa.model.model import PupuJEPA  # noqa: E402
from pupujepa.precision import PRECISIONS, choose_precision  # noqa: E402
from pupujepa.randomness import generator  # noqa: E402
from pupujepa.training.masks import draw_mask  # noqa: E402
from pupujepa.training.objective import TrainingStep  # noqa: E402

REFERENCE = Path(__file__).with_name("reference_run.json")
# files of a finished demo, by their names in the reference
KEPT = {"rates": "calibration.json", "seconds": "phases.json"}
MODEL_PHASES = ("train", "evaluate", "sweep")
MEASURED_S = 2.0  # of each kind of work


@dataclass(frozen=True)
class Rates:
    """Rates of all ranks together, in training crops and rounds of plain Python, and the precision."""

    crops_per_s: float
    loops_per_s: float
    precision: str


def predict_s(here: Rates, reference: Path = REFERENCE) -> dict[str, float]:
    """Predicts the seconds of each phase from the reference run and the rates of this machine.

    Raises:
        UserError: the reference is missing or unreadable.
    """
    try:
        known = json.loads(reference.read_text())
        there = Rates(**known["rates"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{reference} cannot be used ({error}); restore it with git checkout") from error
    slower = {True: there.crops_per_s / here.crops_per_s, False: there.loops_per_s / here.loops_per_s}
    return {phase: seconds * slower[phase in MODEL_PHASES] for phase, seconds in known["seconds"].items()}


def write_reference(run_dir: Path, reference: Path = REFERENCE) -> None:
    """Makes a finished demo the reference of later predictions; it must have had the machine to itself.

    Raises:
        UserError: the demo is not finished.
    """
    missing = [file for file in (*KEPT.values(), "summary.json") if not (run_dir / file).is_file()]
    if missing:
        raise UserError(f"{run_dir} lacks {', '.join(missing)}, so it is not a finished demo; run make demo to its end")
    kept = {name: json.loads((run_dir / file).read_text()) for name, file in KEPT.items()}
    reference.write_text(json.dumps(kept | {"machine": machine()}, indent=1) + "\n")


def calibrate(ranks: int, environment: Mapping[str, str], *, overrides: Sequence[str] = ()) -> Rates:
    """Times this machine with `ranks` processes at once; `overrides` are those of the training preset."""
    command = [sys.executable, str(Path(__file__).resolve()), *overrides]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(ranks)]
    answers = [process.communicate()[0] for process in running]
    for process in running:
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
    measured = [json.loads(answer) for answer in answers]
    rates = (sum(m[name] for m in measured) for name in ("crops_per_s", "loops_per_s"))
    return Rates(*rates, precision=measured[0]["precision"])


def measure(overrides: Sequence[str] = ()) -> Rates:
    """Times one process."""
    experiment = load_experiment(["demo"], overrides=overrides)
    chosen = choose_precision(experiment.engine.precision, torch.device("cpu"))
    config, crops = experiment.model, experiment.stream.global_batch // 2
    step = TrainingStep(PupuJEPA(config), experiment.objective, PRECISIONS[chosen.name])
    rng, grid = generator("calibration"), {"steps": config.grid_steps, "bands": config.grid_bands}
    masks = [draw_mask(rng, experiment.masks, **grid, progress=1.0) for _ in range(crops)]
    context_BK = torch.stack([torch.from_numpy(mask.context) for mask in masks])
    target_BM = torch.stack([torch.from_numpy(mask.target) for mask in masks])
    mel_BTF = torch.randn(crops, config.crop_frames, config.mel_bands)

    def train() -> None:
        step(mel_BTF, context_BK, target_BM)[0].backward()

    return Rates(crops * _per_second(train), _per_second(_plain_python), chosen.name)


def _plain_python() -> None:
    notes = [{"onset_s": i / 7, "pitch": i % 88, "name": f"note {i}"} for i in range(2000)]
    text = json.dumps(sorted(notes, key=lambda note: (note["pitch"], note["onset_s"])))
    assert len(json.loads(text)) == len(notes)


def _per_second(work: Callable[[], None]) -> float:
    work()  # the first call allocates and picks kernels
    started, rounds = time.perf_counter(), 0
    while time.perf_counter() < started + MEASURED_S:
        work()
        rounds += 1
    return rounds / (time.perf_counter() - started)


def main(argv: Sequence[str]) -> int:
    """Prints the rates of one process, or makes a finished demo the reference."""
    runs = [word for word in argv if "=" not in word]
    if runs:
        write_reference(Path(runs[0]))
    else:
        sys.stdout.write(json.dumps(asdict(measure(argv))) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")

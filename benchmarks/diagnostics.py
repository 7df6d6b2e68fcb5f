"""Cost of the diagnostics as a share of training: counted for all sizes, measured for some.

  python -m benchmarks diagnostics                        measured for the demo, on one CPU thread or on a GPU
  python -m benchmarks diagnostics --models demo tiny     a step of Tiny takes some seconds on a CPU

Counted: passes of the fixed crops through student, teacher and predictor, and the decompositions behind the effective
ranks, against the training of a rank's own crops between two of them; the ranks share the passes, but not the
decompositions. Measured: CPU seconds (on a GPU, seconds) of one round of diagnostics against those of a training step.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks import arguments_of
from benchmarks.alternate import machine
from distributed.engine.teacher import Teacher
from distributed.experiment import Experiment, load_experiment
from distributed.watch.config import DiagnosticsConfig
from distributed.watch.diagnose import CROPS_AT_ONCE, MAX_ROWS, diagnose
from distributed.watch.fixed_crops import FixedCrops
from pupujepa.cost.cost import inference_flops, training_cost
from pupujepa.model.model import PupuJEPA
from pupujepa.precision import autocast_dtype
from pupujepa.randomness import generator
from pupujepa.training.masks import draw_mask, num_context
from pupujepa.training.objective import TrainingStep

AIM = 0.02
PREDICTION = (
    "about 1.5 % for the demo, whose steps are small, and below 0.1 % for the paper's sizes on 8 ranks. Ranks share "
    "the passes in groups of 2 crops, so the share grows once there are more ranks than groups: below 1 % on 512."
)
COUNTED = ("demo", "tiny", "small", "base", "large", "huge", "giant")
RANKS = (1, 8, 64, 512)


@dataclass(frozen=True)
class Measured:
    """Seconds of a training step on all crops of the global batch, and of diagnostics.

    Attributes:
        diagnostics_s: one round with one crop of each clip.
        lidar_s: additional seconds with all crops of each clip.
    """

    step_s: float
    diagnostics_s: float
    lidar_s: float
    config: DiagnosticsConfig

    @property
    def share(self) -> float:
        """Share of the training time, at the default intervals, on one rank."""
        look_s = self.diagnostics_s + self.lidar_s / self.config.lidar_every
        return look_s / self.config.every / self.step_s


def main() -> None:
    """Prints both tables as Markdown."""
    args = parse(arguments_of("diagnostics"))
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else machine()
    print(f"{where}\n\nprediction: {PREDICTION}\n\nshare of the operations, by number of ranks\n")
    print("| model | every | " + " | ".join(f"{ranks} ranks" for ranks in RANKS) + " |")
    print("|---" * (2 + len(RANKS)) + "|")
    for name in COUNTED:
        experiment = experiment_of(name)
        shares = [counted_share(experiment, ranks=ranks) for ranks in RANKS]
        cells = [f"{share:.2%}" if share is not None else "-" for share in shares]
        print(f"| {name} | {experiment.diagnostics.every} | " + " | ".join(cells) + " |")
    print(f"\nmeasured, {'CPU ' if device.type == 'cpu' else ''}seconds, one rank, aim under {AIM:.0%}\n")
    print("| model | step | diagnostics | LiDAR | share |\n|---|---|---|---|---|")
    for name in args.models:
        found = measure(experiment_of(name), device=device, runs=args.runs)
        times = f"{found.step_s:.3f} | {found.diagnostics_s:.3f} | {found.lidar_s:.3f}"
        print(f"| {name} | {times} | {found.share:.2%} |")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Reads the benchmark's own arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks diagnostics")
    parser.add_argument("--models", nargs="+", default=["demo"], help="measured; all are counted (default: demo)")
    parser.add_argument("--runs", type=int, default=5, help="of each (default: %(default)s)")
    return parser.parse_args(words)


def experiment_of(model: str) -> Experiment:
    """Returns the recipe of a model size: the preset `demo` for demo, else `paper`."""
    return load_experiment(["demo"]) if model == "demo" else load_experiment(["paper"], overrides=[f"model={model}"])


def counted_share(experiment: Experiment, *, ranks: int) -> float | None:
    """Returns operations of diagnostics over those of training; None if crops do not divide."""
    own_crops, rest = divmod(experiment.stream.global_batch, ranks)
    if rest or not own_crops:
        return None
    model, config = experiment.model, experiment.diagnostics
    cost = training_cost(model, experiment.masks, experiment.objective)
    # the forward pass is a third of forward and backward; nothing flows back into the spectrogram
    forward = cost.patch_embed // 2 + cost.student // 3 + cost.predictor // 3 + cost.teacher
    encoding = inference_flops(model)
    passes = _busiest(config.clips, ranks) * (forward + encoding)
    passes += _busiest(config.clips * (config.crops_per_clip - 1), ranks) * encoding // config.lidar_every
    return (passes + rank_flops(experiment)) / (config.every * own_crops * cost.total)


def rank_flops(experiment: Experiment) -> int:
    """Returns operations of the singular values: student, teacher, and the teacher per band.

    A tall matrix is first reduced to a square one, 2 n D^2, whose values take about 8/3 D^3 (Golub and Van Loan).
    """
    model, clips = experiment.model, experiment.diagnostics.clips
    student = min(clips * num_context(experiment.masks, model.num_patches), MAX_ROWS)
    teacher, width = min(clips * model.num_patches, MAX_ROWS), model.width
    rows = (student, teacher, *[teacher // model.grid_bands] * model.grid_bands)
    return sum(2 * max(n, width) * min(n, width) ** 2 + 8 * min(n, width) ** 3 // 3 for n in rows)


def _busiest(crops: int, ranks: int) -> int:
    """Returns the crops of the rank that has most."""
    parts = -(-crops // CROPS_AT_ONCE)
    return min(crops, -(-parts // ranks) * CROPS_AT_ONCE)


def measure(experiment: Experiment, *, device: torch.device, runs: int) -> Measured:
    """Times a training step of a few crops and a round of diagnostics."""
    model = PupuJEPA(experiment.model).to(device)
    step = TrainingStep(model, experiment.objective, autocast_dtype(experiment.engine.precision, device))
    config, crops = experiment.diagnostics, min(8, experiment.stream.global_batch)
    fixed = made_up(experiment, config.clips, crops_per_clip=config.crops_per_clip).to(device)
    batch = made_up(experiment, crops).to(device)
    optimizer = torch.optim.AdamW(step.parameters(), lr=1e-4)

    def train() -> None:
        optimizer.zero_grad()
        loss, _ = step(batch.mel_BTF, batch.context_CK, batch.target_CM)
        loss.backward()
        optimizer.step()

    step_s = seconds(train, runs=runs, device=device) * experiment.stream.global_batch / crops
    teacher = Teacher(step)
    few_s, all_s = (
        seconds(
            lambda all_crops=all_crops: diagnose(step, model, crops=fixed, teacher=teacher, all_crops=all_crops),
            runs=runs,
            device=device,
        )
        for all_crops in (False, True)
    )
    return Measured(step_s, few_s, max(0.0, all_s - few_s), config)


def made_up(experiment: Experiment, clips: int, *, crops_per_clip: int = 1) -> FixedCrops:
    """Returns fixed crops of noise: the same operations as with music."""
    model, rng, crops = experiment.model, generator("diagnostics benchmark", clips), clips * crops_per_clip
    masks = [
        draw_mask(rng, experiment.masks, steps=model.grid_steps, bands=model.grid_bands, progress=1.0)
        for _ in range(clips)
    ]
    mel_BTF = torch.randn(crops, model.crop_frames, model.mel_bands, generator=torch.Generator().manual_seed(0))
    context_CK = torch.stack([torch.from_numpy(mask.context) for mask in masks])
    target_CM = torch.stack([torch.from_numpy(mask.target) for mask in masks])
    return FixedCrops(mel_BTF, context_CK, target_CM, torch.tensor([mask.strategy for mask in masks]), crops_per_clip)


def seconds(work: Callable[[], object], *, runs: int, device: torch.device) -> float:
    """Returns the median after an uncounted run: CPU time, or on a GPU wall time."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    taken = []
    for _ in range(runs + 1):
        started = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(clock() - started)
    return statistics.median(taken[1:])


if __name__ == "__main__":
    main()

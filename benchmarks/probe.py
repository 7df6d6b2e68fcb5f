"""The probe grid of a task: the bank on stored features against one probe after another.

  python -m benchmarks probe                                    about five minutes, synthetic chords
  python -m benchmarks probe --corpus corpora/scores            the same on a corpus of `python -m data scores`
  python -m benchmarks probe --runs 1 --tracks 24 --epochs 2    quicker, half a minute

Both sides train every probe of the grid (each layer, the mean, the weighted sum and the reduction of all layers, times
learning rates, times seeds) with the same initial weights, order of batches, stopping rule and encoder, choose on
validation and read the test split for the chosen one. The peer does it as MARBLE does: it stores no features,
runs the encoder on every batch of training and validation in every epoch, and trains one probe at a time. It gets its
audio in memory, while ours reads files. Both choices are printed.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from benchmarks import arguments_of
from benchmarks.alternate import HEADER, alternate, machine
from benchmarks.probe_alone import Place, Probe, Slices, outputs_of, train_alone
from distributed.marble.datasets.corpus import LabelledCorpus, read_labelled_corpus
from distributed.marble.datasets.slice_audio import load_slice
from distributed.marble.datasets.targets import Targets, TaskData, item_targets, prepare_targets, slice_targets
from distributed.marble.encoders.hidden_states import HowToEncode
from distributed.marble.encoders.pupujepa import FrozenPupuJEPA
from distributed.marble.features.features import compute_features, gather_features, plan_features
from distributed.marble.metrics.metrics import METRICS
from distributed.marble.probes.bank import Training
from distributed.marble.probes.probing import ProbeJob, probe
from distributed.marble.tasks.tasks import KEYS, ProbeFit, Task, select_tasks
from distributed.processes.topology import Topology
from distributed.watch.probes import probing_corpus
from pupujepa.json_lines import write_rows
from pupujepa.model.model import ModelConfig, PupuJEPA
from pupujepa.randomness import generator

AIM = 20.0
PREDICTION = (
    "slightly less than the number of probes times epochs: the peer runs the encoder for each of them, ours runs it "
    "once. The rest of ours is the bank and reading audio. 30 to 60 for this grid, more for a larger one."
)
RATE_HZ = 24_000
SECONDS = 2.56
SPLITS = ("train", "train", "train", "valid", "test")


@dataclass(frozen=True)
class Chosen:
    """The chosen probe of a side: its position in the grid, and its scores."""

    layer: int
    rate: int
    valid: float
    test: float


def main() -> None:
    """Prints the comparison as Markdown."""
    args = parse(arguments_of("probe"))
    torch.set_num_threads(1)
    print(f"{machine()}, one thread\n\nprediction: {PREDICTION}\n")
    with tempfile.TemporaryDirectory() as folder:
        grid = make_grid(args, Path(folder))
        ends: dict[str, Chosen] = {}

        def ours() -> None:
            ends["ours"] = bank_of_all(grid)

        def peer() -> None:
            ends["peer"] = one_by_one(grid)

        compared = alternate(ours, peer, runs=args.runs)
    fit = grid.data.task.fit
    probes = len(grid.rows) * len(fit.learning_rates) * len(fit.seeds)
    print(f"{HEADER}\n{compared.row(f'{probes} probes, at most {fit.max_epochs} epochs')}\n")
    print("\n".join(f"- {side}: {end}" for side, end in ends.items()))
    print(f"- aim: {AIM:g} times; smallest ratio of {args.runs} runs: {compared.ratios[0]:.1f}")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads what follows `probe` on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks probe")
    parser.add_argument("--corpus", type=Path, help="of `python -m data scores` (default: synthetic chords)")
    parser.add_argument("--tracks", type=int, default=72, help="for training at most (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="at most (default: %(default)s)")
    parser.add_argument("--depth", type=int, default=3, help="of the encoder (default: %(default)s)")
    parser.add_argument("--width", type=int, default=32, help="of the encoder (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--runs", type=int, default=2, help="counted, after one (default: %(default)s)")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Grid:
    """The task, its corpus and the encoder that both sides use.

    Attributes:
        audio: of every split, [N, S], and targets; for the peer alone.
    """

    data: TaskData
    corpus: LabelledCorpus
    encoder: FrozenPupuJEPA
    audio: dict[str, tuple[Tensor, Targets, Targets]]

    @property
    def rows(self) -> list[Place]:
        """Rows of the grid: each layer, then the readouts of all layers."""
        layers = range(len(self.encoder.layer_names))
        together = [r for r in self.data.task.fit.readouts if r != "layers"]
        return [Place("layers", i, 0.0, 0) for i in layers] + [Place(r, 0, 0.0, 0) for r in together]


def make_grid(args: argparse.Namespace, folder: Path) -> Grid:
    """Returns the grid on a small untrained encoder; time does not depend on training."""
    corpus = (
        read_labelled_corpus(args.corpus) if args.corpus else chords(folder / "chords", tracks=args.tracks * 5 // 3)
    )
    if args.corpus:
        corpus = probing_corpus(corpus, args.tracks)
    task = key_task(epochs=args.epochs, seeds=args.seeds)
    data = prepare_targets(task, corpus)
    config = ModelConfig(crop_frames=256, width=args.width, depth=args.depth, heads=2)
    encoder = FrozenPupuJEPA(PupuJEPA(config, seed=0), HowToEncode(precision="fp32"), name="untrained", digest="0")
    return Grid(data, corpus, encoder, {name: in_memory(data, corpus, name) for name in data.splits})


def key_task(*, epochs: int, seeds: int) -> Task:
    """Returns the key row with MARBLE's head and all readouts, on features as they are."""
    fit = ProbeFit(
        hidden=512,
        dropout=0.2,
        readouts=("layers", "mean", "weighted", "reduced"),
        learning_rates=(5e-4, 1e-3, 5e-3),
        seeds=tuple(range(seeds)),
        max_epochs=epochs,
        standardise=False,
    )
    [task] = select_tasks(["key"])
    return replace(task, fit=fit, clips=replace(task.clips, seconds=SECONDS))


def bank_of_all(grid: Grid) -> Chosen:
    """Runs our side, from files over features to the chosen probe's test score."""
    every = [s for split in grid.data.splits.values() for s in split.slices]
    plan = plan_features(grid.data.task.clips, every, with_frames=(), frame_layers=0)
    with tempfile.TemporaryDirectory() as cache:
        folder = compute_features(grid.encoder, grid.corpus, plan, cache=Path(cache), topology=Topology())
        job = ProbeJob(grid.data, "untrained", gather_features(folder, plan))
        outcome = probe(job, protocol="clean", device=torch.device("cpu"))
    metric, choice = METRICS[grid.data.task.metric], outcome.choice
    test = float(np.mean([metric.exact(s) for s in outcome.statistics[metric.name]]))
    return Chosen(choice.layer, choice.rate, choice.score, test)


def one_by_one(grid: Grid) -> Chosen:
    """Runs the peer: one probe at a time, with the encoder in its loop."""
    fit, outputs = grid.data.task.fit, len(grid.data.space.classes)
    training = Training(fit=fit, kind="multiclass", outputs=outputs, protocol="clean", name=grid.data.task.name)
    splits = {name: through_encoder(grid, name) for name in grid.audio}
    width = grid.encoder.embed(grid.audio["valid"][0][:1], frame_layers=()).pooled_BLD.shape[-1]
    trained: dict[tuple[int, int], list[Probe]] = {}
    scores = np.zeros((len(grid.rows), len(fit.learning_rates)))
    for row, kind in enumerate(grid.rows):
        for k, rate in enumerate(fit.learning_rates):
            places = [replace(kind, rate=rate, seed=seed) for seed in fit.seeds]
            probes = [Probe(training, p, layers=len(grid.encoder.layer_names), width=width) for p in places]
            for single in probes:
                train_alone(single, splits["train"], splits["valid"])
            trained[row, k] = probes
            scores[row, k] = score(grid, probes, splits, "valid")
    row, k = (int(i) for i in np.unravel_index(scores.argmax(), scores.shape))
    return Chosen(row, k, float(scores[row, k]), score(grid, trained[row, k], splits, "test"))


def score(grid: Grid, probes: Sequence[Probe], splits: dict[str, Slices], name: str) -> float:
    """Returns the metric on a split, mean over seeds."""
    metric = METRICS[grid.data.task.metric]
    items = grid.audio[name][2]
    outputs = [outputs_of(p, splits[name]).squeeze(1).numpy() for p in probes]
    return float(np.mean([metric.exact(metric.statistics(x, items)) for x in outputs]))


def through_encoder(grid: Grid, name: str) -> Slices:
    """Returns a split that computes features on every access."""
    audio_NS, of_slices, _ = grid.audio[name]

    def features(rows_B: Tensor) -> Tensor:
        return grid.encoder.embed(audio_NS[rows_B], frame_layers=()).pooled_BLD.unsqueeze(2)

    return Slices(features, torch.from_numpy(of_slices.values))


def in_memory(data: TaskData, corpus: LabelledCorpus, name: str) -> tuple[Tensor, Targets, Targets]:
    """Returns the audio of a split [N, S], the targets of its slices and of its items."""
    split, tracks = data.splits[name], {t.uid: t for t in corpus.tracks}
    windows = [load_slice(tracks[s.uid], s, data.task.clips, rate_hz=RATE_HZ) for s in split.slices]
    targets = slice_targets(data, split, protocol="clean", frames=None)
    return torch.from_numpy(np.stack(windows)), targets, item_targets(targets, split)


def chords(folder: Path, *, tracks: int) -> LabelledCorpus:
    """Writes triads in noise, their root and mode the key, and returns the corpus."""
    (folder / "audio").mkdir(parents=True)
    time_s = np.arange(int(SECONDS * RATE_HZ)) / RATE_HZ
    rows = []
    for number in range(tracks):
        rng = generator("probe benchmark", number)
        key = KEYS[int(rng.integers(24))]
        pitches = KEYS.index(key) % 12 + np.array([0, 4 if "major" in key else 3, 7])
        tones = np.sin(2 * np.pi * 261.626 * 2 ** (pitches[:, None] / 12) * time_s).sum(axis=0)
        path = f"audio/{number:04d}.wav"
        soundfile.write(folder / path, 0.1 * tones + 0.05 * rng.standard_normal(len(time_s)), RATE_HZ)
        split = SPLITS[number % len(SPLITS)]
        row = {"track": f"{number:04d}", "path": path, "split": split, "duration_s": SECONDS, "labels": {"key": key}}
        rows.append(row)
    write_rows(folder / "tracks.jsonl", rows)
    return read_labelled_corpus(folder)


if __name__ == "__main__":
    main()

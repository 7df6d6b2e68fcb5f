"""Probe frozen encoders on labelled tasks, with baselines, 95 % intervals and paired differences.

  python -m distributed evaluate --encoders runs/demo random_init log_mel chroma \\
      --data corpora/scores --out runs/demo
  torchrun --nproc-per-node 8 -m distributed evaluate --encoders runs/demo random_init --data D --out O
  srun python -m distributed evaluate --encoders runs/demo random_init --data D --out O

An encoder is a run directory, a folder with released weights, or one of the baselines random_init (the same network,
untrained), log_mel (spectrogram statistics) and chroma (for key). D holds tracks.jsonl and its audio, as
`python -m data scores D` makes them. Features are computed once, spread over the ranks, and kept under --cache; running
the command again continues where it stopped.

Writes O/results.jsonl (one row per task, encoder and protocol), O/results.md and O/results.html.
"""

import argparse
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distributed.marble.corpus import Corpus, read_corpus
from distributed.marble.encoders import BASELINES, FrozenEncoder, resolve_encoders, supports
from distributed.marble.features import Plan, compute_features, gather_features, make_plan
from distributed.marble.probing import Outcome, Subject, probe
from distributed.marble.pupujepa_encoder import HowToEncode
from distributed.marble.readout import spread_layers
from distributed.marble.results import Provenance, Row, Sampling, make_rows, markdown_table, write_results
from distributed.marble.targets import TaskData, prepare
from distributed.marble.tasks import Clips, Protocol, Task, select_tasks
from distributed.telemetry import configure_logging
from distributed.topology import Topology, choose_device, discover, loopback_interface, process_group
from pupujepa.errors import UserError
from pupujepa.progress import Progress

log = logging.getLogger(__name__)

TIMEOUT_S = 4 * 3600.0


@dataclass(frozen=True)
class Evaluation:
    """An evaluation, fully specified.

    Attributes:
        cache: folder for features, shared by all ranks.
        which: teacher or student.
    """

    encoders: tuple[str, ...]
    tasks: tuple[Task, ...]
    data: Path
    out: Path
    cache: Path
    protocol: Protocol = "clean"
    which: str = "teacher"
    precision: str = "bf16"
    sampling: Sampling = field(default_factory=Sampling)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "--encoders",
        nargs="+",
        required=True,
        metavar="ENCODER",
        help=f"run directories, folders with released weights, or baselines ({', '.join(BASELINES)})",
    )
    parser.add_argument("--tasks", nargs="+", default=["all"], metavar="TASK", help="tasks by name (default: all)")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="corpus with tracks.jsonl and its audio"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results.jsonl and the tables go")
    parser.add_argument(
        "--protocol",
        choices=("clean", "marble"),
        default="clean",
        help="clean: best epoch on validation (default); marble: last epoch and monitors as MARBLE v2 has them",
    )
    parser.add_argument("--which", choices=("teacher", "student"), default="teacher", help="blocks of a run to probe")
    parser.add_argument(
        "--precision",
        choices=("bf16", "fp32"),
        default="bf16",
        help="of the frozen encoder: bf16 autocast (default, as MARBLE) or fp32, for processors without bf16",
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="shared folder for features (default: OUT/features)")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Runs the command in this rank; the first rank writes and prints the table."""
    topology = discover(os.environ)
    evaluation = Evaluation(
        encoders=tuple(args.encoders),
        tasks=select_tasks(args.tasks),
        data=args.data,
        out=args.out,
        cache=args.cache or args.out / "features",
        protocol=args.protocol,
        which=args.which,
        precision=args.precision,
        sampling=Sampling(args.resamples, args.seed),
    )
    if args.resamples < 1:
        raise UserError(f"--resamples {args.resamples} leaves no interval; use 1000")
    configure_logging(rank=topology.rank)
    if topology.world_size > 1:
        # gloo reads the environment, whoever launched us
        os.environ.update(loopback_interface(topology) | dict(os.environ) | topology.environment())
    # plain numbers and small arrays are exchanged, so gloo serves on GPUs too
    with process_group(topology, timeout_s=TIMEOUT_S, device=torch.device("cpu")):
        rows = evaluate(evaluation, topology, device=choose_device(topology, cuda_devices=torch.cuda.device_count()))
    if topology.is_first:
        print(markdown_table(rows))  # noqa: T201 - the table is the product
    return 0


def evaluate(evaluation: Evaluation, topology: Topology, *, device: torch.device) -> list[Row]:
    """Runs an evaluation inside a process group; the first rank writes the results and returns them, others none."""
    manifests = dict.fromkeys(task.manifest for task in evaluation.tasks)
    corpora = {name: _agreed(read_corpus(evaluation.data, name), topology) for name in manifests}
    prepared = [prepare(task, corpora[task.manifest]) for task in evaluation.tasks]
    _report_left_out(prepared)
    encoders = resolve_encoders(evaluation.encoders, HowToEncode(evaluation.which, evaluation.precision, device))
    jobs, outcomes = measure(
        encoders, corpora, prepared=prepared, evaluation=evaluation, topology=topology, device=device
    )
    if not topology.is_first:
        return []
    rows = _tabulate(evaluation, jobs, outcomes)
    return write_results(evaluation.out, rows)


def measure(
    encoders: Sequence[FrozenEncoder],
    corpora: Mapping[str, Corpus],
    *,
    prepared: Sequence[TaskData],
    evaluation: Evaluation,
    topology: Topology,
    device: torch.device,
) -> tuple[list["Job"], dict[int, Outcome]]:
    """Probes encoders on prepared tasks; all ranks call it together and share the work.

    Args:
        corpora: by the name of their track list.
        evaluation: protocol and feature cache.

    Returns:
        The jobs, and the outcome of each by its number, on every rank.

    Raises:
        UserError: no encoder supports any of the tasks.
    """
    jobs: list[Job] = []
    for encoder in encoders:
        for name, corpus in corpora.items():
            tasks = [d for d in prepared if d.task.manifest == name and supports(encoder, d.task)]
            jobs += _featurise(encoder, corpus, tasks, evaluation, topology)
    if not jobs:
        raise UserError("none of these encoders supports any of these tasks, so there is nothing to measure")
    return jobs, _probe_all(jobs, evaluation, topology, device=device)


@dataclass(frozen=True)
class Job:
    """One task on one encoder, with its features in place."""

    data: TaskData
    subject: Subject
    provenance: Provenance
    cost: float


def deal(jobs: Sequence[Job], world_size: int) -> list[list[int]]:
    """Returns the jobs of every rank: the longest first, each to the rank with least to do."""
    load = [0.0] * world_size
    hands: list[list[int]] = [[] for _ in range(world_size)]
    for number in sorted(range(len(jobs)), key=lambda n: (-jobs[n].cost, n)):
        rank = load.index(min(load))
        hands[rank].append(number)
        load[rank] += jobs[number].cost
    return hands


def _featurise(
    encoder: FrozenEncoder, corpus: Corpus, tasks: list[TaskData], evaluation: Evaluation, topology: Topology
) -> list[Job]:
    """Computes the features of one encoder, one pass for all tasks that cut tracks alike."""
    jobs = []
    for clips in dict.fromkeys(d.task.clips for d in tasks):
        sharing = [d for d in tasks if d.task.clips == clips]
        plan = _plan(clips, sharing)
        mine = sum(len(p) for n, p in enumerate(plan.parts) if n % topology.world_size == topology.rank)
        with (
            Progress(mine, title=f"features of {encoder.name}", unit="slices", shown=topology.is_first) as progress,
            _all_or_none(topology, f"features of {encoder.name}"),
        ):
            folder = compute_features(
                encoder, corpus, plan, cache=evaluation.cache, topology=topology, on_slices=progress.advance
            )
        features = gather_features(folder, plan)
        subject = Subject(encoder.name, features, encoder.frame_rate_hz)
        digests = {"checkpoint": encoder.digest, "corpus": corpus.digest, "features": features.key}
        jobs += [Job(d, subject, _provenance(encoder, d.task, digests), _cost(encoder, d)) for d in sharing]
    return jobs


def _plan(clips: Clips, tasks: Sequence[TaskData]) -> Plan:
    every = [s for d in tasks for split in d.splits.values() for s in split.slices]
    framed = [d for d in tasks if d.task.frames is not None]
    with_frames = [s for d in framed for split in d.splits.values() for s in split.slices]
    layers = max((d.task.frames.layers for d in framed if d.task.frames), default=0)
    return make_plan(clips, every, with_frames=with_frames, frame_layers=layers)


def _provenance(encoder: FrozenEncoder, task: Task, digests: dict[str, str]) -> Provenance:
    count = len(encoder.layer_names)
    layers = tuple(range(count)) if task.frames is None else spread_layers(count, task.frames.layers)
    return Provenance(tuple(encoder.layer_names[i] for i in layers), layers, digests)


def _cost(encoder: FrozenEncoder, data: TaskData) -> float:
    """A rough measure of the work of a probe bank, to spread the banks over ranks."""
    task = data.task
    frames = 1.0 if task.frames is None else task.clips.seconds * (encoder.frame_rate_hz or 1.0)
    layers = len(encoder.layer_names)
    probed = layers if task.frames is None else min(layers, task.frames.layers)
    heads = len(task.fit.learning_rates) * len(task.fit.seeds)
    return len(data.splits["train"].slices) * frames * probed * heads * max(1, len(data.space.classes))


def _probe_all(
    jobs: Sequence[Job], evaluation: Evaluation, topology: Topology, *, device: torch.device
) -> dict[int, Outcome]:
    """Trains this rank's banks and returns the outcomes of all ranks by job number."""
    mine = deal(jobs, topology.world_size)[topology.rank]
    outcomes: dict[int, Outcome] = {}
    with (
        Progress(len(mine), title="probes", unit="banks", shown=topology.is_first) as progress,
        _all_or_none(topology, "probes"),
    ):
        for number in mine:
            job = jobs[number]
            what = f"{job.data.task.name} on {job.subject.name}"
            outcomes[number] = probe(
                job.data,
                job.subject,
                protocol=evaluation.protocol,
                device=device,
                on_epoch=lambda epoch, what=what: progress.say(f"{what}, epoch {epoch + 1}"),  # type: ignore[misc]
            )
            progress.advance()
    gathered = _gather(outcomes, topology)
    return {number: outcome for part in gathered for number, outcome in part.items()}


def _tabulate(evaluation: Evaluation, jobs: Sequence[Job], outcomes: dict[int, Outcome]) -> list[Row]:
    rows: list[Row] = []
    for task in evaluation.tasks:
        numbers = [n for n, job in enumerate(jobs) if job.data.task.name == task.name]
        if numbers:
            rows += make_rows(
                task,
                [outcomes[n] for n in numbers],
                {jobs[n].subject.name: jobs[n].provenance for n in numbers},
                protocol=evaluation.protocol,
                baselines=BASELINES,
                sampling=evaluation.sampling,
            )
    return rows


def _report_left_out(prepared: Sequence[TaskData]) -> None:
    for data in prepared:
        sizes = ", ".join(f"{len(s.units)} {name}" for name, s in data.splits.items())
        left_out = sum(s.left_out for s in data.splits.values())
        too_short = sum(s.too_short for s in data.splits.values())
        log.info(
            "%s: %s items (left out: %d without a usable label, %d too short)",
            data.task.name,
            sizes,
            left_out,
            too_short,
        )


def _agreed(corpus: Corpus, topology: Topology) -> Corpus:
    """Raises when the ranks see different corpora; their features would not belong together."""
    digests = _gather(corpus.digest, topology)
    if len(set(digests)) > 1:
        raise UserError(
            f"the ranks read different corpora (digests {', '.join(sorted({d[:8] for d in digests}))}); "
            "--data must be one shared folder, or equal copies"
        )
    return corpus


@contextmanager
def _all_or_none(topology: Topology, step: str) -> Iterator[None]:
    """Ends a step on all ranks together: where one fails, the others stop too instead of waiting for it."""
    failed = True
    try:
        yield
        failed = False
    finally:
        failures = [rank for rank, f in enumerate(_gather(failed, topology)) if f]
    if failures:
        raise UserError(f"{step}: rank {failures[0]} failed, so this rank stops too; its own message says why")


def _gather(value: Any, topology: Topology) -> list[Any]:
    values: list[Any] = [None] * topology.world_size
    if topology.world_size == 1:
        return [value]
    dist.all_gather_object(values, value)
    return values

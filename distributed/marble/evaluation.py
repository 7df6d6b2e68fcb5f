"""An evaluation of frozen encoders on all ranks: features, probes, rows of results.

A job is one task on one encoder. Tasks that cut the same audio into windows of one length share a feature pass, even
with separate track lists: the four tasks on MTG-Jamendo read every window once.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from data.store.files import Location
from distributed.marble.datasets.audio_digests import with_audio_digests
from distributed.marble.datasets.corpus import LabelledCorpus, agreed, read_labelled_corpus, union
from distributed.marble.datasets.manifests import read_marble
from distributed.marble.datasets.targets import TaskData, prepare_targets
from distributed.marble.encoders.hidden_states import HowToEncode, spread_layers
from distributed.marble.encoders.resolve import FrozenEncoder, resolve_encoders, supports
from distributed.marble.features.features import (
    FeaturePlan,
    FeatureSet,
    compute_features,
    gather_features,
    plan_features,
)
from distributed.marble.probes.probing import ProbeJob, ProbeOutcome, probe
from distributed.marble.quick import check_job, whole_clips, write_quick
from distributed.marble.results.results import Resamples, Row, Sampling, make_rows, write_results
from distributed.marble.tasks.tasks import READOUT_TITLES, Protocol, Task
from distributed.processes.collectives import agreed_digest, all_or_none, gather
from distributed.processes.topology import Topology
from pupujepa.errors import UserError
from pupujepa.progress import Progress

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Evaluation:
    """Settings of an evaluation."""

    encoders: tuple[str, ...]
    tasks: tuple[Task, ...]
    data: Path
    out: Path
    cache: Location | Path  # path or url of the folder for features, shared by all ranks
    protocol: Protocol = "clean"
    which: str = "teacher"  # teacher or student
    precision: str = "fp32"  # of the frozen encoders, "bf16" or "fp32"
    sampling: Sampling = field(default_factory=Sampling)
    quick: bool = False  # train nothing; see quick.py


def evaluate(evaluation: Evaluation, topology: Topology, *, device: torch.device) -> list[Row]:
    """Runs an evaluation in a process group; the first rank writes and returns rows, the others []."""
    protocol, sampling = evaluation.protocol, evaluation.sampling
    tasks = [task.under(protocol) for task in evaluation.tasks]
    corpora: dict[str, LabelledCorpus] = {}
    for task in tasks:
        if task.list_name not in corpora:
            corpus = read_marble(evaluation.data, task) if task.source else read_labelled_corpus(evaluation.data)
            corpus = agreed(corpus, topology)  # before the slow digests of audio
            corpora[task.list_name] = with_audio_digests(corpus, cache=evaluation.cache, topology=topology)
    prepared = [prepare_targets(task, corpora[task.list_name]) for task in tasks]
    _report_left_out(prepared)
    encoders = resolve_encoders(evaluation.encoders, HowToEncode(evaluation.which, evaluation.precision, device))
    if evaluation.quick:
        jobs = jobs_of(encoders, corpora, whole_clips(prepared), cache=evaluation.cache, topology=topology)
        checked = share_jobs(jobs, lambda job, _: check_job(job, protocol, sampling), topology, title="checks")
        rows = [row for of_job in checked for row in of_job]
        return write_quick(evaluation.out, rows) if topology.is_first else []
    jobs, outcomes = measure_encoders(
        encoders, corpora, prepared=prepared, evaluation=evaluation, topology=topology, device=device
    )
    if not topology.is_first:
        return []
    rows, resamples = [], Resamples()
    for task in tasks:
        own = [(job, outcome) for job, outcome in zip(jobs, outcomes) if job.data.task.name == task.name]
        if own:
            made, drawn = make_rows(*zip(*own), protocol=protocol, sampling=sampling)
            rows += made
            resamples |= drawn
    return write_results(evaluation.out, rows, resamples)


def measure_encoders(
    encoders: Sequence[FrozenEncoder],
    corpora: Mapping[str, LabelledCorpus],
    *,
    prepared: Sequence[TaskData],
    evaluation: Evaluation,
    topology: Topology,
    device: torch.device,
) -> tuple[list[ProbeJob], list[ProbeOutcome]]:
    """Probes encoders on prepared tasks; all ranks call it together and share the work.

    It returns all jobs and the outcome of each, on every rank. `corpora` are by the name of their track list.
    """

    def work(job: ProbeJob, say: Callable[[str], None]) -> ProbeOutcome:
        name = f"{job.data.task.name} on {job.encoder}"
        return probe(
            job,
            protocol=evaluation.protocol,
            device=device,
            on_epoch=lambda epoch: say(f"{name}, epoch {epoch + 1}"),
        )

    jobs = jobs_of(encoders, corpora, prepared, cache=evaluation.cache, topology=topology)
    return jobs, share_jobs(jobs, work, topology, title="probes")


def jobs_of(
    encoders: Sequence[FrozenEncoder],
    corpora: Mapping[str, LabelledCorpus],
    prepared: Sequence[TaskData],
    *,
    cache: Location | Path,
    topology: Topology,
) -> list[ProbeJob]:
    """Computes the features of all encoders and returns their jobs; all ranks call it together.

    Raises:
        UserError: no encoder supports any of the tasks.
    """
    jobs = []
    for encoder in encoders:
        digest = agreed_digest(lambda encoder=encoder: encoder.digest, topology, f"the weights of {encoder.name}")  # type: ignore[misc]
        for sharing in _sharing([d for d in prepared if supports(encoder, d.task)]):  # one feature pass each
            corpus = union([corpora[d.task.list_name] for d in sharing])
            features = _featurise(encoder, corpus, _plan(sharing), digest=digest, cache=cache, topology=topology)
            for data in sharing:
                digests = {"corpus": corpora[data.task.list_name].digest, "features": features.store.key}
                jobs.append(_job(encoder, data, features, {"checkpoint": digest, **digests}))
    if not jobs:
        raise UserError("none of these encoders supports any of these tasks, so nothing can be measured; choose others")
    return jobs


def share_jobs(
    jobs: Sequence[ProbeJob], work: Callable[[ProbeJob, Callable[[str], None]], T], topology: Topology, *, title: str
) -> list[T]:
    """Runs `work(job, say)` for every job, shared by all ranks; returns all results, on every rank."""
    mine = deal_jobs(jobs, topology.world_size)[topology.rank]  # every rank computes the same assignment
    done: dict[int, T] = {}
    with (
        Progress(len(mine), title=title, unit="tasks", shown=topology.is_first) as progress,
        all_or_none(topology, title),
    ):
        for number in mine:
            done[number] = work(jobs[number], progress.say)  # what it says is shown in the progress line
            progress.advance()
    results = {number: result for part in gather(done, topology) for number, result in part.items()}
    return [results[number] for number in range(len(jobs))]


def deal_jobs(jobs: Sequence[ProbeJob], world_size: int) -> list[list[int]]:
    """Returns the job numbers of every rank: the longest job first, each to the rank with the least work."""
    load = [0.0] * world_size
    hands: list[list[int]] = [[] for _ in range(world_size)]
    # equal costs are ordered by number: all ranks must compute the same assignment
    for number in sorted(range(len(jobs)), key=lambda n: (-jobs[n].cost, n)):
        rank = load.index(min(load))
        hands[rank].append(number)
        load[rank] += jobs[number].cost
    return hands


def _sharing(tasks: Sequence[TaskData]) -> list[list[TaskData]]:
    """Returns groups of tasks that can share a feature pass: the same audio, windows of one length."""
    groups: dict[tuple[str, float], list[TaskData]] = {}
    for data in tasks:
        task = data.task
        audio = task.source.folder if task.source else task.list_name
        groups.setdefault((audio, task.clips.seconds), []).append(data)
    return list(groups.values())


def _plan(tasks: Sequence[TaskData]) -> FeaturePlan:
    every = [s for d in tasks for split in d.splits.values() for s in split.every_slice]
    with_frames = [s for d in tasks if d.task.by_frame for split in d.splits.values() for s in split.every_slice]
    wanted = [d.task.frames.layers for d in tasks if d.task.frames]
    # None means all layers, the most that a task can ask for
    layers = None if None in wanted else max((w for w in wanted if w is not None), default=0)
    return plan_features(tasks[0].task.clips, every, with_frames=with_frames, frame_layers=layers)


def _featurise(
    encoder: FrozenEncoder,
    corpus: LabelledCorpus,
    plan: FeaturePlan,
    *,
    digest: str,
    cache: Location | Path,
    topology: Topology,
) -> FeatureSet:
    title, ranks = f"features of {encoder.name}", topology.world_size
    # rank r has parts r, r + world_size, ...: see compute_features
    mine = sum(len(plan.part(n)) for n in range(topology.rank, plan.num_parts, ranks))
    with (
        Progress(mine, title=title, unit="slices", shown=topology.is_first) as progress,
        all_or_none(topology, title),
    ):

        def count(slices: int, computed: bool) -> None:
            if not computed:
                return progress.skip(slices)
            # of all ranks, assumed to be as fast as this one
            rate = ranks * (progress.done_now + slices) / progress.elapsed_s
            note = f"{rate:.3g} slices/s, {rate * plan.clips.seconds:.3g} times real time"
            return progress.advance(slices, note=note)

        store = compute_features(encoder, corpus, plan, cache=cache, topology=topology, digest=digest, on_slices=count)
    return gather_features(store, plan)


def _job(encoder: FrozenEncoder, data: TaskData, features: FeatureSet, digests: Mapping[str, str]) -> ProbeJob:
    task = data.task
    layers = spread_layers(len(encoder.layer_names), None if task.frames is None else task.frames.layers)
    together = [r for r in task.fit.readouts_of(len(layers)) if r != "layers"]
    # a rough estimate of the work of the probe bank, to balance the ranks
    frames = 1.0 if task.frames is None else task.clips.seconds * (encoder.frame_rate_hz or 1.0)
    heads = (len(layers) + len(together)) * len(task.fit.learning_rates) * len(task.fit.seeds)
    return ProbeJob(
        data=data,
        encoder=encoder.name,
        features=features,
        frame_rate_hz=encoder.frame_rate_hz,
        layers=(*layers, *together),
        layer_names=(*(encoder.layer_names[i] for i in layers), *(READOUT_TITLES[r] for r in together)),
        digests=digests,
        cost=len(data.splits["train"].slices) * frames * heads * max(1, len(data.space.classes)),
    )


def _report_left_out(prepared: Sequence[TaskData]) -> None:
    for data in prepared:
        sizes = ", ".join(f"{len(s.units)} {name}" for name, s in data.splits.items())
        left_out = [sum(s.left_out for s in data.splits.values()), sum(s.too_short for s in data.splits.values())]
        log.info("%s: %s items (left out: %d without a usable label, %d too short)", data.task.name, sizes, *left_out)

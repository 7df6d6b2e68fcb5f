"""Jobs of an evaluation: one task on one encoder each, with features from as few passes as possible.

Tasks that cut the same audio into windows of one length share a pass, even with separate track lists: the four tasks
on MTG-Jamendo read every window once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.store.files import Location
from distributed.marble.datasets.corpus import LabelledCorpus, union
from distributed.marble.datasets.targets import TaskData
from distributed.marble.encoders.readout import spread_layers
from distributed.marble.encoders.resolve import FrozenEncoder
from distributed.marble.features.features import FeaturePlan, compute_features, gather_features, plan_features
from distributed.marble.probes.probing import Subject
from distributed.marble.results.results import Provenance
from distributed.marble.tasks.tasks import READOUT_TITLES, Clips, Task
from distributed.processes.collectives import agreed_digest, all_or_none
from distributed.processes.topology import Topology
from pupujepa.progress import Progress


@dataclass(frozen=True)
class ProbeJob:
    """One task on one encoder, with computed features; `cost` is the relative work of its probes."""

    data: TaskData
    subject: Subject
    provenance: Provenance
    cost: float


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


def featurise(
    encoder: FrozenEncoder,
    corpora: Mapping[str, LabelledCorpus],
    tasks: Sequence[TaskData],
    *,
    cache: Location | Path,
    topology: Topology,
) -> list[ProbeJob]:
    """Computes the features of one encoder and returns its jobs; all ranks call it together.

    Args:
        corpora: by the name of their track list.
        cache: path or url of the folder for features, shared by all ranks.
    """
    jobs = []
    digest = agreed_digest(lambda: encoder.digest, topology, f"the weights of {encoder.name}")
    for sharing in _sharing(tasks):  # one feature pass each
        corpus = union([corpora[d.task.list_name] for d in sharing])
        plan = _plan(sharing[0].task.clips, sharing)
        # rank r has parts r, r + world_size, ...: see compute_features
        mine = sum(len(plan.part(n)) for n in range(topology.rank, plan.num_parts, topology.world_size))
        with (
            Progress(mine, title=f"features of {encoder.name}", unit="slices", shown=topology.is_first) as progress,
            all_or_none(topology, f"features of {encoder.name}"),
        ):
            store = compute_features(
                encoder,
                corpus,
                plan,
                cache=cache,
                topology=topology,
                digest=digest,
                on_slices=partial(_count, progress, plan.clips.seconds, topology.world_size),
            )
        features = gather_features(store, plan)
        subject = Subject(encoder.name, features, encoder.frame_rate_hz)
        for data in sharing:
            own = corpora[data.task.list_name].digest
            digests = {"checkpoint": digest, "corpus": own, "features": features.key}
            jobs.append(ProbeJob(data, subject, _provenance(encoder, data.task, digests), _cost(encoder, data)))
    return jobs


def _count(progress: Progress, slice_s: float, ranks: int, count: int, computed: bool) -> None:
    """Counts slices; the rate shown is for all ranks, assumed to be as fast as this one."""
    if not computed:
        progress.skip(count)
        return
    rate = ranks * (progress.done_now + count) / progress.elapsed_s
    progress.advance(count, note=f"{rate:.3g} slices/s, {rate * slice_s:.3g} times real time")


def _sharing(tasks: Sequence[TaskData]) -> list[list[TaskData]]:
    """Returns groups of tasks that can share a feature pass: the same audio, windows of one length."""
    groups: dict[tuple[str, float], list[TaskData]] = {}
    for data in tasks:
        task = data.task
        audio = task.manifest if task.source is None else task.source.folder
        groups.setdefault((audio, task.clips.seconds), []).append(data)
    return list(groups.values())


def _plan(clips: Clips, tasks: Sequence[TaskData]) -> FeaturePlan:
    every = [s for d in tasks for split in d.splits.values() for s in split.every_slice]
    framed = [d for d in tasks if d.task.frames is not None]
    with_frames = [s for d in framed for split in d.splits.values() for s in split.every_slice]
    wanted = [d.task.frames.layers for d in framed if d.task.frames]
    # None means all layers, the most that a task can ask for
    layers = None if None in wanted else max((w for w in wanted if w is not None), default=0)
    return plan_features(clips, every, with_frames=with_frames, frame_layers=layers)


def _provenance(encoder: FrozenEncoder, task: Task, digests: dict[str, str]) -> Provenance:
    count = len(encoder.layer_names)
    layers = spread_layers(count, None if task.frames is None else task.frames.layers)
    together = [r for r in task.fit.readouts_of(len(layers)) if r != "layers"]
    names = (*(encoder.layer_names[i] for i in layers), *(READOUT_TITLES[r] for r in together))
    return Provenance(names, (*layers, *together), digests)


def _cost(encoder: FrozenEncoder, data: TaskData) -> float:
    """Returns a rough estimate of the work of a probe bank, to balance the ranks."""
    task = data.task
    frames = 1.0 if task.frames is None else task.clips.seconds * (encoder.frame_rate_hz or 1.0)
    layers = len(spread_layers(len(encoder.layer_names), None if task.frames is None else task.frames.layers))
    probed = layers + len(task.fit.readouts_of(layers)) - 1  # "layers" is one of the readouts
    heads = len(task.fit.learning_rates) * len(task.fit.seeds)
    return len(data.splits["train"].slices) * frames * probed * heads * max(1, len(data.space.classes))

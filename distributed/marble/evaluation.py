"""An evaluation of frozen encoders on all ranks: features, probes, rows of results."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from data.store.files import Location
from distributed.marble.datasets.audio_digests import with_audio_digests
from distributed.marble.datasets.corpus import LabelledCorpus, agreed, read_labelled_corpus
from distributed.marble.datasets.manifests import read_marble
from distributed.marble.datasets.targets import TaskData, prepare_targets
from distributed.marble.encoders.pupujepa import HowToEncode
from distributed.marble.encoders.resolve import BASELINES, FrozenEncoder, resolve_encoders, supports
from distributed.marble.jobs import ProbeJob, deal_jobs, featurise
from distributed.marble.probes.probing import ProbeOutcome, probe
from distributed.marble.quick.light_probes import Check
from distributed.marble.quick.quick import check_all, whole_clips, write_quick
from distributed.marble.results.results import Resamples, Row, Sampling, make_rows, write_results
from distributed.marble.tasks.tasks import Protocol, Task
from distributed.processes.collectives import all_or_none, gather
from distributed.processes.topology import Topology
from pupujepa.errors import UserError
from pupujepa.progress import Progress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Settings of an evaluation.

    Attributes:
        cache: path or url of the folder for features, shared by all ranks.
        which: teacher or student.
        precision: of the frozen encoders, "bf16" or "fp32".
        quick: train nothing; see quick.py.
    """

    encoders: tuple[str, ...]
    tasks: tuple[Task, ...]
    data: Path
    out: Path
    cache: Location | Path
    protocol: Protocol = "clean"
    which: str = "teacher"
    precision: str = "fp32"
    sampling: Sampling = field(default_factory=Sampling)
    quick: bool = False


def evaluate(evaluation: Evaluation, topology: Topology, *, device: torch.device) -> list[Row]:
    """Runs an evaluation in a process group; only the first rank writes and returns rows.

    The others return [].
    """
    evaluation = replace(evaluation, tasks=tuple(task.under(evaluation.protocol) for task in evaluation.tasks))
    corpora: dict[str, LabelledCorpus] = {}
    for task in evaluation.tasks:
        if task.list_name not in corpora:
            # check that ranks see one corpus before the slow digests of audio
            corpus = agreed(_read(evaluation.data, task), topology)
            corpora[task.list_name] = with_audio_digests(corpus, cache=evaluation.cache, topology=topology)
    prepared = [prepare_targets(task, corpora[task.list_name]) for task in evaluation.tasks]
    _report_left_out(prepared)
    encoders = resolve_encoders(evaluation.encoders, HowToEncode(evaluation.which, evaluation.precision, device))
    if evaluation.quick:
        jobs = _featurise_all(encoders, corpora, whole_clips(prepared), evaluation.cache, topology)
        rows = check_all(jobs, Check(evaluation.protocol, evaluation.sampling), topology)
        return write_quick(evaluation.out, rows) if topology.is_first else []
    jobs, outcomes = measure_encoders(
        encoders, corpora, prepared=prepared, evaluation=evaluation, topology=topology, device=device
    )
    if not topology.is_first:
        return []
    return write_results(evaluation.out, *_tabulate(evaluation, jobs, outcomes))


def measure_encoders(
    encoders: Sequence[FrozenEncoder],
    corpora: Mapping[str, LabelledCorpus],
    *,
    prepared: Sequence[TaskData],
    evaluation: Evaluation,
    topology: Topology,
    device: torch.device,
) -> tuple[list[ProbeJob], dict[int, ProbeOutcome]]:
    """Probes encoders on prepared tasks; all ranks call it together and share the work.

    Args:
        corpora: by the name of their track list.
        evaluation: for its protocol and feature cache.

    Returns:
        On every rank: all jobs, and the outcome of each by job number.

    Raises:
        UserError: no encoder supports any of the tasks.
    """
    jobs = _featurise_all(encoders, corpora, prepared, evaluation.cache, topology)
    return jobs, _probe_all(jobs, evaluation, topology, device=device)


def _featurise_all(
    encoders: Sequence[FrozenEncoder],
    corpora: Mapping[str, LabelledCorpus],
    prepared: Sequence[TaskData],
    cache: Location | Path,
    topology: Topology,
) -> list[ProbeJob]:
    jobs: list[ProbeJob] = []
    for encoder in encoders:
        tasks = [d for d in prepared if supports(encoder, d.task)]
        jobs += featurise(encoder, corpora, tasks, cache=cache, topology=topology)
    if not jobs:
        raise UserError("none of these encoders supports any of these tasks, so nothing can be measured; choose others")
    return jobs


def _read(data: Path, task: Task) -> LabelledCorpus:
    return read_labelled_corpus(data, task.manifest) if task.source is None else read_marble(data, task)


def _probe_all(
    jobs: Sequence[ProbeJob], evaluation: Evaluation, topology: Topology, *, device: torch.device
) -> dict[int, ProbeOutcome]:
    """Trains this rank's banks and returns the outcomes of all ranks by job number."""
    mine = deal_jobs(jobs, topology.world_size)[topology.rank]  # every rank computes the same assignment
    outcomes: dict[int, ProbeOutcome] = {}
    with (
        Progress(len(mine), title="probes", unit="banks", shown=topology.is_first) as progress,
        all_or_none(topology, "probes"),
    ):
        for number in mine:
            job = jobs[number]
            # the lambda below binds `what` as a default: a closure would see the next job's
            what = f"{job.data.task.name} on {job.subject.name}"
            outcomes[number] = probe(
                job.data,
                job.subject,
                protocol=evaluation.protocol,
                device=device,
                on_epoch=lambda epoch, what=what: progress.say(f"{what}, epoch {epoch + 1}"),  # type: ignore[misc]
            )
            progress.advance()
    gathered = gather(outcomes, topology)  # one dict of outcomes per rank
    return {number: outcome for part in gathered for number, outcome in part.items()}


def _tabulate(
    evaluation: Evaluation, jobs: Sequence[ProbeJob], outcomes: dict[int, ProbeOutcome]
) -> tuple[list[Row], Resamples]:
    rows: list[Row] = []
    resamples: Resamples = {}
    for task in evaluation.tasks:
        numbers = [n for n, job in enumerate(jobs) if job.data.task.name == task.name]
        if numbers:
            made, drawn = make_rows(
                task,
                [outcomes[n] for n in numbers],
                {jobs[n].subject.name: jobs[n].provenance for n in numbers},
                protocol=evaluation.protocol,
                baselines=BASELINES,
                sampling=evaluation.sampling,
            )
            rows += made
            resamples |= drawn
    return rows, resamples


def _report_left_out(prepared: Sequence[TaskData]) -> None:
    for data in prepared:
        sizes = ", ".join(f"{len(s.units)} {name}" for name, s in data.splits.items())
        left_out = [sum(s.left_out for s in data.splits.values()), sum(s.too_short for s in data.splits.values())]
        log.info("%s: %s items (left out: %d without a usable label, %d too short)", data.task.name, sizes, *left_out)

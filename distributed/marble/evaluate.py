"""Probe frozen encoders on labelled tasks, with baselines, 95 % intervals and paired differences.

  python -m distributed evaluate --encoders runs/demo random_init log_mel chroma \\
      --data corpora/scores --out runs/demo
  torchrun --nproc-per-node 8 -m distributed evaluate --encoders runs/demo random_init --data D --out O
  srun python -m distributed evaluate --encoders runs/demo random_init --data D --out O

An encoder is a run directory, a folder with released weights, or one of the baselines random_init (the same network,
untrained), log_mel (spectrogram statistics) and chroma (for key). D holds tracks.jsonl and its audio, as
`python -m data scores D` makes them, or is a checkout of MARBLE whose data sets lie where its download.py puts them
(docs/marble.md). Before anything is computed every task says what it found, or which file is missing and whence it is:

  python -m distributed evaluate --tasks all --data MARBLE --check
  python -m distributed evaluate --tasks GS MTT GTZANBeatTracking --data MARBLE --encoders runs/base --out runs/base

Features are computed once, spread over the ranks, and kept under --cache, a folder or s3://bucket/prefix that all
ranks see; what changes them (weights, lists, a single byte of audio) changes the name they are kept under. The same
command, run again, continues where it stopped. Layer and learning rate are chosen on validation; the test split is read
once, by the choice alone.

In a minute, without training (quick.py), or of encoders other than PupuJEPA (docs/encoders.md):

  python -m distributed evaluate --quick --encoders runs/demo runs/demo:student mert dasheng:base --data D --out O

Writes O/results.jsonl (one row per task, encoder and protocol), O/results.md and O/results.html. Results of several
folders, beside each other and beside published numbers:

  python -m distributed leaderboard runs/base runs/large
"""

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from data.files import Location
from distributed.marble.audio_digests import with_audio_digests
from distributed.marble.corpus import Corpus, read_corpus
from distributed.marble.encoders import BASELINES, FrozenEncoder, resolve_encoders, supports
from distributed.marble.inventory import measurable, take_inventory
from distributed.marble.jobs import Job, deal, featurise
from distributed.marble.manifests import read_marble
from distributed.marble.marble_tasks import choose_tasks
from distributed.marble.probing import Outcome, probe
from distributed.marble.pupujepa_encoder import HowToEncode
from distributed.marble.quick import Check, check_all, quick_table, whole_clips, write_quick
from distributed.marble.ranks import agreed, all_or_none, gather
from distributed.marble.result_tables import result_tables
from distributed.marble.results import Resamples, Row, Sampling, make_rows, write_results
from distributed.marble.tables import to_markdown
from distributed.marble.targets import TaskData, prepare
from distributed.marble.tasks import Protocol, Task
from distributed.telemetry import configure_logging
from distributed.topology import Topology, choose_device, discover, loopback_interface, process_group
from pupujepa.errors import UserError
from pupujepa.progress import Progress

log = logging.getLogger(__name__)

TIMEOUT_S = 4 * 3600.0
PROTOCOLS: tuple[Protocol, ...] = ("marble", "clean")


@dataclass(frozen=True)
class Evaluation:
    """An evaluation, fully specified.

    Attributes:
        cache: path or url of the folder for features, shared by all ranks.
        which: teacher or student.
        quick: nothing is trained; see quick.py.
    """

    encoders: tuple[str, ...]
    tasks: tuple[Task, ...]
    data: Path
    out: Path
    cache: Location | Path
    protocol: Protocol = "clean"
    which: str = "teacher"
    precision: str = "bf16"
    sampling: Sampling = field(default_factory=Sampling)
    quick: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "--encoders",
        nargs="+",
        default=[],
        metavar="ENCODER",
        help="run directories, folders with released weights, NAME:ARGUMENT of an adapter, FILE.py, or baselines "
        f"({', '.join(BASELINES)}); docs/encoders.md",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="tasks by name, or groups: all, offline, marble (default: those that are in DIR)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="corpus with tracks.jsonl and its audio, or MARBLE's checkout or data folder, or both in one",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results.jsonl and the tables go")
    parser.add_argument(
        "--check", action="store_true", help="say for every task what is there and what is missing, and stop"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="train nothing: nearest neighbours, a few labels and the spectra of the features, into OUT/quick.md",
    )
    parser.add_argument(
        "--protocol",
        choices=("clean", "marble", "both"),
        default="clean",
        help="clean: best epoch on validation (default); marble: as MARBLE v2 does it, quirks included; "
        "both: one after the other, and what differs",
    )
    parser.add_argument("--which", choices=("teacher", "student"), default="teacher", help="blocks of a run to probe")
    parser.add_argument(
        "--precision",
        choices=("bf16", "fp32"),
        default="bf16",
        help="of the frozen encoder: bf16 autocast (default, as MARBLE) or fp32, for processors without bf16",
    )
    parser.add_argument(
        "--cache",
        metavar="DIR",
        help="folder for features that all ranks see, or s3://bucket/prefix (default: OUT/features); several "
        "evaluations may share one, and it may be deleted at any time between them",
    )
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Runs the command in this rank; the first rank writes and prints the table."""
    topology = discover(os.environ)
    configure_logging(rank=topology.rank)
    findings = take_inventory(choose_tasks(args.tasks or ["all"]), args.data)
    if args.check:
        if topology.is_first:
            print("\n".join(f.text for f in findings))  # noqa: T201 - the list is the product
        return 0 if all(f.is_complete for f in findings) else 1
    for finding in findings:
        # who did not ask for all tasks is not told of all that are absent
        if args.tasks or not finding.is_absent:
            log.info("%s", finding.text)
    evaluation = _evaluation(args, measurable(findings, args.tasks or [], args.data))
    if topology.world_size > 1:
        # gloo reads the environment, whoever launched us
        os.environ.update(loopback_interface(topology) | dict(os.environ) | topology.environment())
    # plain numbers and small arrays are exchanged, so gloo serves on GPUs too
    with process_group(topology, timeout_s=TIMEOUT_S, device=torch.device("cpu")):
        device = choose_device(topology, cuda_devices=torch.cuda.device_count())
        for protocol in PROTOCOLS if args.protocol == "both" else (args.protocol,):
            rows = evaluate(replace(evaluation, protocol=protocol), topology, device=device)
    if topology.is_first:
        print(quick_table(rows) if args.quick else to_markdown(result_tables(rows)))  # noqa: T201 - the table is the product
    return 0


def _evaluation(args: argparse.Namespace, tasks: tuple[Task, ...]) -> Evaluation:
    if not args.encoders or args.out is None:
        raise UserError("--encoders and --out are needed to measure anything; --check alone does without")
    if args.resamples < 1:
        raise UserError(f"--resamples {args.resamples} leaves no interval; use 1000")
    return Evaluation(
        encoders=tuple(args.encoders),
        tasks=tasks,
        data=args.data,
        out=args.out,
        cache=args.cache or args.out / "features",
        which=args.which,
        precision=args.precision,
        sampling=Sampling(args.resamples, args.seed),
        quick=args.quick,
    )


def evaluate(evaluation: Evaluation, topology: Topology, *, device: torch.device) -> list[Row]:
    """Runs an evaluation inside a process group; the first rank writes the results and returns them, others none."""
    evaluation = replace(evaluation, tasks=tuple(task.under(evaluation.protocol) for task in evaluation.tasks))
    corpora: dict[str, Corpus] = {}
    for task in evaluation.tasks:
        if task.list_name not in corpora:
            corpus = agreed(_read(evaluation.data, task), topology)
            corpora[task.list_name] = with_audio_digests(corpus, cache=evaluation.cache, topology=topology)
    prepared = [prepare(task, corpora[task.list_name]) for task in evaluation.tasks]
    _report_left_out(prepared)
    encoders = resolve_encoders(evaluation.encoders, HowToEncode(evaluation.which, evaluation.precision, device))
    if evaluation.quick:
        jobs = _featurise_all(encoders, corpora, whole_clips(prepared), evaluation.cache, topology)
        rows = check_all(jobs, Check(evaluation.protocol, evaluation.sampling), topology)
        return write_quick(evaluation.out, rows) if topology.is_first else []
    jobs, outcomes = measure(
        encoders, corpora, prepared=prepared, evaluation=evaluation, topology=topology, device=device
    )
    if not topology.is_first:
        return []
    return write_results(evaluation.out, *_tabulate(evaluation, jobs, outcomes))


def measure(
    encoders: Sequence[FrozenEncoder],
    corpora: Mapping[str, Corpus],
    *,
    prepared: Sequence[TaskData],
    evaluation: Evaluation,
    topology: Topology,
    device: torch.device,
) -> tuple[list[Job], dict[int, Outcome]]:
    """Probes encoders on prepared tasks; all ranks call it together and share the work.

    Args:
        corpora: by the name of their track list.
        evaluation: protocol and feature cache.

    Returns:
        The jobs, and the outcome of each by its number, on every rank.

    Raises:
        UserError: no encoder supports any of the tasks.
    """
    jobs = _featurise_all(encoders, corpora, prepared, evaluation.cache, topology)
    return jobs, _probe_all(jobs, evaluation, topology, device=device)


def _featurise_all(
    encoders: Sequence[FrozenEncoder],
    corpora: Mapping[str, Corpus],
    prepared: Sequence[TaskData],
    cache: Location | Path,
    topology: Topology,
) -> list[Job]:
    jobs: list[Job] = []
    for encoder in encoders:
        tasks = [d for d in prepared if supports(encoder, d.task)]
        jobs += featurise(encoder, corpora, tasks, cache=cache, topology=topology)
    if not jobs:
        raise UserError("none of these encoders supports any of these tasks, so there is nothing to measure")
    return jobs


def _read(data: Path, task: Task) -> Corpus:
    return read_corpus(data, task.manifest) if task.source is None else read_marble(data, task)


def _probe_all(
    jobs: Sequence[Job], evaluation: Evaluation, topology: Topology, *, device: torch.device
) -> dict[int, Outcome]:
    """Trains this rank's banks and returns the outcomes of all ranks by job number."""
    mine = deal(jobs, topology.world_size)[topology.rank]
    outcomes: dict[int, Outcome] = {}
    with (
        Progress(len(mine), title="probes", unit="banks", shown=topology.is_first) as progress,
        all_or_none(topology, "probes"),
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
    gathered = gather(outcomes, topology)
    return {number: outcome for part in gathered for number, outcome in part.items()}


def _tabulate(evaluation: Evaluation, jobs: Sequence[Job], outcomes: dict[int, Outcome]) -> tuple[list[Row], Resamples]:
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
        left_out = sum(s.left_out for s in data.splits.values())
        too_short = sum(s.too_short for s in data.splits.values())
        log.info(
            "%s: %s items (left out: %d without a usable label, %d too short)",
            data.task.name,
            sizes,
            left_out,
            too_short,
        )

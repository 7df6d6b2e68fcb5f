"""Probe frozen encoders on labelled tasks, with baselines, 95 % intervals and paired differences.

  python -m distributed evaluate --encoders runs/demo random_init log_mel chroma \\
      --data corpora/scores --out runs/demo
  torchrun --nproc-per-node 8 -m distributed evaluate --encoders runs/demo random_init --data D --out O
  srun python -m distributed evaluate --encoders runs/demo random_init --data D --out O

An encoder is a run directory, a folder with released weights, or a baseline: random_init (the same network, untrained),
log_mel (spectrogram statistics) or chroma (for key). D has tracks.jsonl and its audio, as `python -m data scores D`
makes them, or is a checkout of MARBLE with the data sets where its download.py puts them (docs/marble.md). First every
task reports what it found, or which file is missing and where to get it:

  python -m distributed evaluate --tasks all --data MARBLE --check
  python -m distributed evaluate --tasks GS MTT GTZANBeatTracking --data MARBLE --encoders runs/base --out runs/base

The ranks share the work of computing features, once, and keep them under --cache, a folder or s3://bucket/prefix that
all ranks can read. The name of the features depends on the weights, the lists and every byte of audio. The same
command, run again, resumes. Layer and learning rate are chosen on validation; only the chosen probe reads the test
split, once.

In a minute, without training (quick.py), also with encoders other than PupuJEPA (docs/encoders.md):

  python -m distributed evaluate --quick --encoders runs/demo runs/demo:student mert dasheng:base --data D --out O

Writes O/results.jsonl (one row per task, encoder and protocol), O/results.md and O/results.html. To compare the results
of several folders with each other and with published numbers:

  python -m distributed leaderboard runs/base runs/large
"""

import argparse
import logging
import os
from dataclasses import replace
from pathlib import Path

import torch

from distributed.drawing.tables import to_markdown
from distributed.marble.datasets.inventory import measurable, take_inventory
from distributed.marble.evaluation import Evaluation, evaluate
from distributed.marble.quick import quick_table
from distributed.marble.results.results import Sampling
from distributed.marble.results.tables import BASELINES, result_tables
from distributed.marble.tasks.marble_tasks import choose_tasks
from distributed.marble.tasks.tasks import Protocol, Task
from distributed.processes.collectives import agreed_precision
from distributed.processes.topology import choose_device, discover, loopback_interface, process_group, usable_gpus
from distributed.run.log import configure_logging
from pupujepa.errors import UserError
from pupujepa.precision import AUTO, PRECISIONS, warn_of_emulation

log = logging.getLogger(__name__)

TIMEOUT_S = 4 * 3600.0
PROTOCOLS: tuple[Protocol, ...] = ("marble", "clean")


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
    tasks = "tasks by name, or groups: all, offline, marble (default: those found in DIR)"
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help=tasks)
    data = "corpus with tracks.jsonl and its audio, MARBLE's checkout or data folder, or both in one"
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help=data)
    parser.add_argument("--out", type=Path, metavar="DIR", help="output folder for results.jsonl and the tables")
    parser.add_argument("--check", action="store_true", help="report what each task has and lacks, and exit")
    quick = "train nothing: nearest neighbours, a few labels and spectra of the features, into OUT/quick.md"
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument(
        "--protocol",
        choices=("clean", "marble", "both"),
        default="clean",
        help="clean: best epoch on validation (default); marble: as MARBLE v2, quirks included; "
        "both: one after the other, with their differences",
    )
    parser.add_argument("--which", choices=("teacher", "student"), default="teacher", help="weights of a run to probe")
    parser.add_argument(
        "--precision",
        choices=(AUTO, *PRECISIONS),
        default=AUTO,
        help="precision of the frozen encoder: auto (default) is bf16 autocast, as in MARBLE, if the hardware of all "
        "ranks multiplies bf16, else fp32; each precision has its own features",
    )
    parser.add_argument(
        "--cache",
        metavar="DIR",
        help="folder for features that all ranks can read, or s3://bucket/prefix (default: OUT/features); "
        "evaluations can share it, and you can delete it between them",
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
        # without --tasks, do not list every task of which nothing is there
        if args.tasks or finding.tracks:
            log.info("%s", finding.text)
    evaluation = _evaluation(args, measurable(findings, args.tasks or [], args.data))
    if topology.world_size > 1:
        # gloo reads these variables, whichever launcher started the rank
        os.environ.update(loopback_interface(topology) | dict(os.environ) | topology.environment())
    # ranks exchange numbers and small arrays only, so gloo is enough on GPUs too
    with process_group(topology, timeout_s=TIMEOUT_S, device=torch.device("cpu")):
        device = choose_device(topology, cuda_devices=usable_gpus(os.environ))
        precision = agreed_precision(args.precision, device)
        log.info("features in %s (%s)", precision.name, precision.reason)
        if topology.local_rank == 0:
            warn_of_emulation(precision.name, device)
        evaluation = replace(evaluation, precision=precision.name)
        for protocol in PROTOCOLS if args.protocol == "both" else (args.protocol,):
            rows = evaluate(replace(evaluation, protocol=protocol), topology, device=device)
    if topology.is_first:
        print(quick_table(rows) if args.quick else to_markdown(result_tables(rows)))  # noqa: T201 - the table is the product
    return 0


def _evaluation(args: argparse.Namespace, tasks: tuple[Task, ...]) -> Evaluation:
    if not args.encoders or args.out is None:
        raise UserError("--encoders and --out are needed for an evaluation; only --check works without them")
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

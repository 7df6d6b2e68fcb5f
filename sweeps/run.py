"""Run the trials of an ablation on Ray Tune; the ordinary commands train and probe each trial.

  python -m sweeps run sweeps/ablations/quick.yaml --shards shards/train --corpus corpora/scores --out runs/sweep
  python -m sweeps run sweeps/ablations/quick.yaml --shards ... --corpus ... --dry-run       lists the trials
  python -m sweeps run ABLATION.yaml --shards s3://music/shards/train --corpus D --ranks 2 --gpus-per-trial 2

A sweep file names a base, the axes that vary it, seeds, tasks and a budget; sweeps/plan/sweep_file.py describes it. As
many trials run at once as cores and GPUs hold, on a Ray of this sweep alone. Ctrl-C, SIGTERM, SIGHUP or the death of
this process end all processes of the sweep. The nodes of a SLURM job share one Ray (slurm/sweep.sbatch).

The same command resumes a sweep: it keeps finished trials, continues interrupted ones from their checkpoints, and tries
crashed ones again. If the sweep file has changed, --resume confirms it: equal trials are kept.

Exit code: 0 when every trial has its results, 1 when one diverged, collapsed or crashed, 2 for a wrong input, 130 when
stopped by Ctrl-C, 86 when a node was lost. Then: python -m sweeps report runs/sweep
"""

import argparse
import logging
import os
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from distributed.marble.tasks.tasks import select_tasks
from distributed.run.directory import RunDirectory, lock_run, write_atomically
from distributed.run.log import configure_logging
from pupujepa.errors import UserError
from sweeps.plan.compose import plan_sweep, write_part
from sweeps.plan.corpus_subset import write_subset
from sweeps.plan.plan import PLAN_NAME, SWEEP_NAME, Commands, Launch, Plan, commands_for, read_plan, write_plan
from sweeps.plan.sweep_file import OPTUNA, SweepConfig, read_sweep
from sweeps.trials.leash import Leash
from sweeps.trials.record import is_finished, read_record
from sweeps.trials.trial import ROOT
from sweeps.tune.driver import TOKEN_NAME, private_directory, ray_environment
from sweeps.tune.nodes import HEAD_NAME, Head, head_of, lend_node

POLL_S = 0.2

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument("sweep", type=Path, metavar="SWEEP.yaml", help="sweep file, e.g. one of sweeps/ablations")
    parser.add_argument("--shards", required=True, metavar="URL", help="training split of a shard set, path or s3://")
    parser.add_argument("--corpus", type=Path, required=True, metavar="DIR", help="labelled corpus for the probes")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="sweep directory (default: runs/<name of the file>)",
    )
    parser.add_argument("--ranks", type=int, default=1, help="processes of one trial (default: %(default)s)")
    parser.add_argument("--cpus-per-trial", type=float, default=1, help="cores of one trial (default: %(default)s)")
    parser.add_argument("--gpus-per-trial", type=float, default=0, help="GPUs of one trial (default: 0, on the CPU)")
    parser.add_argument("--cpus", type=int, help="cores of a node that the sweep may use (default: all)")
    parser.add_argument("--grace", type=float, default=20, help="seconds for a stopped trial to save (default: 20)")
    parser.add_argument("--resume", action="store_true", help="resume although the sweep file has changed")
    parser.add_argument("--lend", action="store_true", help="lend this node to the sweep (slurm/sweep.sbatch)")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the trials, start nothing")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="for all trials; axes have priority"
    )


def run(args: argparse.Namespace) -> int:
    """Plans and runs the sweep; returns the exit code."""
    configure_logging(rank=int(args.lend))
    head = head_of(os.environ)
    out = (args.out or Path("runs") / args.sweep.stem).resolve()
    cpus = args.cpus or len(os.sched_getaffinity(0))
    if args.lend:
        if head is None:
            raise UserError(f"--lend joins the sweep at {HEAD_NAME}, which is not set; use slurm/sweep.sbatch")
        return lend_node(head, cpus=cpus, grace_s=args.grace)
    if args.cpus_per_trial > cpus:
        raise UserError(
            f"--cpus-per-trial {args.cpus_per_trial:g} exceeds the {cpus} cores of this sweep, so no trial could "
            f"start; lower it, or raise --cpus"
        )
    sweep = read_sweep(args.sweep)
    if sweep.plan == OPTUNA and find_spec("optuna") is None:
        raise UserError(f"plan {OPTUNA} needs Optuna, which is not installed; pip install 'pupujepa[search]'")
    plan = plan_sweep(
        sweep,
        launch_of(args, sweep, out),
        corpus=args.corpus,
        name=args.sweep.stem,
        session=f"{time.time():.0f}-{os.getpid()}",
        extra=args.set,
    )
    if args.dry_run:
        print(describe_sweep(plan, out))  # noqa: T201 - the list is the product
        return 0
    with lock_run(RunDirectory(out), check=partial(require_same_sweep, plan, out, resume=args.resume)):
        plan = prepare_sweep(plan, sweep, args, out)
        logger.info("%s", describe_sweep(plan, out))
        code = drive(out, head, cpus=cpus, grace_s=args.grace)
    logger.info("%s; the table: python -m sweeps report %s", sweep_summary(read_plan(out), out), out)
    return code


def launch_of(args: argparse.Namespace, sweep: SweepConfig, out: Path) -> Launch:
    """Returns the inputs, commands and resources that all trials share."""
    if args.ranks < 1:
        raise UserError(f"--ranks {args.ranks} starts no process; give 1 or more")
    shards = args.shards if "://" in args.shards else str(Path(args.shards).resolve())
    ordinary, own = commands_for(args.ranks), sweep.commands
    return Launch(
        preset=sweep.base.preset,
        shards=shards,
        corpus=str(args.corpus.resolve() if sweep.probe_tracks is None else out / "corpus"),
        tasks=tuple(task.name for task in select_tasks(sweep.tasks)),
        commands=Commands(tuple(own.train) or ordinary.train, tuple(own.evaluate) or ordinary.evaluate),
        ranks=args.ranks,
        cpus=args.cpus_per_trial,
        gpus=args.gpus_per_trial,
        grace_s=args.grace,
        compare_on=sweep.compare_on,
        parts=str(out / "parts"),
    )


def prepare_sweep(plan: Plan, sweep: SweepConfig, args: argparse.Namespace, out: Path) -> Plan:
    """Writes the inputs of the trials, and returns the plan with the trials that a search found before."""
    if sweep.probe_tracks is not None:
        write_subset(args.corpus, out / "corpus", tracks=sweep.probe_tracks)
    for share in {planned.trial.share for planned in plan.trials} - {1.0}:
        write_part(plan.launch.shards, plan.launch.parts, share)
    if plan.search is not None:
        plan = with_found(plan, out)
    write_atomically(out / SWEEP_NAME, args.sweep.read_text())
    write_plan(plan, out)
    return plan


def with_found(plan: Plan, out: Path) -> Plan:
    """Returns the plan with the trials that the same search has found in `out` so far."""
    if not (out / PLAN_NAME).is_file():
        return plan
    before = read_plan(out)
    if before.search is None or before.digest != plan.digest:
        return plan
    return replace(plan, trials=(*plan.trials, *before.trials[before.search.planned_before :]))


def require_same_sweep(plan: Plan, out: Path, *, resume: bool) -> None:
    """Raises UserError if `out` holds a sweep of other trials and --resume was not given."""
    if not (out / PLAN_NAME).is_file() or resume:
        return
    before = read_plan(out)
    if before.digest != plan.digest:
        old, new = ({p.directory for p in each.trials} for each in (before, plan))
        raise UserError(
            f"{out} holds a sweep of other trials ({len(old - new)} of its {len(old)} are not in this one, "
            f"{len(new - old)} are new); add --resume to keep the equal ones, or give another --out"
        )


def describe_sweep(plan: Plan, out: Path) -> str:
    """Returns the trials as text, each with its length or its model, and those that are finished."""
    lines = [f"{plan.name}: {plan.question}" if plan.question else plan.name]
    lines.append(f"{len(plan.trials)} trials, probed on {', '.join(plan.launch.tasks)}; directory {out}")
    for planned in plan.trials:
        done = ", finished" if is_finished(planned, out) else ""
        what = f"evaluates {planned.model}" if planned.model else f"{planned.steps} steps, {planned.samples} crops"
        lines.append(f"  {planned.trial.name}: {what}{done}")
    lines += [f"  {name}: the same as {other}, runs once" for name, other in plan.same_as.items()]
    return "\n".join(lines)


def sweep_summary(plan: Plan, out: Path) -> str:
    """Returns the number of trials with each status."""
    statuses = [read_record(planned, out).status for planned in plan.trials]
    return ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))


def drive(out: Path, head: Head | None, *, cpus: int, grace_s: float) -> int:
    """Runs the driver under a leash, and ends it on SIGINT, SIGHUP and SIGTERM; returns the exit code.

    Args:
        head: the address at which the other nodes join this Ray; None for a sweep of one node.
    """
    asked: list[int] = []
    numbers = [n for n in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, _remember(asked)) for number in numbers}
    ray_dir = private_directory()
    command = [sys.executable, "-m", "sweeps.tune.driver", str(out), "--ray-dir", str(ray_dir), "--cpus", str(cpus)]
    if head is None:
        env = ray_environment(os.environ, root=ROOT)
    else:
        env = ray_environment(os.environ, root=ROOT, token=os.environ[TOKEN_NAME])
        env["RAY_GCS_SERVER_PORT"] = str(head.port)
        command += ["--host", head.address, "--nodes", str(head.nodes)]
    leash = Leash(
        command,
        env=env,
        cwd=ROOT,
        remove=ray_dir,
        grace_s=grace_s + 10,  # the driver stops Ray after its trials
        linger_s=grace_s + 1,  # the leashes of trials that lost their driver need this long
    )
    try:
        while leash.poll() is None and not asked:
            time.sleep(POLL_S)
        if asked:
            logger.warning("stopping: trials get %.0f s to save", grace_s)
    finally:
        code = leash.end()
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 128 + asked[0] if asked else code


def _remember(asked: list[int]):
    def handler(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # a second Ctrl-C ends this process at once, and with it the leash

    return handler

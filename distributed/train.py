"""Pre-train a PupuJEPA, or continue a run: the same command does both.

  python -m distributed train --preset demo stream.url=shards/train               one process, on CPU or one GPU
  torchrun --nproc-per-node 8 -m distributed train --preset paper model=large stream.url=s3://music/shards/train
  deepspeed --module distributed train --preset paper model=large stream.url=...   DeepSpeed's launcher
  DS_ACCELERATOR=cpu deepspeed --num_gpus 2 --module distributed train ...         the same on two CPU ranks
  srun python -m distributed train --preset paper model=large stream.url=...      SLURM, one task per GPU

A preset (distributed/presets) and dotted overrides define the experiment; later ones win:

  --preset robust model=large train.steps=100000 engine.zero_stage=2 telemetry.wandb=disabled

Several corpora in one run, three crops of the first for each of the second (docs/order.md):

  --preset paper stream.mix.studio.url=s3://a/train stream.mix.studio.weight=3 stream.mix.live.url=s3://b/train

A cooldown branch is a run of its own. It starts at a checkpoint of a run with a constant learning rate and cools down
until train.steps (default: the cooldown is schedule.cooldown_fraction of the whole). The parent may continue:

  python -m distributed train --cooldown-from runs/large:400000 --run-dir runs/large-400k-cooled train.steps=480000

The run writes below --run-dir: config.yaml, metrics.jsonl, checkpoints/, export/ (weights in the released format) and
facts.json. If the directory holds a run, training continues from its newest whole checkpoint, with the samples and
losses of a run that never stopped.

Exit codes: 85 after a stop request (SIGTERM, SIGUSR2, SIGHUP, Ctrl-C, the end of the job or of --time-limit), with all
ranks saved at the same step; a second Ctrl-C ends at once. 86 when a rank or a data worker is lost or stalls, and the
others name it; 87 when the features collapse and guard.action=stop. docs/training_faults.md lists all codes.
"""

import argparse
import errno
import logging
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist

from data.stream.corpora import read_corpora
from data.stream.workers import start_server
from distributed.build import build_parts
from distributed.engine.engine import prepare_deepspeed
from distributed.engine.gather import whole_model
from distributed.experiment import Experiment, check, load_experiment, preset_names, with_corpora, with_precision
from distributed.processes.collectives import SupersededError, agreed_precision
from distributed.processes.process import keep_freed_memory
from distributed.processes.stop import EXIT_CODE_REQUEUE, StopRequest, end_of_time_s
from distributed.processes.topology import choose_device, discover, exported, process_group, usable_gpus
from distributed.processes.watchdog import END, watchdog_of
from distributed.run.directory import RunDirectory, write_json
from distributed.run.log import configure_logging
from distributed.run.wandb import FAILED, FINISHED, STOPPED
from distributed.sessions.continue_run import (
    SameRun,
    begin_generation,
    open_checkpoints,
    require_disk_space,
)
from distributed.sessions.cooldown import adopt_checkpoint, branch_experiment
from distributed.sessions.export import write_release
from distributed.sessions.facts import write_facts
from distributed.sessions.history import begin_session
from distributed.sessions.session import Session
from distributed.trainer import Ending, Parts, Trainer
from distributed.watch.alarms import ALARMS_FOLDER, EXIT_CODE_COLLAPSED
from pupujepa.errors import UserError
from pupujepa.front_door import drop_lost_output
from pupujepa.precision import warn_of_emulation

_OF_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}
_OF_DISK |= {errno.EMFILE, errno.ENFILE}
# wandb shows a run that the guard stopped among the failed ones, not among those to continue
_OUTCOMES: dict[Ending | None, str] = {Ending.FINISHED: FINISHED, Ending.STOPPED: STOPPED}

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line of `train`."""
    parser.add_argument(
        "--preset",
        action="append",
        default=[],
        metavar="NAME",
        help=f"recipe: {', '.join(preset_names())}, or a YAML file; may be given several times",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="a whole experiment, such as another run's config.yaml"
    )
    parser.add_argument("--run-dir", type=Path, help="run directory (default: runs/<last preset>)")
    parser.add_argument(
        "--cooldown-from",
        metavar="RUN[:STEP]",
        help="start a cooldown branch at a checkpoint of another run (default: its newest)",
    )
    parser.add_argument(
        "--time-limit",
        metavar="H:M:S",
        help="save and exit with code 85 before this time is over; under SLURM also before the job ends",
    )
    parser.add_argument("--fresh", action="store_true", help="start a new run; refuse a directory that holds one")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="dotted overrides, and model=NAME")


def run(args: argparse.Namespace) -> int:
    """Trains; returns 0 for a finished run, 85 after a stop request, 87 when the guard stopped the run."""
    ends_s = end_of_time_s(os.environ, time_limit=args.time_limit, now_s=time.time())
    topology = discover(os.environ)
    configure_logging(rank=topology.rank)
    directory = RunDirectory(args.run_dir or Path("runs") / (Path(args.preset[-1]).stem if args.preset else "run"))
    experiment = compose_experiment(args, directory)
    sizes = check(experiment, world_size=topology.world_size)
    device = choose_device(topology, cuda_devices=usable_gpus(os.environ))
    if device.type == "cpu":
        keep_freed_memory(os.environ)
    corpora = read_corpora(experiment.stream)
    experiment = with_corpora(experiment, corpora)
    # a refusal before the slow start; the lock below decides
    same_run = SameRun(directory, experiment, fresh=args.fresh)
    experiment = same_run.check()
    if experiment.stream.workers:
        start_server()  # its slow imports overlap with those of DeepSpeed
    prepare_deepspeed(os.environ, device=device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with ExitStack() as stack:
        stack.callback(drop_lost_output)
        stop = stack.enter_context(StopRequest(ends_s=ends_s))
        stack.enter_context(exported(os.environ, topology))
        timeout_s = experiment.engine.timeout_s
        stack.enter_context(process_group(topology, timeout_s=timeout_s, device=device))
        experiment = same_run.lock(stack)
        experiment = with_precision(experiment, agreed_precision(experiment.engine.precision, device))
        if topology.local_rank == 0:
            warn_of_emulation(experiment.engine.precision, device)
        session = Session(experiment, sizes, topology, device, corpora, directory)
        watchdog = watchdog_of(
            directory.root, topology, session.whereabouts, limits=experiment.faults.limits(timeout_s)
        )
        stack.enter_context(watchdog)
        # every rank has written its first heartbeat
        dist.barrier()
        try:
            with disk_errors_in_words(directory):
                return train(session, stop)
        except RuntimeError as error:
            watchdog.explain(error)
            raise


@contextmanager
def disk_errors_in_words(directory: RunDirectory) -> Iterator[None]:
    """Raises UserError for an OSError of a disk or of rights, which a user can mend."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_DISK:
            raise
        raise UserError(
            f"{error.filename or directory.root}: {error.strerror}, so the training ended; free space or repair it, "
            f"and the same command continues from the newest checkpoint"
        ) from error


def compose_experiment(args: argparse.Namespace, directory: RunDirectory) -> Experiment:
    """Composes the experiment from the command line.

    Raises:
        UserError: --cooldown-from without --run-dir, or with --preset or --config.
    """
    if not args.cooldown_from:
        return load_experiment(args.preset, file=args.config, overrides=args.overrides)
    if args.run_dir is None or args.preset or args.config:
        raise UserError(
            f"--cooldown-from {args.cooldown_from} takes its settings from that run and writes a new run; give "
            f"--run-dir, and neither --preset nor --config"
        )
    return branch_experiment(args.cooldown_from, directory, overrides=args.overrides)


def train(session: Session, stop: StopRequest) -> int:
    """Runs one session of a run, with the process group up and the run directory locked."""
    experiment, directory, topology = session.experiment, session.directory, session.topology
    store = open_checkpoints(session)
    adopt_checkpoint(session, store)
    found = store.newest_whole()
    first_step = found.step if found else 0
    if found and first_step == experiment.train.steps and directory.facts.exists():
        logger.info("%s is finished: all %d steps are trained; nothing to do", directory.root, first_step)
        return 0
    begin_generation(session, store)
    if topology.is_first:
        begin_session(session, found, refused=store.refused)
    parts = build_parts(session, store, found)
    require_disk_space(session, store, parts.step)
    trainer = Trainer(experiment, parts, first_step=first_step)
    with SessionEnd(trainer, directory.root) as end, disk_errors_in_words(directory):
        try:
            end.ending = ending = trainer.run(stop)
        except SystemExit as error:  # exit code 0 would say that the run is finished
            raise RuntimeError(f"a library ended the training with exit code {error.code!r}") from error
        session.whereabouts.at(END, trainer.step)
        if ending is Ending.FINISHED:
            export_weights(session, parts)
            write_facts(session, parts)
    if ending is Ending.COLLAPSED:
        logger.error(
            "the guard stopped the run at step %d (guard.action=stop; the alarm is above, its snapshot in %s); "
            "guard.action=snapshot lets the same command continue (exit code %d)",
            trainer.step,
            directory.root / ALARMS_FOLDER,
            EXIT_CODE_COLLAPSED,
        )
        return EXIT_CODE_COLLAPSED
    if ending is Ending.STOPPED:
        logger.warning(
            "saved at step %d; the same command continues from there (exit code %d)", trainer.step, EXIT_CODE_REQUEUE
        )
        return EXIT_CODE_REQUEUE
    logger.info("finished %d steps; weights are in %s", trainer.step, directory.export)
    return 0


class SessionEnd(AbstractContextManager["SessionEnd"]):
    """Closes the log with the outcome of the session; if it fails, writes a record per rank.

    A failed session cannot sum over ranks. So each rank writes RUN/failed-step-S-rank-R.json: the unfinished step, the
    error, and the counts of its stream since the last row.

    Attributes:
        ending: set inside the block; None counts as a failure.
    """

    def __init__(self, trainer: Trainer, run_root: Path):
        self._trainer, self._run_root = trainer, run_root
        self.ending: Ending | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._trainer.whereabouts.fail(error)  # the watchdog tells the others while this rank closes its log
        # a superseded process must not write to the run directory
        if error is not None and not isinstance(error, SupersededError):
            _write_failure(self._trainer, self._run_root, error)
        outcome = FAILED if error is not None else _OUTCOMES.get(self.ending, FAILED)
        self._trainer.log.close(outcome)


def _write_failure(trainer: Trainer, run_root: Path, error: BaseException) -> None:
    rank = trainer.topology.rank
    path = run_root / f"failed-step-{trainer.step:07d}-rank-{rank}.json"
    record = {"step": trainer.step, "rank": rank, "error": f"{type(error).__name__}: {error}"}
    try:
        write_json(path, record | trainer.log.unsaid_counts())
    except OSError as failure:
        # this error must not hide the one that ended the session
        logger.warning("%s could not be written: %s", path, failure)


def export_weights(session: Session, parts: Parts) -> None:
    """Writes the last weights to RUN/export in the released format; all ranks call it together."""
    model = whole_model(parts.step, parts.model)
    last = parts.checkpoints.last
    assert last is not None, "the last step was saved before the export"
    if session.topology.is_first:
        write_release(model, session.directory.export, checkpoint=last)

"""The records of a run's sessions, and the precision that a run keeps."""

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distributed.checkpoints.manifest import Checkpoint
from distributed.engine.engine import EngineConfig
from distributed.experiment import Experiment, with_precision
from distributed.run.directory import RunDirectory, read_sessions, write_atomically, write_json
from distributed.run.wandb import scrubbed_command
from distributed.sessions.session import Session
from pupujepa.config import from_yaml, to_yaml
from pupujepa.precision import AUTO, ChosenPrecision

logger = logging.getLogger(__name__)


def keep_precision(directory: RunDirectory, experiment: Experiment) -> Experiment:
    """Returns the experiment with "auto" replaced by the precision of the run's first start.

    A new branch has the precision of its parent. A run that resumes on another processor must round as before, or its
    losses would differ from a straight run.
    """
    engine, begun = experiment.engine, _engine_begun_with(directory, experiment)
    if begun is not None and engine.precision == AUTO:
        return with_precision(experiment, ChosenPrecision(begun.precision, begun.precision_reason))
    # the reason in another run's config.yaml may be wrong here
    reason = begun.precision_reason if begun is not None and begun.precision == engine.precision else ""
    return replace(experiment, engine=replace(engine, precision_reason=reason))


def _engine_begun_with(directory: RunDirectory, experiment: Experiment) -> EngineConfig | None:
    """Returns the engine settings of the run in this directory or, for a new branch, of its parent."""
    places = [directory, *([RunDirectory(Path(experiment.branch.parent))] if experiment.branch.step else [])]
    return next((from_yaml(Experiment, p.config).engine for p in places if p.config.is_file()), None)


def begin_session(session: Session, found: Checkpoint | None, *, refused: Sequence[str] = ()) -> None:
    """Records and logs the start of a session from `found`; for rank 0 alone.

    Args:
        refused: damage of the checkpoints newer than `found`.
    """
    directory, experiment = session.directory, session.experiment
    sessions = read_sessions(directory)
    if not sessions and directory.history.exists():  # damaged
        directory.history.rename(f"{directory.history}.damaged-{time.time():.0f}")
    write_atomically(directory.config, to_yaml(experiment))
    started: dict[str, Any] = {
        "step": found.step if found else 0,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "ranks": session.topology.world_size,
        "zero_stage": experiment.engine.zero_stage,
        "command": scrubbed_command(sys.argv[1:]),
    }
    if refused:
        started["refused"] = list(refused)
    if found and experiment.branch.step and not sessions:
        parent = {"run": experiment.branch.parent, "checkpoint": found.name, "digest": found.digest}
        started["branched_from"] = parent
    write_json(directory.history, [*sessions, started])
    if found:
        logger.info("continuing %s from %s, of %d steps", directory.root, found.name, experiment.train.steps)
    elif sessions:
        logger.info("%s was stopped before its first checkpoint: beginning again at step 0", directory.root)
    else:
        logger.info("new run in %s: %d steps", directory.root, experiment.train.steps)
    logger.info(
        "%d rank(s) on %s, ZeRO stage %d, %s%s; global batch %d = %d x %d accumulation x %d ranks",
        session.topology.world_size,
        session.device,
        experiment.engine.zero_stage,
        experiment.engine.precision,
        f" ({experiment.engine.precision_reason})" if experiment.engine.precision_reason else "",
        session.sizes.global_batch,
        session.sizes.micro_batch,
        session.sizes.accumulation,
        session.topology.world_size,
    )

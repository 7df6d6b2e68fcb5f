"""Builds the parts of a training session in the order in which they depend on each other."""

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from data.stream import Stream
from distributed.agreement import ranks_of_node
from distributed.checkpoint import Checkpoint, CheckpointStore
from distributed.engine import deepspeed_json, settle_kernels, start_engine, update_on_host_by_fused_kernel
from distributed.fencing import Fence, FencedSink
from distributed.guard import CollapseGuard
from distributed.pace import Yardstick, peak_flops_of, yardstick
from distributed.probe_config import ProbeConfig
from distributed.probe_set import ProbeSet, read_probe_set
from distributed.reshard import load_engine
from distributed.rollback import Rollback, read_rollbacks
from distributed.run_directory import write_json
from distributed.session import Session
from distributed.session_state import read_state
from distributed.teacher import Teacher
from distributed.telemetry import Sink, open_sinks, read_metrics
from distributed.trainer import Parts
from pupujepa.cost import count_parameters
from pupujepa.frontend import FrontendConfig
from pupujepa.model import PupuJEPA
from pupujepa.objective import TrainingStep
from pupujepa.precision import PRECISIONS

if TYPE_CHECKING:
    from distributed.in_loop_probe import InLoopProbe

logger = logging.getLogger(__name__)


def build_parts(session: Session, store: CheckpointStore, found: Checkpoint | None) -> Parts:
    """Builds everything and, if there is a checkpoint, puts it where the checkpoint left it."""
    experiment = session.experiment
    settle_kernels(os.environ, experiment.engine)
    model, step = _build_model(session)
    # before anything is loaded: it remembers the first weights
    teacher = _build_teacher(session, step)
    stream = _build_stream(session)
    num_trained = count_parameters(experiment.model).trained
    ds_config = deepspeed_json(experiment.engine, experiment.optimizer, session.sizes, num_trained=num_trained)
    if session.topology.is_first:
        write_json(session.directory.deepspeed, ds_config)
    engine = start_engine(step, experiment.engine, experiment.optimizer, ds_config=ds_config)
    if found:
        load_engine(engine, found)
        read_state(found.path, rank=session.topology.rank, stream=stream, teacher=teacher)
    update_on_host_by_fused_kernel(engine, experiment.engine)
    first_step = found.step if found else 0
    rollbacks = read_rollbacks(found.path) if found else ()
    return Parts(
        topology=session.topology,
        device=session.device,
        engine=engine,
        step=step,
        model=model,
        teacher=teacher,
        stream=stream,
        store=store,
        probes=_read_probes(session),
        sinks=_open_sinks(session, first_step, fence=store.fence),
        yardstick=_build_yardstick(session),
        guard=_warm_guard(session, first_step, rollbacks),
        rollbacks=rollbacks,
        quality=_build_quality(session),
    )


def _build_model(session: Session) -> tuple[PupuJEPA, TrainingStep]:
    experiment = session.experiment
    frontend = FrontendConfig(**session.corpora.frontend)
    model = PupuJEPA(experiment.model, seed=experiment.train.seed, frontend=frontend).to(session.device)
    step = TrainingStep(
        model,
        experiment.objective,
        PRECISIONS[experiment.engine.precision],
        activation_checkpointing=experiment.engine.activation_checkpointing,
    )
    return model, step


def _build_teacher(session: Session, step: TrainingStep) -> Teacher:
    if not session.experiment.engine.teacher_is_sharded:
        return Teacher(step)
    return Teacher(step, rank=session.topology.rank, world_size=session.topology.world_size)


def _build_stream(session: Session) -> Stream:
    experiment = session.experiment
    return Stream(
        experiment.stream,
        manifest=session.corpora,
        rank=session.topology.rank,
        world_size=session.topology.world_size,
        micro_batch=session.sizes.micro_batch,
        ranks_of_node=ranks_of_node(),
        masks=experiment.masks,
        total_steps=experiment.train.steps,
        horizon_steps=experiment.horizon_steps,
        patch_frames=experiment.model.patch_frames,
        patch_bands=experiment.model.patch_bands,
        pin_memory=session.device.type == "cuda",
    )


def _read_probes(session: Session) -> ProbeSet | None:
    experiment = session.experiment
    if not experiment.diagnostics.every:
        return None
    shape = (experiment.diagnostics.clips, experiment.diagnostics.crops_per_clip)
    seed, corpora = experiment.stream.seed, session.corpora
    probes = read_probe_set(corpora, seed=seed, model=experiment.model, masks=experiment.masks, shape=shape)
    return probes.to(session.device)


def _build_quality(session: Session) -> "InLoopProbe | None":
    experiment = session.experiment
    if not experiment.probe.interval(experiment.train.steps):
        if session.topology.is_first:
            warn_of_missing_data(experiment.probe)
        return None
    # here, since the probes' libraries (scikit-learn, mir_eval) take as long to import as torch, on every rank
    from distributed.in_loop_probe import InLoopProbe

    return InLoopProbe(
        experiment.probe,
        topology=session.topology,
        device=session.device,
        precision=experiment.engine.precision,
        run_root=session.directory.root,
    )


def warn_of_missing_data(probe: ProbeConfig) -> None:
    """Says that a run which is to be probed will not be, because there is nothing to probe it on."""
    if probe.every_fraction and not probe.data:
        logger.warning(
            "no curve of quality: probe.data is not set; make a labelled corpus with `python -m data scores DIR` and "
            "set probe.data=DIR"
        )


def _build_yardstick(session: Session) -> Yardstick:
    experiment, device = session.experiment, session.device
    peak_flops = peak_flops_of(
        torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        precision=experiment.engine.precision,
        given_tflops=experiment.telemetry.peak_tflops,
    )
    return yardstick(
        experiment.model,
        experiment.masks,
        experiment.objective,
        frontend=FrontendConfig(**session.corpora.frontend),
        global_batch=session.sizes.global_batch,
        peak_flops=peak_flops * session.topology.world_size,
    )


def _open_sinks(session: Session, first_step: int, *, fence: Fence | None) -> list[Sink]:
    if not session.topology.is_first:
        return []
    experiment = session.experiment
    steps = (first_step, experiment.train.steps)
    sinks = open_sinks(session.directory, experiment.telemetry, steps=steps, settings=asdict(experiment))
    # first, so that a leftover of an older start writes to none of them
    return [FencedSink(fence), *sinks] if fence else sinks


def _warm_guard(session: Session, first_step: int, rollbacks: Sequence[Rollback]) -> CollapseGuard:
    """A guard that knows the rows of earlier sessions; what they gave rise to was said then."""
    guard = CollapseGuard(session.experiment.guard, total_steps=session.experiment.train.steps)
    begun_again = {rollback.step for rollback in rollbacks}
    if session.topology.is_first and first_step:
        for row in read_metrics(session.directory.metrics):
            guard.observe(row)
            if row["step"] in begun_again and "diag/effective_rank_teacher" in row:
                guard.begin_again(row["step"])
    return guard

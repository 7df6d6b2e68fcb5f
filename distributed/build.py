"""Builds the parts of a training session, in the order of their dependences."""

import logging
import os
from dataclasses import asdict

import torch

from data.stream.stream import Stream
from distributed.checkpoints.fencing import FencedSink
from distributed.checkpoints.manifest import Checkpoint
from distributed.checkpoints.reshard import load_engine
from distributed.checkpoints.state import Checkpoints, read_state
from distributed.checkpoints.store import CheckpointStore
from distributed.engine.engine import deepspeed_json, settle_kernels, start_engine, update_on_host_by_fused_kernel
from distributed.engine.teacher import Teacher
from distributed.processes.collectives import ranks_of_node
from distributed.run.directory import write_json
from distributed.run.log import RunLog, Sink, open_sinks, read_metrics
from distributed.run.speed import Yardstick, peak_flops_of, yardstick
from distributed.sessions.session import Session
from distributed.trainer import Parts
from distributed.watch.alarms import Alarms
from distributed.watch.config import ProbeConfig
from distributed.watch.faulty_steps import FaultySteps
from distributed.watch.fixed_crops import FixedCrops, read_fixed_crops
from distributed.watch.guard import CollapseGuard
from distributed.watch.watch import LinearProbes, Watch
from pupujepa.audio.log_mel import FrontendConfig
from pupujepa.config import to_yaml
from pupujepa.cost.cost import count_parameters
from pupujepa.model.model import PupuJEPA
from pupujepa.precision import PRECISIONS
from pupujepa.training.objective import TrainingStep

logger = logging.getLogger(__name__)


def build_parts(session: Session, store: CheckpointStore, found: Checkpoint | None) -> Parts:
    """Builds all parts and loads the checkpoint into them, if there is one; all ranks call it together."""
    experiment = session.experiment
    settle_kernels(os.environ, experiment.engine)
    model, step = _build_model(session)
    # before the checkpoint is loaded: the teacher remembers its first weights
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
    checkpoints = Checkpoints(
        store, engine, teacher, stream, to_yaml(experiment), experiment.engine.zero_stage, session.whereabouts
    )
    log, alarms = _build_log(session, stream, checkpoints, first_step=found.step if found else 0)
    watch = Watch(
        step=step,
        model=model,
        teacher=teacher,
        log=log,
        alarms=alarms,
        whereabouts=session.whereabouts,
        diagnostics=experiment.diagnostics,
        probe=experiment.probe,
        fixed_crops=_read_fixed_crops(session),
        linear_probes=_build_linear_probes(session),
        total_steps=experiment.train.steps,
        steps_per_epoch=stream.steps_per_epoch,
    )
    faulty = FaultySteps(experiment.faults, session.directory.root, rank=session.topology.rank)
    return Parts(
        topology=session.topology,
        device=session.device,
        engine=engine,
        step=step,
        model=model,
        teacher=teacher,
        stream=stream,
        checkpoints=checkpoints,
        watch=watch,
        log=log,
        faulty=faulty,
        whereabouts=session.whereabouts,
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


def _read_fixed_crops(session: Session) -> FixedCrops | None:
    experiment = session.experiment
    if not experiment.diagnostics.every:
        return None
    shape = (experiment.diagnostics.clips, experiment.diagnostics.crops_per_clip)
    seed, corpora = experiment.stream.seed, session.corpora
    crops = read_fixed_crops(corpora, seed=seed, model=experiment.model, masks=experiment.masks, shape=shape)
    return crops.to(session.device)


def _build_linear_probes(session: Session) -> LinearProbes | None:
    experiment = session.experiment
    if not experiment.probe.interval(experiment.train.steps):
        if session.topology.is_first:
            warn_of_missing_data(experiment.probe)
        return None
    # imported here: scikit-learn and mir_eval take as long to import as torch, on every rank
    from distributed.watch.probes import InLoopProbe

    return InLoopProbe(
        experiment.probe,
        topology=session.topology,
        device=session.device,
        precision=experiment.engine.precision,
        run_root=session.directory.root,
    )


def warn_of_missing_data(probe: ProbeConfig) -> None:
    """Warns if the configuration wants linear probes but names no labelled corpus."""
    if probe.every_fraction and not probe.data:
        logger.warning(
            "no linear probes: probe.data is not set; make a labelled corpus with `python -m data scores DIR` and set "
            "probe.data=DIR"
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


def _build_log(session: Session, stream: Stream, checkpoints: Checkpoints, *, first_step: int) -> tuple[RunLog, Alarms]:
    """Returns the log of the run and the alarms that read its rows; only rank 0 has sinks."""
    experiment, topology = session.experiment, session.topology
    guard = CollapseGuard(experiment.guard, total_steps=experiment.train.steps)
    alarms = Alarms(guard, checkpoints, topology=topology, run_root=session.directory.root)
    sinks: list[Sink] = []
    if topology.is_first:
        steps = (experiment.branch.step, first_step, experiment.train.steps)
        # drops the rows that will be trained again, before the guard reads the rest
        sinks = open_sinks(session.directory, experiment.telemetry, steps=steps, settings=asdict(experiment))
        for row in read_metrics(session.directory.metrics):
            guard.observe(row)  # rows of earlier sessions, which gave their alarms then
        # the fence is first, so a superseded process writes to no other sink
        sinks = [*([FencedSink(checkpoints.store.fence)] if checkpoints.store.fence else []), *sinks, alarms]
    log = RunLog(
        sinks,
        stream=stream,
        device=session.device,
        yardstick=_build_yardstick(session),
        every=experiment.telemetry.log_every,
        total_steps=experiment.train.steps,
    )
    return log, alarms

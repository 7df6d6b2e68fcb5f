"""Builds the parts of a training session in the order in which they depend on each other."""

from dataclasses import asdict

from data.stream import Stream
from distributed.checkpoint import Checkpoint, CheckpointStore
from distributed.engine import PRECISIONS, deepspeed_json, start_engine
from distributed.guard import CollapseGuard
from distributed.probe_set import ProbeSet, read_probe_set
from distributed.reshard import load_engine, loadable
from distributed.session import Session
from distributed.session_state import read_state
from distributed.teacher import Teacher
from distributed.telemetry import Sink, open_sinks, read_metrics
from distributed.trainer import Parts
from pupujepa.frontend import FrontendConfig
from pupujepa.model import PupuJEPA
from pupujepa.objective import TrainingStep


def build_parts(session: Session, store: CheckpointStore, found: Checkpoint | None) -> Parts:
    """Builds everything and, if there is a checkpoint, puts it where the checkpoint left it."""
    experiment = session.experiment
    model, step = _build_model(session)
    # before anything is loaded: it remembers the first weights
    teacher = Teacher(step)
    stream = _build_stream(session)
    source = loadable(found, session) if found else None
    ds_config = deepspeed_json(experiment.engine, experiment.optimizer, session.sizes)
    engine = start_engine(step, experiment.optimizer, ds_config | (source.ds_config if source else {}))
    if found and source:
        load_engine(engine, source, session)
        read_state(found.path, rank=session.topology.rank, stream=stream, teacher=teacher)
    first_step = found.step if found else 0
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
        sinks=_open_sinks(session, first_step),
        guard=_warm_guard(session, first_step),
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


def _build_stream(session: Session) -> Stream:
    experiment = session.experiment
    return Stream(
        experiment.stream,
        manifest=session.corpora,
        rank=session.topology.rank,
        world_size=session.topology.world_size,
        micro_batch=session.sizes.micro_batch,
        masks=experiment.masks,
        total_steps=experiment.train.steps,
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


def _open_sinks(session: Session, first_step: int) -> list[Sink]:
    if not session.topology.is_first:
        return []
    experiment = session.experiment
    steps = (first_step, experiment.train.steps)
    return open_sinks(session.directory, experiment.telemetry, steps=steps, settings=asdict(experiment))


def _warm_guard(session: Session, first_step: int) -> CollapseGuard:
    """A guard that knows the rows of earlier sessions; what they gave rise to was said then."""
    guard = CollapseGuard()
    if session.topology.is_first and first_step:
        for row in read_metrics(session.directory.metrics):
            guard.observe(row)
    return guard

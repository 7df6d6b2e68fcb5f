"""The reference of the engine: the same training as a plain torch loop in this process, without DeepSpeed or ranks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from data.stream.corpora import read_corpora
from data.stream.stream import Stream
from distributed.engine.engine import parameter_groups
from distributed.experiment import load_experiment, with_corpora
from pupujepa.audio.log_mel import FrontendConfig
from pupujepa.model.model import PupuJEPA
from pupujepa.precision import PRECISIONS
from pupujepa.training.ema import ema_momentum, update_ema
from pupujepa.training.objective import TrainingStep, teacher_pairs
from pupujepa.training.schedules import learning_rate
from tests.distributed.launch import PRESET


@dataclass(frozen=True)
class Plain:
    """What the loop logged and left: a loss, a gradient norm and the teacher's relative move per step; the teacher."""

    losses: list[float]
    grad_norms: list[float]
    teacher: dict[str, Tensor]


def train_plainly(url: str, *overrides: str) -> Plain:
    """Trains the tests' preset on `url`; float32 parameters, one batch a step, torch's AdamW, clipping and average."""
    asked = load_experiment([str(PRESET)], overrides=[f"stream.url={url}", *overrides])
    corpora = read_corpora(asked.stream)
    experiment = with_corpora(asked, corpora)
    frontend = FrontendConfig(**corpora.frontend)
    model = PupuJEPA(experiment.model, seed=experiment.train.seed, frontend=frontend)
    step = TrainingStep(model, experiment.objective, PRECISIONS[experiment.engine.precision])
    settings = experiment.optimizer
    optimizer = torch.optim.AdamW(
        parameter_groups(step, settings.weight_decay), betas=(settings.beta1, settings.beta2), eps=settings.epsilon
    )
    _, teachers, students = zip(*teacher_pairs(step))
    losses, grad_norms, total = [], [], experiment.train.steps
    for batch in stream_of(experiment, corpora):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(batch.step, total, experiment.schedule)
        loss, _ = step(batch.mel(), batch.context, batch.target)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(step.parameters(), settings.clip_norm)
        optimizer.step()
        momentum = ema_momentum(batch.step, total, experiment.ema)
        update_ema([t.data for t in teachers], [s.data for s in students], momentum)
        losses.append(loss.item())
        grad_norms.append(norm.item())
    return Plain(losses, grad_norms, {name: t.detach().clone() for name, t in step.teacher.named_parameters()})


def stream_of(experiment, corpora) -> Stream:
    """The whole global batch at every step, on one rank."""
    return Stream(
        experiment.stream,
        manifest=corpora,
        rank=0,
        world_size=1,
        micro_batch=experiment.stream.global_batch,
        masks=experiment.masks,
        total_steps=experiment.train.steps,
        patch_frames=experiment.model.patch_frames,
        patch_bands=experiment.model.patch_bands,
    )

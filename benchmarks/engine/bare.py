"""Engines on synthetic batches: the trainer's, and a bare torch loop with the same arithmetic."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distributed.engine.engine import (
    batch_sizes,
    deepspeed_json,
    parameter_groups,
    set_learning_rate,
    start_engine,
    update_on_host_by_fused_kernel,
)
from distributed.engine.teacher import Teacher
from distributed.experiment import Experiment, load_experiment
from distributed.processes.topology import Topology
from pupujepa.cost.cost import count_parameters
from pupujepa.model.model import PupuJEPA
from pupujepa.precision import autocast_dtype
from pupujepa.training.ema import update_ema
from pupujepa.training.masks import num_context, num_targets
from pupujepa.training.objective import TrainingStep, teacher_pairs

RATE, MOMENTUM = 1e-4, 0.999


@dataclass(frozen=True)
class Inputs:
    """A micro-batch: mel [B, T, F], context [B, K], target [B, M]."""

    mel_BTF: Tensor
    context_BK: Tensor
    target_BM: Tensor

    def __iter__(self):
        return iter((self.mel_BTF, self.context_BK, self.target_BM))


def experiment_of(settings: dict[str, Any], *, ranks: int) -> Experiment:
    """Returns the experiment of {"preset", "overrides"}; global batch = micro-batch x ranks."""
    experiment = load_experiment([settings["preset"]], overrides=settings["overrides"])
    batch = max(experiment.engine.micro_batch, 1) * ranks
    overrides = [*settings["overrides"], f"stream.global_batch={batch}"]
    return load_experiment([settings["preset"]], overrides=overrides)


def inputs_of(experiment: Experiment, *, crops: int, device: torch.device) -> Inputs:
    """Draws noise and random masks, the same for the same shapes."""
    config = experiment.model
    random = torch.Generator().manual_seed(0)
    mel_BTF = torch.randn(crops, config.crop_frames, config.mel_bands, generator=random)
    order_BN = torch.stack([torch.randperm(config.num_patches, generator=random) for _ in range(crops)])
    seen, hidden = num_context(experiment.masks, config.num_patches), num_targets(experiment.masks, config.num_patches)
    context_BK, target_BM = (x.sort().values for x in (order_BN[:, :seen], order_BN[:, seen : seen + hidden]))
    return Inputs(mel_BTF.to(device), context_BK.to(device), target_BM.to(device))


class OurEngine:
    """The training step under DeepSpeed with its teacher, as distributed/build.py makes them."""

    def __init__(self, experiment: Experiment, topology: Topology, device: torch.device):
        engine, ranks = experiment.engine, topology.world_size
        sizes = batch_sizes(experiment.stream.global_batch, micro_batch=engine.micro_batch, world_size=ranks)
        self.step = training_step(experiment, device)
        in_parts = {"rank": topology.rank, "world_size": ranks} if engine.teacher_is_sharded else {}
        self.teacher = Teacher(self.step, **in_parts)
        num_trained = count_parameters(experiment.model).trained
        ds_config = deepspeed_json(engine, experiment.optimizer, sizes, num_trained=num_trained)
        self.engine = start_engine(self.step, engine, experiment.optimizer, ds_config=ds_config)
        update_on_host_by_fused_kernel(self.engine, engine)

    def forward(self, inputs: Inputs) -> Tensor:
        """Returns the loss."""
        loss, _ = self.engine(*inputs)
        return loss

    def set_rate(self) -> None:
        """Sets the learning rate, before each step."""
        set_learning_rate(self.engine, RATE)

    def apply(self) -> None:
        """Updates the weights, as the trainer does after the last backward pass of a step."""
        self.engine.step()

    def update(self, inputs: Inputs) -> None:
        """Runs one whole step."""
        self.set_rate()
        self.engine.backward(self.forward(inputs))
        self.apply()
        self.teacher.follow(MOMENTUM)


def bare_loop(
    experiment: Experiment, device: torch.device, *, ranks: int, fused: bool | None = None
) -> Callable[[Inputs], None]:
    """Returns the step of a plain loop: forward, backward, clip, AdamW, teacher; DDP on several ranks.

    Args:
        fused: AdamW's kernel; None is torch's choice, on a CPU a loop over tensors.
    """
    step = training_step(experiment, device)
    module: nn.Module = nn.parallel.DistributedDataParallel(step) if ranks > 1 else step
    optimizer = torch.optim.AdamW(
        parameter_groups(step, experiment.optimizer.weight_decay),
        lr=RATE,
        betas=(experiment.optimizer.beta1, experiment.optimizer.beta2),
        eps=experiment.optimizer.epsilon,
        fused=fused,
    )
    parameters = list(step.parameters())
    pairs = teacher_pairs(step)
    teachers, students = [t.data for _, t, _ in pairs], [s.data for _, _, s in pairs]

    def update(inputs: Inputs) -> None:
        loss, _ = module(*inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, experiment.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        update_ema(teachers, students, MOMENTUM)

    return update


def training_step(experiment: Experiment, device: torch.device) -> TrainingStep:
    """Builds model and step from the experiment's seed."""
    model = PupuJEPA(experiment.model, seed=experiment.train.seed).to(device)
    engine = experiment.engine
    return TrainingStep(
        model,
        experiment.objective,
        autocast_dtype(engine.precision, device),
        activation_checkpointing=engine.activation_checkpointing,
    )

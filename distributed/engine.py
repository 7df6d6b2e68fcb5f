"""The DeepSpeed engine: its JSON generated from our configuration, parameter groups, and the full weights on demand.

Parameters stay float32 and bf16 is autocast inside the training step, so gradients, optimiser states and the teacher's
source are float32 under every ZeRO stage, and there is no gradient scaler. `overlap_comm` stays off: with contiguous
gradients it has a known stream race that gives NaN from the first step.
"""

from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pupujepa.errors import UserError, require_known
from pupujepa.model import MASK_TOKEN
from pupujepa.positions import POSITION_TABLE

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
MAX_ZERO_STAGE = 3
# parameters gathered at once under stage 3: 64 MiB of float32
GATHER_ELEMENTS = 1 << 24
# by the last part of their names: vectors that are added, not maps that are multiplied
NOT_DECAYED = (MASK_TOKEN, POSITION_TABLE)


@dataclass(frozen=True)
class EngineConfig:
    """How the training step is spread over processes.

    zero_stage: 0 replicates all; 1 shards optimiser states; 2 gradients too; 3 parameters too. 1 costs no more
        communication than 0 and is enough below three billion parameters on 80 GB.
    precision: "bf16" or "fp32", of the computation; parameters and optimiser are float32 in both.
    micro_batch: crops per rank and forward pass; 0 takes the rank's whole part of the global batch. The global batch
        stays fixed by accumulation.
    activation_checkpointing: recompute blocks in the backward pass; less memory, about a third more time.
    timeout_s: how long ranks wait for each other before a collective fails.
    """

    zero_stage: int = 1
    precision: str = "bf16"
    micro_batch: int = 0
    activation_checkpointing: bool = False
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        if not 0 <= self.zero_stage <= MAX_ZERO_STAGE:
            raise UserError(f"engine.zero_stage={self.zero_stage} does not exist; choose 0, 1, 2 or 3")
        require_known("engine.precision", self.precision, PRECISIONS)
        if self.micro_batch < 0:
            raise UserError(f"engine.micro_batch={self.micro_batch} must be 0 (all at once) or a number of crops")
        if self.timeout_s <= 0:
            raise UserError(f"engine.timeout_s={self.timeout_s} must be positive seconds")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. Biases, norms, the mask token and learned positions are not decayed. clip_norm 0 does not clip."""

    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.05
    clip_norm: float = 3.0

    def __post_init__(self) -> None:
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise UserError(f"optimizer betas {self.beta1} and {self.beta2} must lie in [0, 1)")
        if self.epsilon <= 0 or self.weight_decay < 0 or self.clip_norm < 0:
            raise UserError("optimizer.epsilon must be positive; weight_decay and clip_norm must not be negative")


@dataclass(frozen=True)
class BatchSizes:
    """The three numbers of a data-parallel step; global_batch = micro_batch * accumulation * world_size."""

    global_batch: int
    micro_batch: int
    accumulation: int


def batch_sizes(global_batch: int, *, micro_batch: int, world_size: int) -> BatchSizes:
    """Splits the global batch, which does not depend on the number of ranks.

    Args:
        micro_batch: 0 takes a rank's whole part.

    Raises:
        UserError: it does not divide.
    """
    per_rank, rest = divmod(global_batch, world_size)
    if rest:
        raise UserError(
            f"stream.global_batch={global_batch} cannot be shared by {world_size} ranks, and the optimisation would "
            f"change with the number of ranks if it were rounded; use a number of ranks that divides it"
        )
    micro_batch = micro_batch or per_rank
    accumulation, rest = divmod(per_rank, micro_batch)
    if rest or not accumulation:
        divisors = [d for d in range(1, per_rank + 1) if per_rank % d == 0 and d <= micro_batch]
        raise UserError(
            f"engine.micro_batch={micro_batch} does not divide the {per_rank} crops that each of {world_size} ranks "
            f"has of a global batch of {global_batch}; use {divisors[-1]}"
        )
    return BatchSizes(global_batch, micro_batch, accumulation)


def deepspeed_json(engine: EngineConfig, optimizer: OptimizerConfig, sizes: BatchSizes) -> dict[str, Any]:
    """The configuration that DeepSpeed is started with; nobody writes it by hand."""
    return {
        "train_batch_size": sizes.global_batch,
        "train_micro_batch_size_per_gpu": sizes.micro_batch,
        "gradient_accumulation_steps": sizes.accumulation,
        "gradient_clipping": optimizer.clip_norm,
        "zero_optimization": {"stage": engine.zero_stage, "overlap_comm": False},
        # the optimiser is torch's AdamW, under stages that DeepSpeed did not test it with
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Splits the trainable parameters into decayed matrices and the rest: biases, norms, mask token, positions."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    plain = [p for name, p in named if p.ndim < 2 or name.rpartition(".")[2] in NOT_DECAYED]
    plain_ids = {id(p) for p in plain}
    return [
        {"params": [p for _, p in named if id(p) not in plain_ids], "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def prepare_deepspeed(environ: MutableMapping[str, str], *, device: torch.device) -> None:
    """Settles what DeepSpeed decides at its import: the accelerator, and that no operator is compiled for CPUs.

    Its shared-memory all-reduce serves inference only. Compiling it takes half a minute and a C++ compiler, and a kill
    during it leaves a lock that stops all later starts.
    """
    environ.setdefault("DS_ACCELERATOR", "cuda" if device.type == "cuda" else "cpu")
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # it logs a page of its configuration per rank at INFO
    deepspeed.utils.logger.setLevel("WARNING")


def start_engine(module: nn.Module, optimizer: OptimizerConfig, ds_config: dict[str, Any]) -> Any:
    """Wraps the training step; the process group is up. Returns a DeepSpeedEngine."""
    import deepspeed

    adamw = torch.optim.AdamW(
        parameter_groups(module, optimizer.weight_decay),
        lr=0.0,  # set before every step
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.epsilon,
    )
    engine, *_ = deepspeed.initialize(model=module, optimizer=adamw, config=ds_config)
    return engine


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    """Writes the rate of the next optimiser step into all groups."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


def gradient_norm(engine: Any) -> float:
    """L2 norm of the averaged gradient before clipping.

    Call it after the backward pass under stage 0, where DeepSpeed does not record it, and else after the step.
    """
    if engine.zero_optimization_stage():
        return float(engine.get_global_grad_norm())
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


@contextmanager
def gathered(parameters: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Makes the full values of `parameters` readable inside the block, also where stage 3 has partitioned them.

    Read only: what is written inside is lost under stage 3. All ranks must enter it together.
    """
    if not any(hasattr(p, "ds_id") for p in parameters):
        yield parameters
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters)):
        yield parameters


def in_buckets(parameters: Sequence[Tensor], elements: int = GATHER_ELEMENTS) -> Iterator[slice]:
    """Yields slices of `parameters` that hold about `elements` numbers, so that gathering needs little memory."""
    start, size = 0, 0
    for index, parameter in enumerate(parameters):
        size += getattr(parameter, "ds_numel", parameter.numel())
        if size >= elements:
            yield slice(start, index + 1)
            start, size = index + 1, 0
    if start < len(parameters):
        yield slice(start, len(parameters))


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """Copies the full parameters of `module` to the CPU, under every stage; all ranks must call it together."""
    named = list(module.named_parameters())
    parameters = [p for _, p in named]
    state = {}
    for bucket in in_buckets(parameters):
        with gathered(parameters[bucket]) as full:
            state.update({name: p.detach().cpu().clone() for (name, _), p in zip(named[bucket], full, strict=True)})
    return state


def sum_over_ranks(values: Iterable[float], *, device: torch.device) -> list[float]:
    """Sums float64 numbers over all ranks, in one operation."""
    total = torch.tensor(list(values), dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return total.tolist()

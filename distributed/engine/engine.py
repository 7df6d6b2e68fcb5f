"""The DeepSpeed engine: its JSON generated from our configuration, parameter groups, and the full weights on demand.

Parameters stay float32 and bf16 is autocast inside the training step, so gradients, optimiser states and the teacher's
source are float32 under every ZeRO stage, and there is no gradient scaler. `overlap_comm` stays off: with contiguous
gradients it has a known stream race that gives NaN from the first step.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from distributed.engine.deepspeed_settings import (
    check_additions,
    leave_muon_uncompiled,
    leave_operators_uncompiled,
    with_additions,
)
from pupujepa.errors import UserError, require_known
from pupujepa.model.model import MASK_TOKEN
from pupujepa.model.positions import POSITION_TABLE
from pupujepa.precision import AUTO, PRECISIONS

ZERO_STAGES = (1, 2, 3)
MAX_ZERO_STAGE = 3
NOT_COMPILED = "none"
COMPILERS = (NOT_COMPILED, "inductor", "aot_eager")
# entries of DeepSpeed's bucket of gradients at most: 200 MB. Longer messages are no faster, and the bucket is allocated
# once and copied once more while it is reduced
REDUCE_ENTRIES = 50_000_000
# by the last part of their names: vectors that are added, not maps that are multiplied
NOT_DECAYED = (MASK_TOKEN, POSITION_TABLE)


@dataclass(frozen=True)
class EngineConfig:
    """How the training step is spread over processes.

    zero_stage: 1 shards optimiser states; 2 gradients too; 3 parameters too. 1 communicates as much as plain data
        parallelism and is enough below three billion parameters on 80 GB; on one rank it shards nothing.
    precision: "bf16" or "fp32", of the computation; parameters and optimiser are float32 in both. "auto" is bf16 where
        every rank's hardware multiplies it, else fp32; the run keeps what its first start chose.
    precision_reason: why "auto" became this precision; written by the first start.
    micro_batch: crops per rank and forward pass; 0 takes the rank's whole part of the global batch. The global batch
        stays fixed by accumulation.
    activation_checkpointing: recompute blocks in the backward pass; less memory, about a third more time.
    offload_optimizer: keep the optimiser's states in the host's memory and update there.
    compile: "none", or what torch.compile makes of the training step: "inductor" compiles kernels, "aot_eager" only
        traces it, to find out which of the two is at fault.
    shard_teacher: each rank keeps a part of the teacher and gathers block by block; null does so under stage 3.
    deterministic: take only kernels that add in a fixed order, so that GPUs give the same bits each time, which a
        resumed run needs to end with those of a straight one. Attention's backward pass is slower. CPUs always do.
    deepspeed: added to DeepSpeed's generated JSON; see distributed/engine/deepspeed_settings.py.
    timeout_s: how long ranks wait for each other before a collective fails.
    """

    zero_stage: int = 1
    precision: str = AUTO
    precision_reason: str = ""
    micro_batch: int = 0
    activation_checkpointing: bool = False
    offload_optimizer: bool = False
    compile: str = NOT_COMPILED
    shard_teacher: bool | None = None
    deterministic: bool = False
    deepspeed: dict[str, Any] = field(default_factory=dict)
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        if self.zero_stage not in ZERO_STAGES:
            raise UserError(f"engine.zero_stage={self.zero_stage} is not supported; choose 1, 2 or 3")
        require_known("engine.precision", self.precision, (AUTO, *PRECISIONS))
        if self.micro_batch < 0:
            raise UserError(f"engine.micro_batch={self.micro_batch} must be 0 (all at once) or a number of crops")
        if self.timeout_s <= 0:
            raise UserError(f"engine.timeout_s={self.timeout_s} must be positive seconds")
        require_known("engine.compile", self.compile, COMPILERS)
        if self.compile != NOT_COMPILED and (self.teacher_is_sharded or self.zero_stage == MAX_ZERO_STAGE):
            raise UserError(
                f"engine.compile={self.compile} does not go with weights that are gathered block by block "
                f"(engine.zero_stage=3, engine.shard_teacher=true): each gather breaks the graph, and compiling again "
                f"and again costs more than it saves; use stage 1 or 2 with a whole teacher, or engine.compile=none"
            )
        check_additions(self.deepspeed)

    @property
    def teacher_is_sharded(self) -> bool:
        """Whether ranks keep parts of the teacher, where there are several."""
        return self.zero_stage == MAX_ZERO_STAGE if self.shard_teacher is None else self.shard_teacher


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


def deepspeed_json(
    engine: EngineConfig, optimizer: OptimizerConfig, sizes: BatchSizes, *, num_trained: int
) -> dict[str, Any]:
    """The configuration that DeepSpeed is started with; nobody writes it by hand, but a user may add to it.

    Args:
        num_trained: entries of all trained parameters; DeepSpeed's bucket holds half a billion, two gigabytes, even for
            a model of one million.
    """
    zero: dict[str, Any] = {"stage": engine.zero_stage, "overlap_comm": False}
    zero["reduce_bucket_size"] = min(num_trained, REDUCE_ENTRIES)
    if engine.zero_stage == 1 and not engine.offload_optimizer:
        # all gradients are there when their reduction begins, so copying them one by one into a bucket saves nothing
        zero["contiguous_gradients"] = False
    if engine.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    generated = {
        "train_batch_size": sizes.global_batch,
        "train_micro_batch_size_per_gpu": sizes.micro_batch,
        "gradient_accumulation_steps": sizes.accumulation,
        "gradient_clipping": optimizer.clip_norm,
        "zero_optimization": zero,
        # the optimiser is torch's AdamW, under stages that DeepSpeed did not test it with
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        # this timer waits for the device in every micro-batch and after every step, for a speed that nobody reads
        "timers": {"throughput": {"enabled": False}},
    }
    return with_additions(generated, engine.deepspeed)


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
    """Settles what DeepSpeed decides at its import: the accelerator, and that nothing is compiled (deepspeed_start)."""
    environ.setdefault("DS_ACCELERATOR", "cuda" if device.type == "cuda" else "cpu")
    import deepspeed

    leave_operators_uncompiled()
    leave_muon_uncompiled()
    # it logs a page of its configuration per rank at INFO
    deepspeed.utils.logger.setLevel("WARNING")


def settle_kernels(environ: MutableMapping[str, str], engine: EngineConfig) -> None:
    """Asks torch for kernels that add in a fixed order, or for the fastest; before a GPU's first matrix product."""
    if engine.deterministic:
        # cuBLAS reads it with its first product, and torch refuses products without it
        environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # torch would fill all memory that it allocates, lest a program read what it has not written
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if engine.deterministic != torch.are_deterministic_algorithms_enabled():
        # it imports torch's compiler, so not without need
        torch.use_deterministic_algorithms(engine.deterministic)


def start_engine(
    module: nn.Module, engine: EngineConfig, optimizer: OptimizerConfig, *, ds_config: dict[str, Any]
) -> Any:
    """Wraps the training step; the process group is up. Returns a DeepSpeedEngine.

    Raises:
        UserError: DeepSpeed does not take what was added to its configuration.
    """
    import deepspeed
    from pydantic import ValidationError

    adamw = torch.optim.AdamW(
        parameter_groups(module, optimizer.weight_decay),
        lr=0.0,  # set before every step
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.epsilon,
    )
    try:
        wrapped, *_ = deepspeed.initialize(model=module, optimizer=adamw, config=ds_config)
    except ValidationError as error:
        raise UserError(
            f"DeepSpeed refuses its configuration, so nothing was trained; correct engine.deepspeed: {error}"
        ) from error
    if engine.compile != NOT_COMPILED:
        # in place, so that names in checkpoints stay; shapes are fixed by the batch
        module.compile(backend=engine.compile, dynamic=False)
    return wrapped


def update_on_host_by_fused_kernel(engine: Any, config: EngineConfig) -> None:
    """Lets an optimiser whose states lie in the host's memory use torch's fused AdamW, which comes compiled with torch.

    It takes a quarter of the time of torch's default there, a loop over tensors. DeepSpeed's own optimiser for the
    purpose does the same sums, but is compiled at the first start, which needs a compiler on every node. Call it when
    states are loaded: loading brings the kernel of the run that saved them.
    """
    if not (config.offload_optimizer or engine.device.type == "cpu"):
        return
    for group in engine.optimizer.param_groups:
        group["fused"] = True


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    """Writes the rate of the next optimiser step into all groups."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate

"""The DeepSpeed engine: its generated JSON, the parameter groups and the optimiser.

Parameters stay float32, and bf16 is autocast inside the training step. So gradients, optimiser states and the teacher's
source are float32 under every ZeRO stage, without a gradient scaler. `overlap_comm` stays off: with contiguous
gradients, a race between its streams gives NaN from the first step.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from distributed.engine.deepspeed_settings import check_additions, leave_uncompiled, with_additions
from pupujepa.errors import UserError, require_known
from pupujepa.model.model import MASK_TOKEN
from pupujepa.model.positions import POSITION_TABLE
from pupujepa.precision import AUTO, PRECISIONS

ZERO_STAGES = (1, 2, 3)
MAX_ZERO_STAGE = 3
NOT_COMPILED = "none"
COMPILERS = (NOT_COMPILED, "inductor", "aot_eager")
# largest gradient bucket of DeepSpeed, 200 MB: longer messages are no faster, and DeepSpeed holds two copies of it
REDUCE_ENTRIES = 50_000_000
# last parts of parameter names: these vectors are added, not multiplied
NOT_DECAYED = (MASK_TOKEN, POSITION_TABLE)


@dataclass(frozen=True)
class EngineConfig:
    """Settings that spread the training step over processes.

    zero_stage: 1 shards optimiser states; 2 also gradients; 3 also parameters. 1 communicates as much as plain data
        parallelism and suffices below three billion parameters on 80 GB; on one rank it shards nothing.
    precision: "bf16" or "fp32" of the computation; parameters and optimiser stay float32. "auto" is bf16 if the
        hardware of every rank multiplies it, else fp32; the run keeps the choice of its first start.
    precision_reason: reason for the choice of "auto"; written by the first start.
    micro_batch: crops per rank and forward pass; 0 takes the rank's share of the global batch. Accumulation keeps the
        global batch fixed.
    activation_checkpointing: recompute blocks in the backward pass: less memory, about a third more time.
    offload_optimizer: keep the optimiser states in host memory and update there.
    compile: torch.compile's backend: "none", "inductor" (kernels) or "aot_eager" (only traces, to find the faulty one).
    shard_teacher: each rank keeps a shard of the teacher and gathers block by block; null does so under stage 3.
    deterministic: use only kernels that add in a fixed order, so a resumed run gives the same bits on GPUs. Attention's
        backward pass is slower. CPUs are always deterministic.
    deepspeed: additions to DeepSpeed's JSON; see distributed/engine/deepspeed_settings.py.
    timeout_s: seconds that ranks wait for each other before a collective fails.
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
                f"engine.compile={self.compile} cannot be used with engine.zero_stage=3 or engine.shard_teacher=true: "
                f"each gather breaks the graph, and recompiling costs more than it saves; use engine.compile=none, or "
                f"stage 1 or 2 with a whole teacher"
            )
        check_additions(self.deepspeed)

    @property
    def teacher_is_sharded(self) -> bool:
        """True if several ranks keep shards of the teacher."""
        return self.zero_stage == MAX_ZERO_STAGE if self.shard_teacher is None else self.shard_teacher


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. Biases, norms, the mask token and learned positions are not decayed.

    clip_norm=0 disables clipping.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.05
    clip_norm: float = 3.0

    def __post_init__(self) -> None:
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise UserError(f"optimizer betas {self.beta1} and {self.beta2} must be in [0, 1)")
        if self.epsilon <= 0 or self.weight_decay < 0 or self.clip_norm < 0:
            raise UserError("optimizer.epsilon must be positive; weight_decay and clip_norm must not be negative")


@dataclass(frozen=True)
class BatchSizes:
    """Batch sizes of a data-parallel step; global_batch = micro_batch * accumulation * world_size."""

    global_batch: int
    micro_batch: int
    accumulation: int


def batch_sizes(global_batch: int, *, micro_batch: int, world_size: int) -> BatchSizes:
    """Splits the global batch over ranks and micro-batches; `micro_batch` 0 takes a rank's whole share.

    Raises:
        UserError: they do not divide the global batch.
    """
    per_rank, rest = divmod(global_batch, world_size)
    if rest:
        raise UserError(
            f"stream.global_batch={global_batch} cannot be shared by {world_size} ranks, and rounding it would change "
            f"the optimisation; use a number of ranks that divides it"
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
    """Generates the JSON of DeepSpeed; `num_trained` is the number of trained parameters."""
    zero: dict[str, Any] = {"stage": engine.zero_stage, "overlap_comm": False}
    # the default bucket has half a billion entries, two gigabytes, also for a model of one million
    zero["reduce_bucket_size"] = min(num_trained, REDUCE_ENTRIES)
    if engine.zero_stage == 1 and not engine.offload_optimizer:
        # the reduction begins when all gradients exist, so copying each into a bucket saves nothing
        zero["contiguous_gradients"] = False
    if engine.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    generated = {
        "train_batch_size": sizes.global_batch,
        "train_micro_batch_size_per_gpu": sizes.micro_batch,
        "gradient_accumulation_steps": sizes.accumulation,
        "gradient_clipping": optimizer.clip_norm,
        "zero_optimization": zero,
        # DeepSpeed did not test torch's AdamW with ZeRO; our tests do
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        # this timer would wait for the device in every micro-batch
        "timers": {"throughput": {"enabled": False}},
    }
    return with_additions(generated, engine.deepspeed)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Splits the trained parameters into decayed matrices and biases, norms, mask token, positions."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    plain = [p for name, p in named if p.ndim < 2 or name.rpartition(".")[2] in NOT_DECAYED]
    plain_ids = {id(p) for p in plain}
    return [
        {"params": [p for _, p in named if id(p) not in plain_ids], "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def prepare_deepspeed(environ: MutableMapping[str, str], *, device: torch.device) -> None:
    """Imports DeepSpeed for this device, without compiling its operators."""
    # DeepSpeed chooses its accelerator when it is imported
    environ.setdefault("DS_ACCELERATOR", "cuda" if device.type == "cuda" else "cpu")
    import deepspeed

    leave_uncompiled()
    # at INFO every rank logs a page of configuration
    deepspeed.utils.logger.setLevel("WARNING")


def settle_kernels(environ: MutableMapping[str, str], engine: EngineConfig) -> None:
    """Selects deterministic or fast kernels; call it before the first matrix product on a GPU."""
    if engine.deterministic:
        # cuBLAS reads it at its first product, and torch refuses products without it
        environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # torch would also fill all new memory, against reads of uninitialised values, which is slow
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if engine.deterministic != torch.are_deterministic_algorithms_enabled():
        # this call imports torch's compiler, which is slow
        torch.use_deterministic_algorithms(engine.deterministic)


def start_engine(
    module: nn.Module, engine: EngineConfig, optimizer: OptimizerConfig, *, ds_config: dict[str, Any]
) -> Any:
    """Returns a DeepSpeedEngine around the training step; the process group must exist.

    Raises:
        UserError: DeepSpeed refuses its configuration.
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
        # in place, so that names in checkpoints stay the same; all batches have one shape
        module.compile(backend=engine.compile, dynamic=False)
    return wrapped


def update_on_host_by_fused_kernel(engine: Any, config: EngineConfig) -> None:
    """Selects torch's fused AdamW for states in host memory.

    Call it after loading, which restores the saved choice. It takes a quarter of the time of torch's default, a loop
    over tensors. DeepSpeed's own CPU optimiser computes the same but needs a compiler on every node.
    """
    if not (config.offload_optimizer or engine.device.type == "cpu"):
        return
    for group in engine.optimizer.param_groups:
        group["fused"] = True


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    """Sets the learning rate of the next update in all groups."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate

"""DeepSpeed's tested JSON keys for `engine.deepspeed.KEY=VALUE`, and its imports without compilation.

The keys size buffers and time the step. Any other key is refused: it may silently change the losses, the checkpoints or
the teacher's source. tests/distributed/test_engine_equivalence.py trains with each key and compares the losses; add
a key there too.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pupujepa.errors import UserError

ALLOWED = (
    "zero_optimization.allgather_bucket_size",
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.stage3_max_live_parameters",
    "zero_optimization.stage3_max_reuse_distance",
    "zero_optimization.stage3_param_persistence_threshold",
    "zero_optimization.stage3_prefetch_bucket_size",
    "wall_clock_breakdown",
)


def check_additions(additions: Mapping[str, Any]) -> None:
    """Raises UserError for the first key that is not in ALLOWED."""
    for key in _leaves(additions):
        if key not in ALLOWED:
            raise UserError(
                f"engine.deepspeed.{key} is not tested with this trainer and may change the training; "
                f"remove it or use one of {', '.join(ALLOWED)}"
            )


def with_additions(generated: Mapping[str, Any], additions: Mapping[str, Any]) -> dict[str, Any]:
    """Merges checked additions into the generated JSON, recursively."""
    merged = dict(generated)
    for key, value in additions.items():
        old = merged.get(key)
        merged[key] = with_additions(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def leave_uncompiled() -> None:
    """Imports DeepSpeed without compilation of its all-reduce for inference and its optimiser Muon.

    Compiling the all-reduce, the one operator that DeepSpeed asks for, needs half a minute and a C++ compiler. A kill
    meanwhile leaves a lock that stops all later starts. DeepSpeed imports Muon to compare every optimiser's class, and
    that loads all of torch's compiler; our optimiser is always AdamW.
    """
    import deepspeed
    from deepspeed.runtime import compiler

    # writing the table also keeps DeepSpeed from running a compiler for each of its operators
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    compiled, compiler.compile = compiler.compile, lambda: compiler.dummy_decorator
    try:
        import deepspeed.runtime.zero.muon.original_muon
    finally:
        compiler.compile = compiled

"""Memory of training, per rank and ZeRO stage, by arithmetic from the number of parameters.

ZeRO (arXiv 1910.02054) shards the optimiser's states over the ranks from stage 1 on, the gradients from 2, the
parameters at 3. Ours are float32 throughout (bf16 is computed by autocast), and the teacher, float32 too, is whole on
every rank. Buffers of engine and communication library and the fragmentation of the allocator come on top.
"""

from dataclasses import dataclass, fields

from pupujepa.cost import ParameterCounts

ZERO_STAGES = (0, 1, 2, 3)
_FLOAT32 = 4
_ADAM_STATES = 2


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank, by part.

    optimizer: Adam's two moments and, from stage 1 on, its copy of the weights.
    buffers: what the engine allocates beside them; not known here, but to distributed/memory_plan.py.
    """

    parameters: int
    gradients: int
    optimizer: int
    teacher: int
    activations: int
    buffers: int = 0

    @property
    def total(self) -> int:
        """All parts."""
        return sum(getattr(self, part.name) for part in fields(self))


def memory_per_rank(counts: ParameterCounts, *, zero_stage: int, ranks: int, activation_bytes: int) -> Memory:
    """Returns the memory of the rank that holds most.

    Stages 1 to 3 keep a float32 copy of the rank's part of the parameters beside the ones that are trained, also when
    these are float32 already.

    Args:
        activation_bytes: what the backward pass of one micro-batch keeps; see tracing.py.
    """
    own = -(-counts.trained // ranks)
    states = _ADAM_STATES * (own if zero_stage >= 1 else counts.trained) + (own if zero_stage >= 1 else 0)
    return Memory(
        parameters=_FLOAT32 * (own if zero_stage == 3 else counts.trained),
        gradients=_FLOAT32 * (own if zero_stage >= 2 else counts.trained),
        optimizer=_FLOAT32 * states,
        teacher=_FLOAT32 * counts.encoder,
        activations=activation_bytes,
    )

"""What ranks must know of each other's tasks, so that all go on, or all stop, at the same place."""

import socket
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from distributed.background_save import Outcome, outcome_of
from pupujepa.precision import ChosenPrecision, choose_precision

Value = TypeVar("Value")


def outcomes(own: Outcome) -> list[Outcome]:
    """What the task of each rank came to, by rank; all ranks together."""
    of_ranks = [Outcome()] * dist.get_world_size()
    dist.all_gather_object(of_ranks, own)
    return of_ranks


def of_first(task: Callable[[], dict[str, Any]]) -> Outcome:
    """Runs a task on rank 0 and tells the others what it came to; all ranks together."""
    return from_first(outcome_of(task) if dist.get_rank() == 0 else Outcome())


def from_first(value: Value) -> Value:
    """Returns the value that rank 0 has; all ranks together."""
    shared = [value]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]


def ranks_of_node() -> int:
    """How many ranks run on this rank's machine, this one counted; all ranks together."""
    own = socket.gethostname()
    machines = [own] * dist.get_world_size()
    dist.all_gather_object(machines, own)
    return machines.count(own)


def all_are(true: bool) -> bool:
    """Whether it is true on every rank; all ranks together."""
    everywhere = torch.tensor(int(true), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(everywhere, op=dist.ReduceOp.MIN)
    return bool(everywhere)


def agreed_precision(asked: str, device: torch.device) -> ChosenPrecision:
    """Resolves "auto" to bf16 if the hardware of every rank multiplies it, else to fp32; all ranks together."""
    of_ranks = [choose_precision(asked, device)] * dist.get_world_size()
    dist.all_gather_object(of_ranks, of_ranks[0])
    # the first rank that must not use bf16 decides for all: ranks of one step must round alike
    return next((chosen for chosen in of_ranks if chosen.name == "fp32"), of_ranks[0])

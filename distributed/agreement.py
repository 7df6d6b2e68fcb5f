"""What ranks must know of each other's tasks, so that all go on, or all stop, at the same place."""

import socket
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from distributed.background_save import Outcome, outcome_of

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

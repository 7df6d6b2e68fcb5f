"""What ranks must know of each other's tasks, so that all go on, or all stop, at the same place."""

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from distributed.processes.topology import Topology
from pupujepa.errors import UserError
from pupujepa.precision import ChosenPrecision, choose_precision


class SupersededError(UserError):
    """This process is a leftover: the run was started again since."""


@dataclass(frozen=True)
class TaskOutcome:
    """What a task came to: `error` is a sentence, "" if it succeeded; `result` is what it returned then.

    superseded: the error is that the run was started again.
    """

    result: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    superseded: bool = False


def outcome_of(task: Callable[[], dict[str, Any]]) -> TaskOutcome:
    """Runs a task here and now."""
    try:
        return TaskOutcome(task())
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        return TaskOutcome(error=f"{error.strerror or error}{where}")
    except UserError as error:
        return TaskOutcome(error=str(error), superseded=isinstance(error, SupersededError))


Value = TypeVar("Value")


def outcomes(own: TaskOutcome) -> list[TaskOutcome]:
    """What the task of each rank came to, by rank; all ranks together."""
    of_ranks = [TaskOutcome()] * dist.get_world_size()
    dist.all_gather_object(of_ranks, own)
    return of_ranks


def of_first(task: Callable[[], dict[str, Any]]) -> TaskOutcome:
    """Runs a task on rank 0 and tells the others what it came to; all ranks together."""
    return from_first(outcome_of(task) if dist.get_rank() == 0 else TaskOutcome())


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


def agreed_digest(compute: Callable[[], str], topology: Topology, what: str) -> str:
    """Returns a digest that one rank of each node computes, and all nodes must find alike.

    Args:
        compute: reads files that every rank of a node sees.
        what: has the digest, e.g. "the weights of base".

    Raises:
        UserError: the nodes see different files.
    """
    found = {d for d in gather(compute() if topology.local_rank == 0 else None, topology) if d is not None}
    if len(found) > 1:
        raise UserError(
            f"{what} differ between the nodes (digests {', '.join(sorted(d[:8] for d in found))}), so their features "
            "would not belong together; name one shared folder, or equal copies"
        )
    return found.pop()


@contextmanager
def all_or_none(topology: Topology, step: str) -> Iterator[None]:
    """Ends a step on all ranks together: where one fails, the others stop too instead of waiting for it."""
    failed = True
    try:
        yield
        failed = False
    finally:
        failures = [rank for rank, f in enumerate(gather(failed, topology)) if f]
    if failures:
        raise UserError(f"{step}: rank {failures[0]} failed, so this rank stops too; its own message says why")


def gather(value: Any, topology: Topology) -> list[Any]:
    """Returns the value of every rank, on every rank."""
    values: list[Any] = [None] * topology.world_size
    if topology.world_size == 1:
        return [value]
    dist.all_gather_object(values, value)
    return values


def sum_over_ranks(values: Iterable[float], *, device: torch.device) -> list[float]:
    """Sums float64 numbers over all ranks, in one operation."""
    total = torch.tensor(list(values), dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return total.tolist()

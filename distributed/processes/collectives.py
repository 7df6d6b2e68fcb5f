"""Collectives on Python values: all ranks continue, or all stop, at the same point."""

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
    """The run was started again, so this process must not write to it."""


@dataclass(frozen=True)
class TaskOutcome:
    """Result of a task that succeeded, or the sentence of its error.

    superseded: the error is a SupersededError.
    """

    result: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    superseded: bool = False


def outcome_of(task: Callable[[], dict[str, Any]]) -> TaskOutcome:
    """Runs a task and catches the errors that a user can mend: OSError and UserError."""
    try:
        return TaskOutcome(task())
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        return TaskOutcome(error=f"{error.strerror or error}{where}")
    except UserError as error:
        return TaskOutcome(error=str(error), superseded=isinstance(error, SupersededError))


Value = TypeVar("Value")


def of_first(task: Callable[[], dict[str, Any]]) -> TaskOutcome:
    """Runs a task on rank 0 and returns its outcome on all ranks; all ranks together."""
    return from_first(outcome_of(task) if dist.get_rank() == 0 else TaskOutcome())


def from_first(value: Value) -> Value:
    """Returns the value of rank 0; all ranks together."""
    shared = [value]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]


def from_all(value: Value) -> list[Value]:
    """Returns the value of every rank, by rank; all ranks together."""
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def ranks_of_node() -> int:
    """Counts the ranks on this machine, including this one; all ranks together."""
    own = socket.gethostname()
    return from_all(own).count(own)


def all_are(true: bool) -> bool:
    """Returns True if `true` holds on every rank; all ranks together."""
    everywhere = torch.tensor(int(true), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(everywhere, op=dist.ReduceOp.MIN)
    return bool(everywhere)


def agreed_precision(asked: str, device: torch.device) -> ChosenPrecision:
    """Resolves "auto" to bf16 if the hardware of every rank multiplies it, else fp32.

    All ranks call it together.
    """
    of_ranks = from_all(choose_precision(asked, device))
    # one rank without bf16 decides for all: the ranks of a step must round alike
    return next((chosen for chosen in of_ranks if chosen.name == "fp32"), of_ranks[0])


def agreed_digest(compute: Callable[[], str], topology: Topology, what: str) -> str:
    """Computes a digest on one rank of each node and requires it to be equal on all nodes.

    Args:
        compute: digests files that every rank of a node sees.
        what: their name in the error, e.g. "the weights of base".

    Raises:
        UserError: the nodes see different files.
    """
    found = {d for d in gather(compute() if topology.local_rank == 0 else None, topology) if d is not None}
    if len(found) > 1:
        raise UserError(
            f"{what} differ between the nodes (digests {', '.join(sorted(d[:8] for d in found))}), so their features "
            "would not belong together; use one shared folder, or equal copies"
        )
    return found.pop()


@contextmanager
def all_or_none(topology: Topology, step: str) -> Iterator[None]:
    """Raises UserError on every rank if the block fails on one, so no rank waits for it."""
    failed = True
    try:
        yield
        failed = False
    finally:
        failures = [rank for rank, f in enumerate(gather(failed, topology)) if f]
    if failures:
        raise UserError(f"{step}: rank {failures[0]} failed, so this rank stops too; its own message says why")


def gather(value: Any, topology: Topology) -> list[Any]:
    """Returns the value of every rank, as `from_all`, but needs no process group for a single rank."""
    return [value] if topology.world_size == 1 else from_all(value)


def sum_over_ranks(values: Iterable[float], *, device: torch.device) -> list[float]:
    """Sums float64 numbers over all ranks, in one operation."""
    total = torch.tensor(list(values), dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return total.tolist()

"""What the ranks of an evaluation agree on: values from all of them, one corpus, and failing together."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from distributed.marble.corpus import Corpus
from distributed.topology import Topology
from pupujepa.errors import UserError


def agreed(corpus: Corpus, topology: Topology) -> Corpus:
    """Raises when the ranks see different corpora; their features would not belong together."""
    digests = gather(corpus.digest, topology)
    if len(set(digests)) > 1:
        raise UserError(
            f"the ranks read different corpora (digests {', '.join(sorted({d[:8] for d in digests}))}); "
            "--data must be one shared folder, or equal copies"
        )
    return corpus


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

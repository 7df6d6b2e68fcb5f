"""Counter-based randomness: every draw is a pure function of its key.

Crops, masks and shuffles must not depend on the rank or worker that computes them, nor on earlier draws: a resumed run
would differ from a straight one. So each draw makes its own generator from a key such as (seed, epoch, uid, "crop").
"""

from hashlib import blake2b

import numpy as np


def generator(*key: int | str) -> np.random.Generator:
    """Returns the generator of `key`; equal keys give equal streams on every machine.

    Args:
        key: integers and strings in order; `generator(1, "2")` and `generator("1", 2)` differ.
    """
    return np.random.Generator(np.random.Philox(key=_digest(*key, size=16)))


def torch_seed(*key: int | str) -> int:
    """Returns a seed in [0, 2**63) for `torch.Generator.manual_seed`."""
    return _digest(*key, size=8) >> 1


def _digest(*key: int | str, size: int) -> int:
    # repr separates 1 from "1", and the tuple's commas separate ("ab", "c") from ("a", "bc")
    return int.from_bytes(blake2b(repr(tuple(key)).encode(), digest_size=size).digest(), "little")

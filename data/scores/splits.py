"""Train, valid and test by group, stratified by collection.

Within a collection, groups go in the order of a seeded hash: to test until it has its share of pieces, then to valid,
then to train. So every collection of a few groups is in every split, and no group is in two.
"""

from collections.abc import Mapping, Sequence

from data.scores.pieces import Piece
from pupujepa.randomness import generator

SHARES = {"test": 0.18, "valid": 0.12}
_MIN_GROUPS = 3


def assign_splits(pieces: Sequence[Piece], groups: Mapping[str, str], *, seed: int) -> dict[str, str]:
    """Returns the split of each piece by uid.

    Args:
        groups: by piece uid; a group belongs to the collection of the piece that it is named after.
    """
    collections = {piece.uid: piece.collection for piece in pieces}
    sizes: dict[str, dict[str, int]] = {}
    for piece in pieces:
        group = groups[piece.uid]
        stratum = sizes.setdefault(collections[group], {})
        stratum[group] = stratum.get(group, 0) + 1
    of_group: dict[str, str] = {}
    for stratum in sizes.values():
        of_group |= _split_stratum(stratum, seed)
    return {uid: of_group[group] for uid, group in groups.items()}


def _split_stratum(sizes: Mapping[str, int], seed: int) -> dict[str, str]:
    left = sorted(sizes, key=lambda group: (generator(seed, "split", group).random(), group))
    total, splits = sum(sizes.values()), {}
    for split, share in SHARES.items():
        wanted, taken = share * total, 0
        for group in list(left):
            # to the nearest piece: a big group that would overshoot by more than half of itself is passed over
            if taken + sizes[group] / 2 <= wanted:
                splits[group] = split
                taken += sizes[group]
                left.remove(group)
        if not taken and len(sizes) >= _MIN_GROUPS:
            smallest = min(left, key=lambda group: (sizes[group], left.index(group)))
            splits[smallest] = split
            left.remove(smallest)
    return splits | dict.fromkeys(left, "train")

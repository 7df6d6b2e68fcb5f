"""Groups of near-duplicates and of sections of one work, and splits that keep each group together.

Tune books copy from each other, chorales share melodies, masses reuse a motif in every section. Two pieces are linked
if they are sections of one work, if their titles name the same tune, or if two of their voices share enough melody.
Melodies are compared as sequences of intervals, so key, metre and note values do not matter, and repeated notes count
once. Links are transitive.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import sqrt

import numpy as np

from data.scores.catalogue import COLLECTIONS
from data.scores.pieces import ONSET, PART, PITCH, Piece
from pupujepa.randomness import generator

INTERVALS = 6
# Of 103 pairs of tunes with equal titles, 79 share 0.27 or more of their phrases (the others are different tunes); of
# all unrelated pairs, such as a jig and a mass, ten share more than 0.14 and none more than 0.21.
SIMILARITY = 0.12
MIN_SHARED = 8
# a phrase that is in this share of all voices, such as a scale, does not identify a tune
_COMMON_SHARE = 0.01
_COMMON_MIN = 6
_MIN_TITLE_LETTERS = 8  # shorter ones are "Minuet" and "Song"
_TUNE_BOOKS = frozenset(c.name for c in COLLECTIONS if all(p.endswith(".abc") for p in c.patterns))

SPLIT_SHARES = {"test": 0.18, "valid": 0.12}
_MIN_GROUPS = 3

Phrase = tuple[int, ...]


def group_pieces(pieces: Sequence[Piece]) -> dict[str, str]:
    """Returns the group of each piece by uid: the smallest uid among its linked pieces."""
    links = near_duplicates(pieces)
    first: dict[tuple[str, str], str] = {}  # the first piece of a work, or with the name of a tune
    for piece in pieces:
        names = [(piece.collection, piece.work)] if piece.work else []
        if piece.collection in _TUNE_BOOKS and len(title := tune_title(piece.title)) >= _MIN_TITLE_LETTERS:
            names.append(("tune books", title))
        links += [(first.setdefault(name, piece.uid), piece.uid) for name in names]
    parent = {piece.uid: piece.uid for piece in pieces}

    def root(uid: str) -> str:
        while parent[uid] != uid:  # union-find: follow to the smallest uid
            uid = parent[uid]
        return uid

    for one, other in links:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return {uid: root(uid) for uid in parent}


def near_duplicates(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Returns the sorted pairs of pieces that share a melody.

    Two voices do if they have at least `MIN_SHARED` phrases in common, and at least `SIMILARITY` times the geometric
    mean of their numbers of phrases. A phrase is `INTERVALS` successive intervals; frequent phrases do not count.
    """
    voices = [(piece.uid, phrases) for piece in pieces for phrases in _voices(piece)]
    common = max(_COMMON_MIN, _COMMON_SHARE * len(voices))
    shared: Counter[tuple[int, int]] = Counter()
    knowers: defaultdict[Phrase, list[int]] = defaultdict(list)  # the voices with a phrase
    for index, (_, phrases) in enumerate(voices):
        for phrase in phrases:
            knowers[phrase].append(index)
    for knowing in knowers.values():
        if len(knowing) <= common:
            shared.update((i, j) for place, i in enumerate(knowing) for j in knowing[place + 1 :])
    linked = set()
    for (i, j), count in shared.items():
        (one, its_phrases), (other, other_phrases) = voices[i], voices[j]
        # long voices share more by chance
        least = max(MIN_SHARED, SIMILARITY * sqrt(len(its_phrases) * len(other_phrases)))
        if one != other and count >= least:
            linked.add((one, other))
    return sorted(linked)


def melodic_phrases(pitches: Iterable[int]) -> set[Phrase]:
    """Returns the sequences of `INTERVALS` intervals of a melody, with repeated notes as one."""
    steps = [int(step) for step in np.diff(np.fromiter(pitches, dtype=np.int64)) if step]
    return {tuple(steps[i : i + INTERVALS]) for i in range(len(steps) - INTERVALS + 1)}


def _voices(piece: Piece) -> list[set[Phrase]]:
    """Returns the phrases of each part; the highest note of a chord is the melody."""
    voices = []
    for part in range(piece.parts):
        notes = piece.notes[piece.notes[:, PART] == part]
        highest = {int(onset): int(pitch) for onset, pitch in notes[np.argsort(notes[:, PITCH])][:, [ONSET, PITCH]]}
        voices.append(melodic_phrases(highest[onset] for onset in sorted(highest)))
    return voices


def tune_title(title: str) -> str:
    """Returns the letters of a tune's name: "BONNIE KATE'S -- REEL" and "Bonnie Kate" are equal."""
    name = re.sub(r"\s--\s.*|'s\b|\(.*?\)|^the\b", "", title.lower().strip())
    return re.sub(r"[\W\d_]", "", name)


def assign_splits(pieces: Sequence[Piece], groups: Mapping[str, str], *, seed: int) -> dict[str, str]:
    """Returns the split of each piece by uid, with each group in one split, stratified by collection.

    Within a collection, groups in the order of a seeded hash fill test, then valid, then train. So each collection of a
    few groups is in every split.

    Args:
        groups: by piece uid; a group belongs to the collection of the piece in its name.
    """
    collections = {piece.uid: piece.collection for piece in pieces}
    sizes: dict[str, Counter[str]] = {}
    for piece in pieces:
        group = groups[piece.uid]
        sizes.setdefault(collections[group], Counter())[group] += 1
    of_group = {group: split for counts in sizes.values() for group, split in _split_stratum(counts, seed).items()}
    return {uid: of_group[group] for uid, group in groups.items()}


def _split_stratum(sizes: Mapping[str, int], seed: int) -> dict[str, str]:
    left = sorted(sizes, key=lambda group: (generator(seed, "split", group).random(), group))
    total, splits = sum(sizes.values()), {}
    for split, share in SPLIT_SHARES.items():
        wanted, taken = share * total, 0
        for group in list(left):
            # skips a group that would overshoot by more than half of itself
            if taken + sizes[group] / 2 <= wanted:
                splits[group] = split
                taken += sizes[group]
                left.remove(group)
        if not taken and len(sizes) >= _MIN_GROUPS:  # all groups were too big: the smallest makes the split
            smallest = min(left, key=lambda group: (sizes[group], left.index(group)))
            splits[smallest] = split
            left.remove(smallest)
    return splits | dict.fromkeys(left, "train")

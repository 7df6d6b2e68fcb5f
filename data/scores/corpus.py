"""Choosing and reading pieces: a seeded, balanced choice, parsed in parallel, cached, with nothing dropped silently."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.pool import map_in_order
from data.scores.catalogue import COLLECTIONS, Candidate, Collection, list_candidates, order_candidates, share_out
from data.scores.parsing import parse_piece
from data.scores.pieces import FORMAT_VERSION, Piece, UnusableScoreError, piece_from_json, piece_to_json
from pupujepa.durable import atomic_file
from pupujepa.progress import follow

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rejected:
    """A score that was chosen and could not be used."""

    uid: str
    path: str
    reason: str


@dataclass(frozen=True)
class ScoreSource:
    """Where scores come from and where their parsed form is kept.

    Attributes:
        corpus: music21's folder of scores.
        cache: folder of parsed pieces, one file each.
        reader: version of the parser; what another version read is read again.
    """

    corpus: Path
    cache: Path
    reader: str


def choose_pieces(source: ScoreSource, count: int, *, seed: int, workers: int) -> tuple[list[Piece], list[Rejected]]:
    """Returns `count` pieces, fewer when there are not as many, and what was chosen but could not be used.

    The collections give equal shares. For a piece that cannot be used the next one of its collection is taken, so the
    result depends on the seed and the count alone.
    """
    orders = {c: order_candidates(list_candidates(source.corpus, c), seed) for c in COLLECTIONS}
    available = {c: len(order) for c, order in orders.items()}
    pieces: list[Piece] = []
    rejected: list[Rejected] = []
    while len(pieces) < count:
        chosen = _next_round(orders, available, pieces=pieces, count=count)
        if not chosen:
            break
        read = map_in_order(partial(_read_cached, source), chosen, workers=workers, preload=__name__)
        followed = follow(read, total=len(chosen), title="parsing", unit="pieces")
        for candidate, outcome in zip(chosen, followed, strict=True):
            if isinstance(outcome, Rejected):
                rejected.append(outcome)
                available[candidate.collection] -= 1
            else:
                pieces.append(outcome)
    return sorted(pieces, key=lambda p: p.uid), sorted(rejected, key=lambda r: r.uid)


def _next_round(
    orders: dict[Collection, list[Candidate]], available: dict[Collection, int], *, pieces: Sequence[Piece], count: int
) -> list[Candidate]:
    """Takes the next candidates off `orders` so that each collection would reach its share."""
    shares = share_out(list(available.values()), count)
    chosen: list[Candidate] = []
    for (collection, order), share in zip(orders.items(), shares, strict=True):
        missing = share - sum(piece.collection == collection.name for piece in pieces)
        taken = max(0, min(missing, count - len(pieces) - len(chosen)))
        chosen += order[:taken]
        del order[:taken]
    return chosen


def _read_cached(source: ScoreSource, candidate: Candidate) -> Piece | Rejected:
    path = source.cache / f"{candidate.uid}.json"
    stamp = {"format": FORMAT_VERSION, "music21": source.reader}
    if path.is_file():
        cached = json.loads(path.read_text())
        if cached["stamp"] == stamp:
            if cached["rejected"] is not None:
                return Rejected(candidate.uid, candidate.path, cached["rejected"])
            return piece_from_json(cached["piece"])
    try:
        piece, reason = parse_piece(candidate, source.corpus), None
    except UnusableScoreError as error:
        piece, reason = None, str(error)
    entry = {"stamp": stamp, "rejected": reason, "piece": piece and piece_to_json(piece)}
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(entry))
    return piece if piece is not None else Rejected(candidate.uid, candidate.path, str(reason))

"""The choice and parsing of pieces: seeded, balanced, parallel, cached; rejected scores are listed."""

import json
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


@dataclass(frozen=True)
class Rejected:
    """A chosen score that could not be used."""

    uid: str
    path: str
    reason: str


@dataclass(frozen=True)
class ScoreSource:
    """Folders of scores and of parsed pieces.

    Attributes:
        corpus: music21's folder of scores.
        cache: folder of parsed pieces, one file each.
        reader: version of the parser; pieces of another version are parsed again.
    """

    corpus: Path
    cache: Path
    reader: str


def choose_pieces(source: ScoreSource, count: int, *, seed: int, workers: int) -> tuple[list[Piece], list[Rejected]]:
    """Returns `count` pieces, or all if there are fewer, and the rejected scores.

    Collections give equal shares. The next piece of its collection replaces a rejected one, so the result depends only
    on seed and count.
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
                available[candidate.collection] -= 1  # its share goes to the others
            else:
                pieces.append(outcome)
    return sorted(pieces, key=lambda p: p.uid), sorted(rejected, key=lambda r: r.uid)


def _next_round(
    orders: dict[Collection, list[Candidate]], available: dict[Collection, int], *, pieces: Sequence[Piece], count: int
) -> list[Candidate]:
    """Removes from `orders`, and returns, the candidates that fill each collection's share."""
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

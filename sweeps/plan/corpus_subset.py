"""A subset of a labelled corpus, equal for all trials: whole pieces, an equal share of each split.

A full evaluation after every short trial would cost more than its training. The subset is a track list over the same
audio, so the evaluator's ordinary command reads it.
"""

from hashlib import blake2b
from pathlib import Path
from typing import Any

from distributed.marble.datasets.corpus import SPLITS
from pupujepa.errors import UserError
from pupujepa.json_lines import read_rows, write_rows

TRACKS = "tracks.jsonl"


def subset(rows: list[dict[str, Any]], tracks: int) -> list[dict[str, Any]]:
    """Returns about `tracks` of the rows, in their order.

    Each split keeps its share. Within a split, whole groups are taken in the order of a hash of their name, which no
    seed or trial changes.
    """
    share = min(1.0, tracks / max(1, len(rows)))
    kept: set[str] = set()
    for split in SPLITS:
        of_split = [row for row in rows if row["split"] == split]
        groups = sorted({_group(row) for row in of_split}, key=lambda g: blake2b(g.encode(), digest_size=8).digest())
        wanted = round(share * len(of_split))
        taken = 0
        for group in groups:
            if taken >= wanted:
                break
            kept.add(f"{split}/{group}")
            taken += sum(_group(row) == group for row in of_split)
    return [row for row in rows if f"{row['split']}/{_group(row)}" in kept]


def write_subset(corpus: Path, out: Path, *, tracks: int) -> Path:
    """Writes OUT/tracks.jsonl with a subset of a corpus, without its audio, and returns OUT.

    Raises:
        UserError: `tracks` leaves a split empty.
    """
    rows = read_rows(corpus / TRACKS)
    kept = subset(rows, tracks)
    empty = [split for split in SPLITS if not any(row["split"] == split for row in kept)]
    if empty:
        raise UserError(
            f"probe_tracks: {tracks} leaves no track in {', '.join(empty)} of {corpus}, so no probe can be trained "
            f"and tested; raise it, or drop it to use all {len(rows)} tracks"
        )
    placed = [row | {"path": str((corpus / row["path"]).resolve())} for row in kept]
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / TRACKS, placed)
    return out


def _group(row: dict[str, Any]) -> str:
    return str(row.get("group", row["track"]))

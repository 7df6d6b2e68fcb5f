"""The catalogue of scores, and a balanced, seeded choice of them.

The scores ship with music21. A file of ABC tunes has hundreds of pieces and is split as text, so that a chosen tune
costs the parsing of one tune.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pupujepa.randomness import generator


@dataclass(frozen=True)
class Collection:
    """A row of the catalogue.

    Attributes:
        patterns: files, relative to the corpus, except those that match `leave_out` or exceed `max_bytes`.
        is_class: large and distinct enough to be a class of the collection task.
        key_witness: "declared" if the declared key can be compared with the notes; "tonic" if only its tonic can;
            "none" for modal or pentatonic music, or signatures that agree with the notes in fewer than half of the
            pieces.
        work_pattern: group 1, searched in the path and the head of the file, is the name of the work.
    """

    name: str
    patterns: tuple[str, ...]
    key_witness: str = "declared"
    is_class: bool = True
    leave_out: str = r"(?!)"
    max_bytes: int = 1 << 30
    work_pattern: str = r"(?!)"


_VARIOUS = (
    *("chopin", "corelli", "cpebach", "handel", "johnson_j_r", "joplin", "liliuokalani"),
    *("lusitano", "schubert", "schumann_clara", "schumann_robert", "verdi", "weber"),
)

COLLECTIONS = (
    Collection("ryans", ("ryansMammoth/*.abc",)),
    Collection("oneills", ("oneills1850/*.abc",)),
    Collection("airds", ("airdsAirs/*.abc",)),
    # test fragments for readers are among the songs
    Collection("essen", ("essenFolksong/*.abc",), key_witness="tonic", leave_out=r"/(han\d|test)"),
    Collection("essen_china", ("essenFolksong/han*.abc",), key_witness="none"),
    Collection("bach", ("bach/*.mxl",), work_pattern=r"(bwv\d+)"),
    Collection("palestrina", ("palestrina/*.krn",), key_witness="none", work_pattern=r"!!!OPR: *([^(\n]*[^(\s])"),
    Collection(
        "trecento",
        ("trecento/*.xml",),
        key_witness="none",
        leave_out="_bak",
        max_bytes=500_000,
        work_pattern=r"(PMFC_\d+_\d+)",
    ),
    Collection("monteverdi", ("monteverdi/*.mxl",), key_witness="none", leave_out="_old"),
    Collection(
        "classical",
        ("haydn/*/*.mxl", "mozart/*/*.mxl", "beethoven/*.mxl", "beethoven/*/*.mxl"),
        # a long movement takes a second to parse, and a take plays half a minute of it
        max_bytes=60_000,
        work_pattern=r"((?:haydn|mozart|beethoven)/\w+)",
    ),
    Collection(
        "various",
        tuple(f"{composer}/**/*.{suffix}" for composer in _VARIOUS for suffix in ("mxl", "xml", "krn")),
        is_class=False,
        max_bytes=60_000,
        work_pattern=r"(\w+/\w+)/",
    ),
)

_HEAD_CHARACTERS = 2000
_TUNE = re.compile(r"^(?=X:)", re.MULTILINE)
_MINOR = re.compile(r"^K:\s*[A-G][#b]?\s*(m|min|minor)\s*$", re.MULTILINE | re.IGNORECASE)
# only a tenth of the books is in minor, too few for twelve keys in three splits
_EVERY_THIRD = 3


@dataclass(frozen=True)
class Candidate:
    """A score of the catalogue.

    Attributes:
        path: relative to the corpus.
        tune: 0-based position in a file of tunes, or None for a file of one score.
        work: name of its work, or "".
        minor: True for a tune declared in minor; False for all other scores.
    """

    uid: str
    collection: Collection
    path: str
    tune: int | None
    work: str
    minor: bool = False


def list_candidates(corpus: Path, collection: Collection) -> list[Candidate]:
    """Returns all pieces of a collection, in the order of their files."""
    found = {path for pattern in collection.patterns for path in corpus.glob(pattern)}
    names = sorted(path.relative_to(corpus).as_posix() for path in found)
    candidates: list[Candidate] = []
    for name in names:
        if re.search(collection.leave_out, f"/{name}") or (corpus / name).stat().st_size > collection.max_bytes:
            continue
        if name.endswith(".abc"):
            candidates += [
                Candidate(_uid(collection, name, n), collection, name, n, work="", minor=bool(_MINOR.search(tune)))
                for n, tune in enumerate(split_tunes(read_text(corpus / name)))
            ]
        else:
            text = name
            if name.endswith(".krn"):
                text += "\n" + read_text(corpus / name)[:_HEAD_CHARACTERS]
            work = re.search(collection.work_pattern, text)
            uid, title = _uid(collection, name, None), work.group(1).strip() if work else ""
            candidates.append(Candidate(uid, collection, name, None, title))
    assert len({c.uid for c in candidates}) == len(candidates), collection.name
    return candidates


def order_candidates(candidates: Sequence[Candidate], seed: int) -> list[Candidate]:
    """Returns the pieces of a collection in a seeded order; every third is in minor while there are any."""
    # by a hash, not a shuffle
    order = sorted(candidates, key=lambda c: (generator(seed, "choice", c.uid).random(), c.uid))
    minor, other = [c for c in order if c.minor], [c for c in order if not c.minor]
    taken: list[Candidate] = []
    while minor and other:
        taken.append(minor.pop(0) if len(taken) % _EVERY_THIRD == 0 else other.pop(0))
    return taken + minor + other


def share_out(available: Sequence[int], total: int) -> list[int]:
    """Returns the pieces per collection: equal shares; the rest of a small one goes to the others."""
    shares = [0] * len(available)
    by_size = sorted(range(len(available)), key=lambda i: (available[i], i))  # smallest first
    for place, i in enumerate(by_size):
        shares[i] = min(available[i], (total - sum(shares)) // (len(by_size) - place))
    return shares


def split_tunes(text: str) -> list[str]:
    """Returns the tunes of a file in ABC notation, each from its "X:" line."""
    return [tune for tune in _TUNE.split(text) if tune.startswith("X:")]


def read_text(path: Path) -> str:
    """Returns the text of a score; bytes that are not UTF-8 occur only in titles and are replaced."""
    return path.read_text(encoding="utf-8", errors="replace")


def _uid(collection: Collection, name: str, tune: int | None) -> str:
    folders = {pattern.split("/")[0] for pattern in collection.patterns}
    path = name.rpartition(".")[0]
    stem = re.sub(r"[^A-Za-z0-9]+", "_", path if len(folders) > 1 else path.partition("/")[2]).strip("_")
    return f"{collection.name}-{stem}" + (f"-{tune:03d}" if tune is not None else "")

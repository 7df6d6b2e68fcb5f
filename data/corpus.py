"""What there is to build shards from: a folder of audio, or a list of tracks with splits and labels.

A split must never separate things that sound alike: tracks are split by *group* (album, piece), by a seeded hash, so
that a track keeps its split when others come or go.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from data.manifest import SPLITS
from pupujepa.audio import AUDIO_SUFFIXES
from pupujepa.errors import UserError
from pupujepa.randomness import generator

LIST_NAME = "tracks.jsonl"


class CorpusError(UserError):
    """An input from which no shards can be built."""


@dataclass(frozen=True)
class Track:
    """One audio file.

    Args:
        track: unique name.
        path: of the file.
        source: name of the collection.
        split: "train", "valid" or "test".
        labels: anything that JSON holds; times in seconds from the start of the track.
    """

    track: str
    path: Path
    source: str
    split: str
    labels: Mapping[str, Any] | None = None


def read_corpus(location: Path, *, seed: int, fractions: Sequence[float] = (1.0, 0.0, 0.0)) -> list[Track]:
    """Returns the tracks of a folder or of a list, sorted by name.

    Args:
        location: a `tracks.jsonl` list, a folder that holds one, or a folder of audio files.
        seed, fractions: of the split into train, valid and test; not used for tracks of a list that names their split.

    Raises:
        CorpusError: nothing there, no audio in it, a wrong line, or two tracks of one name.
    """
    if len(fractions) != len(SPLITS) or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise CorpusError(f"split fractions {list(fractions)} are not three shares (train, valid, test) that sum to 1")
    if location.is_dir():
        listed = location / LIST_NAME
        rows = list(_listed(listed)) if listed.is_file() else list(_found(location))
    elif location.is_file():
        rows = list(_listed(location))
    else:
        raise CorpusError(f"{location} does not exist, so there is nothing to build; give a folder or a {LIST_NAME}")
    if not rows:
        raise CorpusError(f"{location} holds no audio ({', '.join(AUDIO_SUFFIXES)}); give another folder or list")
    tracks = [
        Track(track, path, source, split or _draw_split(group, seed=seed, fractions=fractions), labels)
        for track, path, source, split, group, labels in rows
    ]
    tracks.sort(key=lambda track: track.track)
    for one, other in pairwise(tracks):
        if one.track == other.track:
            raise CorpusError(f"{location}: two tracks are named {one.track!r}; names must be unique, rename one")
    return tracks


def _found(folder: Path) -> Iterable[tuple]:
    """Yields the audio files of a folder: a file's group is the folder it lies in, at the top the file itself."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file())
    stems = [path.relative_to(folder).with_suffix("").as_posix() for path in files]
    files_of_stem = Counter(stems)
    for path, stem in zip(files, stems, strict=True):
        # song.wav beside song.flac: two tracks, so each keeps its suffix
        name = stem if files_of_stem[stem] == 1 else path.relative_to(folder).as_posix()
        group = path.parent.relative_to(folder).as_posix() if path.parent != folder else name
        yield name, path, folder.resolve().name, None, group, None


def _listed(file: Path) -> Iterable[tuple]:
    """Yields the tracks of a list; paths are relative to the list's folder."""
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{file} line {number}"
        try:
            row = json.loads(line)
            track, path = str(row["track"]), file.parent / row["path"]
        except (ValueError, TypeError, KeyError) as error:
            raise CorpusError(
                f'{where} is not a track ({error!r}); write {{"track": "name", "path": "file.wav", ...}}'
            ) from error
        split = row.get("split")
        if split is not None and split not in SPLITS:
            raise CorpusError(f"{where}: split {split!r} is not one of {', '.join(SPLITS)}")
        source = str(row.get("source", file.parent.resolve().name))
        yield track, path, source, split, row.get("group", track), row.get("labels")


def _draw_split(group: str, *, seed: int, fractions: Sequence[float]) -> str:
    draw = generator(seed, "split", str(group)).random()
    if draw < fractions[0]:
        return "train"
    return "valid" if draw < fractions[0] + fractions[1] else "test"

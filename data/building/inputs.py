"""Inputs of a build: folders of audio, lists of tracks, tars of audio; local or in an object store.

Tracks that sound alike must share a split. So a seeded hash of the *group* (album, piece, or a label such as the
artist) decides the split, and a track keeps it when others are added or removed.
"""

import logging
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path, PurePosixPath

from data.building.tars import TAR_SUFFIX, TarFile, find_tars, read_tars
from data.building.track_lists import LIST_SUFFIXES, read_list
from data.building.tracks import AudioPlace, ListEntry, SourceTrack
from data.shards.manifest import SPLITS
from data.store.files import LocalStore, Location, Store
from data.store.store import beside, collection_name, is_remote, object_versions, open_location, split_url
from pupujepa.audio.find import NOT_UNICODE, PassedOver, audio_among, is_unicode, search_folder
from pupujepa.audio.read import AUDIO_SUFFIXES
from pupujepa.errors import UserError
from pupujepa.randomness import generator

LIST_NAMES = tuple(f"tracks{suffix}" for suffix in LIST_SUFFIXES)
_TAR_LIST_SUFFIX = ".txt"
_MAX_NAMED = 5
_LOG = logging.getLogger(__name__)


class BuildInputError(UserError):
    """An unusable input of a build."""


def read_inputs(
    inputs: Location | Path | Sequence[Location],
    *,
    seed: int,
    fractions: Sequence[float] = (1.0, 0.0, 0.0),
    group_by: str | None = None,
    workers: int = 1,
    passed_over: PassedOver | None = None,
) -> list[SourceTrack]:
    """Returns the tracks of an input, sorted by name; `position` is the order of the input.

    Args:
        inputs: a folder of audio or of tars, a list (.jsonl, .csv, .tsv) or the folder of a `tracks.*` list, or tars:
            one, several, a pattern (`*`, `{000..099}`), or a .txt with one a line. Paths, file:// or s3://. Links are
            followed.
        seed, fractions: of the split into train, valid and test, for tracks without a split.
        group_by: label whose values replace the groups of the input.
        workers: processes that index tars.
        passed_over: is filled with what is left out before any audio is read.

    Raises:
        BuildInputError: no input, no audio, a repeated track name, a missing label, or a group in two splits.
        ListError, TarError: a wrong line, a damaged tar. StoreError: the store cannot be read.
    """
    if len(fractions) != len(SPLITS) or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise BuildInputError(
            f"split fractions {list(fractions)} are not three shares (train, valid, test) that sum to 1"
        )
    given = [str(inputs)] if isinstance(inputs, (str, Path)) else list(inputs)
    entries = _entries(given, workers=workers, passed_over=passed_over or PassedOver())
    if group_by is not None:
        entries = [replace(entry, group=group) for entry, group in _by_label(entries, group_by)]
    # one name may have two forms in Unicode: a Mac writes an accent as a letter of its own
    entries = [replace(entry, group=unicodedata.normalize("NFC", entry.group)) for entry in entries]
    tracks = [
        SourceTrack(
            track=entry.track,
            audio=entry.audio,
            source=entry.source,
            split=entry.split or _draw_split(entry.group, seed=seed, fractions=fractions),
            labels=entry.labels,
            position=position,
        )
        for position, entry in enumerate(entries)
    ]
    if group_by is not None:
        _require_whole_groups(tracks, entries, group_by)
    tracks.sort(key=lambda track: track.track)
    for name, same in groupby(tracks, key=lambda track: track.track):
        places = [track.audio.name for track in same]
        if len(places) > 1:
            raise BuildInputError(
                f"two tracks are named {name!r} ({places[0]} and {places[1]}); names must be unique, rename one"
            )
    return tracks


def _entries(given: Sequence[Location], *, workers: int, passed_over: PassedOver) -> list[ListEntry]:
    """Returns the tracks of the input whose names can be stored."""
    entries = []
    for entry in _find(given, workers=workers, passed_over=passed_over):
        if is_unicode(entry.track):
            entries.append(entry)
        else:
            passed_over.add(NOT_UNICODE, entry.audio.name)
    if not entries:
        raise BuildInputError(f"no name of the input is valid Unicode, so no track can be stored; rename {given[0]}")
    return entries


def _find(given: Sequence[Location], *, workers: int, passed_over: PassedOver) -> list[ListEntry]:
    if len(given) == 1 and not given[0].endswith(TAR_SUFFIX):
        [url] = given
        store = open_location(url)
        folder, name = split_url(url.rstrip("/"))
        suffix = PurePosixPath(name).suffix.lower()
        if suffix == _TAR_LIST_SUFFIX:
            return _tars(_tar_list(open_location(folder).read(name), url), workers=workers)
        if suffix in LIST_SUFFIXES:
            return _listed(url)
        if suffix in AUDIO_SUFFIXES:
            raise BuildInputError(f"{url} is a single audio file; give the folder that holds it, or a list of tracks")
        if isinstance(store, LocalStore) and not store.root.is_dir():
            raise BuildInputError(f"{url} does not exist, so there is nothing to build; give a folder, a list or tars")
        return _folder(store, workers=workers, passed_over=passed_over)
    others = [url for url in given if not url.endswith(TAR_SUFFIX)]
    if others:
        raise BuildInputError(
            f"of {len(given)} inputs {others[0]} is not a {TAR_SUFFIX}, but several inputs must all be tars; write a "
            "list of tracks for other audio"
        )
    return _tars(given, workers=workers)


def _tar_list(content: bytes, url: Location) -> list[Location]:
    """Returns the tars of a list, one a line, without comments."""
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise BuildInputError(f"{url} is not a UTF-8 list of tars ({error}); save it as UTF-8") from error
    tars = [beside(url, line) for line in lines if line and not line.startswith("#")]
    if not tars:
        raise BuildInputError(f"{url} names no tar, so there is nothing to build; write one a line")
    return tars


def _folder(store: Store, *, workers: int, passed_over: PassedOver) -> list[ListEntry]:
    for name in LIST_NAMES:
        if store.exists(name):
            return _listed(store.locate(name))
    if isinstance(store, LocalStore):
        versions = dict.fromkeys(sorted(search_folder(store.root, passed_over)), "")
    else:
        versions = store.versions()
    audio = audio_among(versions, passed_over)
    tars = [name for name in versions if name.endswith(TAR_SUFFIX)]
    if audio:
        if tars:
            _LOG.warning(
                "%s holds audio files, so its %d tars are ignored; to build from tars, give them as the input",
                store.url,
                len(tars),
            )
        return list(_files(store, audio, versions))
    if tars:
        found = [TarFile(store.url, name, name.removesuffix(TAR_SUFFIX), versions[name]) for name in tars]
        return read_tars(found, workers=workers, source=collection_name(store.url))
    instead = "".join(f"; {line}" for line in passed_over.lines())
    raise BuildInputError(
        f"{store.url} holds no audio ({', '.join(AUDIO_SUFFIXES)}), no {TAR_SUFFIX} and no list "
        f"({', '.join(LIST_NAMES)}); give another folder or list{instead}"
    )


def _files(store: Store, names: Sequence[str], versions: dict[str, str]) -> Iterator[ListEntry]:
    """Yields the audio files of a folder; the group is the sub-folder, or at the top the file itself."""
    stems = [PurePosixPath(name).with_suffix("").as_posix() for name in names]
    files_of_stem = Counter(stems)
    source = collection_name(store.url)
    for name, stem in zip(names, stems, strict=True):
        # song.wav and song.flac are two tracks, so each keeps its suffix
        track = stem if files_of_stem[stem] == 1 else name
        folder = PurePosixPath(name).parent.as_posix()
        audio = AudioPlace(store.locate(name), version=versions[name])
        yield ListEntry(track, audio, source, None, track if folder == "." else folder)


def _listed(url: Location) -> list[ListEntry]:
    folder, name = split_url(url)
    content = open_location(folder).read(name)
    entries = read_list(content, url=url, source=collection_name(folder))
    if not entries:
        raise BuildInputError(f"{url} names no track, so there is nothing to build; give another list")
    versions = object_versions([entry.audio.url for entry in entries if is_remote(entry.audio.url)])
    return [replace(entry, audio=replace(entry.audio, version=versions.get(entry.audio.url, ""))) for entry in entries]


def _tars(written: Sequence[Location], *, workers: int) -> list[ListEntry]:
    tars = find_tars(written)
    return read_tars(tars, workers=workers, source=collection_name(tars[0].folder))


def _by_label(entries: Sequence[ListEntry], label: str) -> Iterator[tuple[ListEntry, str]]:
    values = [(entry.labels or {}).get(label) for entry in entries]
    missing = [entry.track for entry, value in zip(entries, values, strict=True) if value is None]
    if missing:
        known = sorted({name for entry in entries for name in entry.labels or {}})
        more = f" and {len(missing) - _MAX_NAMED} more" if len(missing) > _MAX_NAMED else ""
        raise BuildInputError(
            f"{len(missing)} of {len(entries)} tracks have no label {label!r}, so --group-by cannot place them: "
            f"{', '.join(missing[:_MAX_NAMED])}{more}; label them, or group by one of: {', '.join(known) or '(none)'}"
        )
    return zip(entries, (str(value) for value in values), strict=True)


def _require_whole_groups(tracks: Sequence[SourceTrack], entries: Sequence[ListEntry], label: str) -> None:
    split_of_group: dict[str, str] = {}
    for track, entry in zip(tracks, entries, strict=True):
        split = split_of_group.setdefault(entry.group, track.split)
        if split != track.split:
            raise BuildInputError(
                f"tracks of {label} {entry.group!r} are in {split} and, as {track.track}, in {track.split}, so scores "
                "would be too good; correct or remove the splits of the input"
            )


def _draw_split(group: str, *, seed: int, fractions: Sequence[float]) -> str:
    draw = generator(seed, "split", str(group)).random()
    if draw < fractions[0]:  # independent of all other groups
        return "train"
    return "valid" if draw < fractions[0] + fractions[1] else "test"

"""The spool: parts of tracks between decoding and packing, so that a killed build can resume.

A track's parts are in `<spool>/<id>.parts`, its facts in `<spool>/<id>.json`, which is written second: it exists only
if the track is done. The id is a digest of everything that the result depends on. A spool can be a folder of any store,
so machines that share only a store can fill one together.
"""

import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from data.building.config import BuildConfig
from data.building.features import FeatureConfig, FeaturePart, TrackFacts, extract
from data.building.local_audio import local_audio, local_file, require_members
from data.building.rejections import Rejections
from data.building.tracks import (
    DAMAGED,
    MISSING,
    SILENT,
    TOO_SHORT,
    UNREADABLE,
    AudioPlace,
    SilentError,
    SourceTrack,
    TooShortError,
)
from data.pool import map_unordered, warm_up
from data.store.files import Location, MissingObjectError, StoreError, new_file
from data.store.store import is_remote, open_location, split_url
from pupujepa.errors import UnreadableError, UserError
from pupujepa.progress import Progress

Unit = Sequence[tuple[SourceTrack, str]]


def spool_id(track: SourceTrack, config: FeatureConfig) -> str:
    """Returns the spool name of a track, which changes with its file, version, stretch and settings."""
    audio = track.audio
    facts: tuple[Any, ...] = (track.track, *_identity(audio), config.digest)
    if audio.start_s or audio.end_s is not None or audio.member is not None:
        facts = (*facts, audio.start_s, audio.end_s, audio.member)
    return sha256(repr(facts).encode()).hexdigest()[:32]


def _identity(audio: AudioPlace) -> tuple[str, Any]:
    if is_remote(audio.url):
        return audio.url, audio.version
    folder, name = split_url(audio.url)
    path = open_location(folder).local_path(name)
    assert path is not None  # not remote
    real = os.path.realpath(path)  # unlike Path.resolve, it accepts a loop of links
    try:
        status = path.stat()
    except OSError:  # found again, and judged, when the file is decoded
        return real, (0, 0)
    return real, (status.st_size, status.st_mtime_ns)


def units(tracks: Sequence[SourceTrack], names: Sequence[str]) -> list[Unit]:
    """Returns units of work, each of one track or of all tracks of a remote tar, which is fetched once."""
    of_tar: dict[Location, list[tuple[SourceTrack, str]]] = {}
    pieces: list[Unit] = []
    for track, name in zip(tracks, names, strict=True):
        if track.audio.member is None or not is_remote(track.audio.url):
            pieces.append([(track, name)])
            continue
        if track.audio.url not in of_tar:
            of_tar[track.audio.url] = []
            pieces.append(of_tar[track.audio.url])
        of_tar[track.audio.url].append((track, name))
    return pieces


def spooled_facts(spool: Location, names: Iterable[str]) -> dict[str, TrackFacts]:
    """Returns the facts of the finished tracks, by spool name."""
    store, known = open_location(spool), {}
    present = set(store.list())
    for name in names:
        if f"{name}.json" in present:
            facts = facts_from_json(json.loads(store.read(f"{name}.json")))
            # earlier versions wrote facts without a digest of the audio, and rejected files that could not be read
            if facts.kind or (facts.audio_sha256 and f"{name}.parts" in present):
                known[name] = facts
    return known


def facts_from_json(raw: Mapping[str, Any]) -> TrackFacts:
    """Returns the facts in a mapping of `asdict`."""
    return TrackFacts(**{**raw, "parts": tuple(FeaturePart(**part) for part in raw["parts"])})


def spool_unit(unit: Unit, *, spool: Location, config: FeatureConfig) -> list[TrackFacts]:
    """Makes the parts of the tracks, or their reasons for rejection, and writes them to the spool.

    Raises:
        StoreError, UnreadableError: the audio or the spool cannot be read or written now, which rejects no track.
    """
    first = unit[0][0].audio
    with ExitStack() as stack:
        tar: Path | None = None
        if first.member is not None and is_remote(first.url):
            tar = stack.enter_context(local_file(first.url))
            require_members(tar, [track.audio for track, _ in unit])
        return [_spool_track(track, name, spool=spool, config=config, tar=tar) for track, name in unit]


def _spool_track(
    track: SourceTrack, name: str, *, spool: Location, config: FeatureConfig, tar: Path | None
) -> TrackFacts:
    store, audio = open_location(spool), track.audio
    # the next start tries again what is missing or cannot be read: those reasons leave nothing in the spool
    try:
        with local_audio(audio, tar=tar) as file:
            _require_there(file, origin=audio.name)
            with new_file(store, f"{name}.parts") as parts, parts.open("wb") as into:
                facts = extract(file, config, into=into, start_s=audio.start_s, end_s=audio.end_s, origin=audio.name)
    except MissingObjectError as error:
        return TrackFacts(rejected=str(error), kind=MISSING)
    except StoreError:
        raise  # a failing object store says nothing about the track
    except UnreadableError as error:  # any other OSError is of the spool
        return TrackFacts(rejected=f"{audio.name}: cannot be read ({error.strerror})", kind=UNREADABLE)
    except UserError as error:
        facts = TrackFacts(rejected=str(error), kind=_kind_of(error))
    store.write(f"{name}.json", json.dumps(asdict(facts)).encode())  # last: it marks the track as done
    return facts


def _require_there(file: Path, *, origin: str) -> None:
    """Raises MissingObjectError, or UnreadableError, for what decoders would call damaged."""
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingObjectError(f"{origin}: no such audio file; check the path") from error
    except OSError as error:
        raise UnreadableError(error.errno, error.strerror, origin) from error


def _kind_of(error: UserError) -> str:
    if isinstance(error, TooShortError):
        return TOO_SHORT
    return SILENT if isinstance(error, SilentError) else DAMAGED


def read_part(spool: Location, name: str, part: FeaturePart) -> bytes:
    """Returns the .npy bytes of a part. Raises UserError if the spool is damaged."""
    content = open_location(spool).read_range(f"{name}.parts", part.offset, length=part.bytes)
    if zlib.crc32(content) != part.crc32:
        raise UserError(f"{spool}/{name}.parts is damaged; remove the folder {spool} and build again")
    return content


def make_features(
    units: Sequence[Unit], *, spool: Location, config: BuildConfig, workers: int, rejections: Rejections
) -> dict[str, TrackFacts]:
    """Makes the parts of all tracks of `units` in the spool; returns their facts by spool name.

    Raises:
        UserError: too many unusable tracks, at once if they are many more, or tracks that cannot be read now.
    """
    tracks = {name: track for unit in units for track, name in unit}
    known = spooled_facts(spool, tracks)
    todo = [[(track, name) for track, name in unit if name not in known] for unit in units]
    left_out = {tracks[name].track: facts for name, facts in known.items() if facts.rejected}
    pieces = list(enumerate(unit for unit in todo if unit))
    rejections.judge(left_out, at_end=not pieces)
    frames, hours_per_frame = 0, 1 / config.features.frontend.frames_per_s / 3600
    work = partial(spool_unit, spool=spool, config=config.features)
    if pieces:
        warm_up("data.building.spool")  # its imports would slow the first tracks down, and the rate with them
    with (
        Progress(len(tracks), title="features", unit="tracks") as progress,
        closing(map_unordered(work, pieces, workers=workers, preload="data.building.spool")) as results,
    ):
        progress.skip(len(known))
        for position, found in results:
            for (track, name), facts in zip(pieces[position][1], found, strict=True):
                known[name] = facts
                frames += facts.frames
                if facts.rejected:
                    left_out[track.track] = facts
            is_end = len(known) == len(tracks)
            if is_end or any(facts.rejected for facts in found):
                rejections.judge(left_out, at_end=is_end)
            rate = frames * hours_per_frame / (progress.elapsed_s / 60)
            progress.advance(len(found), note=f"{rate:.2f} h of audio per minute, {len(left_out)} left out")
    return known

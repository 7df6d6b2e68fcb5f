"""The spool: parts of tracks between decoding and packing, kept so that a killed build goes on where it was.

A track's parts lie in `<spool>/<id>.parts`, its facts in `<spool>/<id>.json`, which is written second: it exists if and
only if the track is done. The id is a digest of all that the result depends on. A spool is a folder of any store, so
machines that share nothing else can fill one together.
"""

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from data.features import FeatureConfig, Part, TrackFacts, extract
from data.files import Location, MissingObjectError, StoreError
from data.local_audio import local_audio, local_file, require_members
from data.locations import is_remote, opened, split_url
from data.tracks import AudioPlace, Track
from pupujepa.errors import UserError

Unit = Sequence[tuple[Track, str]]


def spool_id(track: Track, config: FeatureConfig) -> str:
    """Returns the name of the track's files in the spool: another file, version, stretch or setting is another name."""
    audio = track.audio
    facts: tuple[Any, ...] = (track.track, *_identity(audio), config.digest)
    if audio.start_s or audio.end_s is not None or audio.member is not None:
        facts = (*facts, audio.start_s, audio.end_s, audio.member)
    return sha256(repr(facts).encode()).hexdigest()[:32]


def _identity(audio: AudioPlace) -> tuple[str, Any]:
    if is_remote(audio.url):
        return audio.url, audio.version
    folder, name = split_url(audio.url)
    path = opened(folder).local_path(name)
    assert path is not None
    status = path.stat() if path.exists() else None
    return str(path.resolve()), (status.st_size, status.st_mtime_ns) if status else (0, 0)


def units(tracks: Sequence[Track], names: Sequence[str]) -> list[Unit]:
    """Returns the tracks, with their names in the spool, in pieces of work: one each, but for those of a remote tar.

    A remote tar is fetched once for all its tracks.
    """
    of_tar: dict[Location, list[tuple[Track, str]]] = {}
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
    """Returns the facts of those tracks that are done, by their names."""
    store, known = opened(spool), {}
    present = set(store.list())
    for name in names:
        if f"{name}.json" in present:
            facts = facts_from_json(json.loads(store.read(f"{name}.json")))
            # facts without a digest of the audio are those of an earlier version, which did not look for duplicates
            if facts.rejected or (facts.audio_sha256 and f"{name}.parts" in present):
                known[name] = facts
    return known


def facts_from_json(raw: Mapping[str, Any]) -> TrackFacts:
    """Returns the facts that `asdict` made a mapping of."""
    return TrackFacts(**{**raw, "parts": tuple(Part(**part) for part in raw["parts"])})


def spool_unit(unit: Unit, *, spool: Location, config: FeatureConfig) -> list[TrackFacts]:
    """Makes the parts of tracks, or finds why they cannot be used, and records either.

    Raises:
        StoreError: an object store cannot be read or written, which is no fault of the track's.
    """
    first = unit[0][0].audio
    with ExitStack() as stack:
        tar: Path | None = None
        if first.member is not None and is_remote(first.url):
            tar = stack.enter_context(local_file(first.url))
            require_members(tar, [track.audio for track, _ in unit])
        return [_spool_track(track, name, spool=spool, config=config, tar=tar) for track, name in unit]


def _spool_track(track: Track, name: str, *, spool: Location, config: FeatureConfig, tar: Path | None) -> TrackFacts:
    store, audio = opened(spool), track.audio
    try:
        with local_audio(audio, tar=tar) as file:
            stored, facts = extract(file, config, start_s=audio.start_s, end_s=audio.end_s, origin=audio.name)
    except MissingObjectError as error:
        stored, facts = b"", TrackFacts(rejected=str(error))
    except StoreError:
        raise  # an object store that fails says nothing about the track
    except UserError as error:
        stored, facts = b"", TrackFacts(rejected=str(error))
    if stored:
        store.write(f"{name}.parts", stored)
    store.write(f"{name}.json", json.dumps(asdict(facts)).encode())
    return facts


def read_part(spool: Location, name: str, part: Part) -> bytes:
    """Returns the .npy bytes of a part. Raises UserError when the spool was damaged."""
    content = opened(spool).read_range(f"{name}.parts", part.offset, length=part.bytes)
    if zlib.crc32(content) != part.crc32:
        raise UserError(f"{spool}/{name}.parts is damaged; remove the folder {spool} and build again")
    return content

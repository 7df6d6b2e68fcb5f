"""The spool: parts of tracks between decoding and packing, so that a killed build can resume.

A track's parts are in `<spool>/<id>.parts`, its facts in `<spool>/<id>.json`, which is written second: it exists only
if the track is done. The id is a digest of everything that the result depends on. A spool can be a folder of any store,
so machines that share only a store can fill one together.
"""

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from data.building.config import BuildConfig
from data.building.features import FeatureConfig, FeaturePart, TrackFacts, extract
from data.building.local_audio import local_audio, local_file, require_members
from data.building.tracks import AudioPlace, SourceTrack
from data.pool import map_unordered
from data.store.files import Location, MissingObjectError, Store, StoreError, new_file
from data.store.locations import is_remote, open_location, split_url
from pupujepa.errors import UserError
from pupujepa.json_lines import encode_rows
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
    status = path.stat() if path.exists() else None
    # a missing file is rejected later
    return str(path.resolve()), (status.st_size, status.st_mtime_ns) if status else (0, 0)


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
            # an earlier version, without duplicates, wrote facts without a digest of the audio
            if facts.rejected or (facts.audio_sha256 and f"{name}.parts" in present):
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
    try:
        with (
            local_audio(audio, tar=tar) as file,
            new_file(store, f"{name}.parts") as parts,
            parts.open("wb") as into,
        ):
            facts = extract(file, config, into=into, start_s=audio.start_s, end_s=audio.end_s, origin=audio.name)
    except MissingObjectError as error:
        facts = TrackFacts(rejected=str(error))
    except StoreError:
        raise  # a failing object store says nothing about the track
    except UserError as error:
        facts = TrackFacts(rejected=str(error))
    store.write(f"{name}.json", json.dumps(asdict(facts)).encode())  # last: it marks the track as done
    return facts


def read_part(spool: Location, name: str, part: FeaturePart) -> bytes:
    """Returns the .npy bytes of a part. Raises UserError if the spool is damaged."""
    content = open_location(spool).read_range(f"{name}.parts", part.offset, length=part.bytes)
    if zlib.crc32(content) != part.crc32:
        raise UserError(f"{spool}/{name}.parts is damaged; remove the folder {spool} and build again")
    return content


REJECTED_NAME = "rejected.jsonl"


@dataclass(frozen=True)
class Rejections:
    """The limit and the list of unusable tracks.

    Args:
        total: tracks of the whole input.
        store: of the corpus.
        name: of the list in the store.
    """

    config: BuildConfig
    total: int
    store: Store
    name: str = REJECTED_NAME

    def write(self, rejected: Mapping[str, str]) -> None:
        """Writes the list of unusable tracks and reasons."""
        rows = ({"reason": reason, "track": track} for track, reason in sorted(rejected.items()))
        self.store.write(self.name, encode_rows(rows))

    def judge(self, rejected: Mapping[str, str]) -> None:
        """Writes the list and raises UserError if there are more than allowed, or all tracks are unusable."""
        count = len(rejected)
        if self.config.bears(count, self.total) and count < self.total:
            return
        self.write(rejected)
        where, first = f"see {self.store.locate(self.name)}", next(iter(rejected.values()))
        if count == self.total:
            raise UserError(f"none of {self.total} files can be used, the first because: {first}; {where}")
        raise UserError(
            f"{count} of {self.total} files cannot be used, more than --max-rejected {self.config.max_rejected:g} "
            f"allows, the first because: {first}; {where}, then repair or remove them, or raise the limit"
        )


def make_features(
    units: Sequence[Unit], *, spool: Location, config: BuildConfig, workers: int, rejections: Rejections
) -> dict[str, TrackFacts]:
    """Makes the parts of all tracks of `units` in the spool; returns their facts by spool name.

    Raises:
        UserError: more unusable tracks than allowed; it stops at the first too many.
    """
    tracks = {name: track for unit in units for track, name in unit}
    known = spooled_facts(spool, tracks)
    todo = [[(track, name) for track, name in unit if name not in known] for unit in units]
    rejected = {tracks[name].track: facts.rejected for name, facts in known.items() if facts.rejected}
    rejections.judge(rejected)
    frames, hours_per_frame = 0, 1 / config.features.frontend.frames_per_s / 3600
    work = partial(spool_unit, spool=spool, config=config.features)
    pieces = list(enumerate(unit for unit in todo if unit))
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
                    rejected[track.track] = facts.rejected
            rejections.judge(rejected)
            rate = frames * hours_per_frame / (progress.elapsed_s / 60)
            progress.advance(len(found), note=f"{rate:.2f} h of audio per minute, {len(rejected)} rejected")
    return known

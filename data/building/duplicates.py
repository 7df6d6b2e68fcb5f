"""Tracks with exactly equal decoded audio, under any names and formats.

A duplicate counts twice in training; one in two splits makes test scores too good.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from data.building.packing import SpooledTrack
from data.building.tracks import quantity
from pupujepa.json_lines import encode_rows

DUPLICATES_NAME = "duplicates.jsonl"


@dataclass(frozen=True)
class Duplicates:
    """Tracks of equal audio, in the order of the input; the first is kept."""

    audio_sha256: str
    tracks: tuple[SpooledTrack, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the tracks; more than one is a leak."""
        return tuple(sorted({spooled.track.split for spooled in self.tracks}))


def find_duplicates(spooled: Sequence[SpooledTrack]) -> list[Duplicates]:
    """Returns all sets of tracks of equal audio, in the order of the input."""
    by_audio: dict[str, list[SpooledTrack]] = defaultdict(list)
    for track in sorted(spooled, key=lambda s: s.track.position):
        by_audio[track.facts.audio_sha256].append(track)
    return [Duplicates(digest, tuple(tracks)) for digest, tracks in by_audio.items() if len(tracks) > 1]


def without(spooled: Sequence[SpooledTrack], duplicates: Sequence[Duplicates]) -> list[SpooledTrack]:
    """Returns the tracks, with only the first of each set of duplicates."""
    dropped = {track.track.track for same in duplicates for track in same.tracks[1:]}
    return [track for track in spooled if track.track.track not in dropped]


def to_lines(duplicates: Sequence[Duplicates], *, dropped: bool) -> bytes:
    """Returns duplicates.jsonl: one line per set, with its tracks, their splits and which are kept."""
    return encode_rows(
        {
            "audio_sha256": same.audio_sha256,
            "kept": [t.track.track for t in (same.tracks[:1] if dropped else same.tracks)],
            "splits": list(same.splits),
            "tracks": [{"split": t.track.split, "track": t.track.track} for t in same.tracks],
        }
        for same in duplicates
    )


def duplicates_summary(duplicates: Sequence[Duplicates], *, dropped: bool, where: str) -> str:
    """Returns a line about exact duplicates, or ""."""
    if not duplicates:
        return ""
    extra = sum(len(same.tracks) - 1 for same in duplicates)
    first = duplicates[0].tracks
    fate = (
        f"dropped, except the first of each set, such as {first[0].track.track}"
        if dropped
        else "kept; --drop-duplicates leaves only the first of each set"
    )
    sets = quantity(len(duplicates), "set")
    repeat = "repeats" if extra == 1 else "repeat"
    return f"{quantity(extra, 'track')} {repeat} the audio of another exactly ({sets}, see {where}): {fate}"


def leak(duplicates: Sequence[Duplicates], *, dropped: bool) -> str:
    """Returns a warning about equal audio in different splits, or ""."""
    leaks = [same for same in duplicates if len(same.splits) > 1]
    if not leaks:
        return ""
    named = ", ".join(f"{t.track.track} ({t.track.split})" for t in leaks[0].tracks)
    sets = quantity(len(leaks), "set")
    if dropped:
        return f"equal audio was in different splits ({sets}), e.g. {named}; the first of each set is kept"
    return (
        f"LEAKAGE: equal audio is in different splits ({sets}), e.g. {named}: scores on valid and test will be too "
        "good; build again with --drop-duplicates, or correct the splits"
    )

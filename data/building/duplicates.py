"""Tracks whose decoded audio is the same to the last sample, under whatever names and formats.

A piece that occurs twice counts twice in training; one that occurs in two splits makes test scores a lie.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from data.building.packing import SpooledTrack
from pupujepa.json_lines import encode_rows

DUPLICATES_NAME = "duplicates.jsonl"


@dataclass(frozen=True)
class Duplicates:
    """Tracks of equal audio, in the order of the input: the first is the one to keep."""

    audio_sha256: str
    tracks: tuple[SpooledTrack, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that they lie in; more than one is a leak."""
        return tuple(sorted({spooled.track.split for spooled in self.tracks}))


def find_duplicates(spooled: Sequence[SpooledTrack]) -> list[Duplicates]:
    """Returns every set of two or more tracks of equal audio, by their first in the order of the input."""
    by_audio: dict[str, list[SpooledTrack]] = defaultdict(list)
    for track in sorted(spooled, key=lambda s: s.track.position):
        by_audio[track.facts.audio_sha256].append(track)
    return [Duplicates(digest, tuple(tracks)) for digest, tracks in by_audio.items() if len(tracks) > 1]


def without(spooled: Sequence[SpooledTrack], duplicates: Sequence[Duplicates]) -> list[SpooledTrack]:
    """Returns the tracks without those of equal audio but the first."""
    dropped = {track.track.track for same in duplicates for track in same.tracks[1:]}
    return [track for track in spooled if track.track.track not in dropped]


def to_lines(duplicates: Sequence[Duplicates], *, dropped: bool) -> bytes:
    """Returns duplicates.jsonl: a line for each set, with its tracks, their splits and what became of them."""
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
    """Returns a line about exact duplicates, or "" where there are none."""
    if not duplicates:
        return ""
    extra = sum(len(same.tracks) - 1 for same in duplicates)
    first = duplicates[0].tracks
    fate = (
        f"dropped, of each set the first in the order of the input is kept, as {first[0].track.track}"
        if dropped
        else "kept; --drop-duplicates leaves only the first of each set"
    )
    return f"{extra} tracks repeat the audio of another exactly ({len(duplicates)} sets, see {where}): {fate}"


def leak(duplicates: Sequence[Duplicates], *, dropped: bool) -> str:
    """Returns a warning about equal audio in different splits, or "" where there is none."""
    leaks = [same for same in duplicates if len(same.splits) > 1]
    if not leaks:
        return ""
    named = ", ".join(f"{t.track.track} ({t.track.split})" for t in leaks[0].tracks)
    if dropped:
        return f"{len(leaks)} sets of equal audio lay in different splits, e.g. {named}; only the first of each is kept"
    return (
        f"LEAKAGE: {len(leaks)} sets of equal audio lie in different splits, e.g. {named}: scores on valid and test "
        "will be too good; build again with --drop-duplicates, or correct the splits"
    )

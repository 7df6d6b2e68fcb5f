"""Tracks of a build, the location of their audio, and the kinds of tracks that are left out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data.store.files import Location
from pupujepa.errors import UserError

# kinds of tracks that are left out; the first two are no damage
TOO_SHORT, SILENT = "too short", "silent"
DAMAGED, MISSING = "damaged", "missing"
UNREADABLE = "unreadable"  # for now: another start tries it again


class TooShortError(UserError):
    """Whole audio that is shorter than the shortest track of the build."""


class SilentError(UserError):
    """Whole audio that is silent throughout."""


@dataclass(frozen=True)
class Member:
    """A file inside a tar: its WebDataset key and ending, and its bytes."""

    key: str
    ending: str
    offset: int
    bytes: int


@dataclass(frozen=True)
class AudioPlace:
    """Location of the audio of one track.

    Args:
        url: of the audio file, or of its tar: path, file:// or s3://.
        start_s, end_s: the stretch of the file that is the track; None is its end.
        member: of the tar.
        version: changes when an object of a store is replaced; "" for local files.
    """

    url: Location
    start_s: float = 0.0
    end_s: float | None = None
    member: Member | None = None
    version: str = ""

    @property
    def name(self) -> str:
        """Name in messages."""
        window = "" if self.end_s is None and not self.start_s else f" from {self.start_s:g} s"
        inside = f" member {self.member.key}.{self.member.ending}" if self.member else ""
        return f"{self.url}{inside}{window}" + ("" if self.end_s is None else f" to {self.end_s:g} s")


@dataclass(frozen=True)
class ListEntry:
    """A track of the input, before splits are drawn.

    Args:
        split: of the input, or None to draw it.
        group: tracks of one group share a split.
    """

    track: str
    audio: AudioPlace
    source: str
    split: str | None
    group: str
    labels: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class SourceTrack:
    """One track of a build.

    Args:
        track: unique name.
        source: name of the collection.
        split: "train", "valid" or "test".
        labels: JSON values; times in seconds from the start of the track.
        position: in the order of the input.
    """

    track: str
    audio: AudioPlace
    source: str
    split: str
    labels: Mapping[str, Any] | None = None
    position: int = field(default=0, compare=False)


def quantity(number: int, noun: str) -> str:
    """Returns "1 track" or "2 tracks"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

"""Tracks: what a corpus is made of, and where the audio of each lies."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data.store.files import Location


@dataclass(frozen=True)
class Member:
    """A file inside a tar: its key and ending in WebDataset's sense, and the stretch of bytes that it takes."""

    key: str
    ending: str
    offset: int
    bytes: int


@dataclass(frozen=True)
class AudioPlace:
    """Where the audio of one track lies.

    Args:
        url: of the audio file, or of the tar that holds it: path, file:// or s3://.
        start_s, end_s: the stretch of the file that is the track; None is its end.
        member: of the tar.
        version: changes when an object of a store is replaced; files of this machine are asked for theirs.
    """

    url: Location
    start_s: float = 0.0
    end_s: float | None = None
    member: Member | None = None
    version: str = ""

    @property
    def name(self) -> str:
        """What messages call it."""
        window = "" if self.end_s is None and not self.start_s else f" from {self.start_s:g} s"
        inside = f" member {self.member.key}.{self.member.ending}" if self.member else ""
        return f"{self.url}{inside}{window}" + ("" if self.end_s is None else f" to {self.end_s:g} s")


@dataclass(frozen=True)
class ListEntry:
    """A track as its input describes it, before splits are drawn.

    Args:
        split: where the input wants it, or None to have it drawn.
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
    """One track.

    Args:
        track: unique name.
        source: name of the collection.
        split: "train", "valid" or "test".
        labels: anything that JSON holds; times in seconds from the start of the track.
        position: its place in the order of the input.
    """

    track: str
    audio: AudioPlace
    source: str
    split: str
    labels: Mapping[str, Any] | None = None
    position: int = field(default=0, compare=False)

"""WebDataset tars of audio as an input, indexed by their headers alone.

A sample is all members of one key: one or more audio files (`key.flac`), and optionally `key.json`: an object of
labels, or, with a field `labels`, of all fields of a list's line: track, source, split, group, labels. A track is named
`<tar>/<key>`, or `<tar>/<key>.<ending>` if the sample has several audio files.

Plain tar readers take a cut or overwritten tar for a shorter one. Here a tar without its end mark is refused.
"""

import io
import json
import logging
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from webdataset.shardlists import expand_urls

from data.building.track_lists import check_split
from data.building.tracks import AudioPlace, ListEntry, Member
from data.pool import map_in_order
from data.store.files import Location, Store
from data.store.locations import common_folder, is_remote, object_versions, open_location, split_url
from data.store.store import open_store
from pupujepa.audio.read import AUDIO_SUFFIXES
from pupujepa.errors import UserError
from pupujepa.progress import follow

TAR_SUFFIX = ".tar"
_BLOCK_BYTES = 512
_READ_AHEAD_BYTES = 8192
_MAX_NAMED = 5
_LOG = logging.getLogger(__name__)


class TarError(UserError):
    """A tar that cannot be read to its end, or has no audio."""


@dataclass(frozen=True)
class TarSample:
    """One sample: its audio files, and the content of its JSON member."""

    key: str
    audio: tuple[Member, ...]
    info: dict[str, Any]


@dataclass(frozen=True)
class TarFile:
    """A tar of a store: its path, its name in track names, and the version of its content."""

    folder: Location
    path: str
    name: str
    version: str = ""


def read_tars(tars: Sequence[TarFile], *, workers: int, source: str) -> list[ListEntry]:
    """Returns the tracks of all tars, in the order of the tars and of their samples.

    Raises:
        TarError: damaged tars (named), tars without audio, or JSON that describes no track.
    """
    entries: list[ListEntry] = []
    damaged: list[str] = []
    silent: list[str] = []
    read = map_in_order(_sample_or_reason, list(tars), workers=min(workers, len(tars)), preload="data.building.tars")
    for tar, found in zip(tars, follow(read, total=len(tars), title="index", unit="tars"), strict=True):
        if isinstance(found, str):
            damaged.append(found)
            continue
        silent += [f"{tar.name}/{sample.key}" for sample in found if not sample.audio]
        entries += [entry for sample in found for entry in _entries(tar, sample, source=source)]
    if damaged:
        more = f"; and {len(damaged) - _MAX_NAMED} more" if len(damaged) > _MAX_NAMED else ""
        raise TarError(
            f"{len(damaged)} of {len(tars)} tars cannot be read to their end, so samples would be lost: "
            f"{'; '.join(damaged[:_MAX_NAMED])}{more}; restore them, or leave them out of the input"
        )
    if not entries:
        raise TarError(
            f"none of the {len(tars)} tars holds audio ({', '.join(AUDIO_SUFFIXES)}), the first is {tars[0].name}; "
            "give tars with members such as KEY.flac"
        )
    if silent:
        _LOG.warning("%d samples of the tars hold no audio and are left out, the first is %s", len(silent), silent[0])
    return entries


def index_tar(file: BinaryIO, *, size_bytes: int, name: str) -> list[TarSample]:
    """Returns the samples of a tar in their order.

    Args:
        file: the tar, seekable.
        name: for messages.

    Raises:
        TarError: not a tar, cut, a damaged header, or JSON that is not an object.
    """
    samples: list[TarSample] = []
    for member, content in _members(file, size_bytes=size_bytes, name=name):
        if not samples or samples[-1].key != member.key:  # members of a sample are adjacent
            samples.append(TarSample(member.key, (), {}))
        last = samples[-1]
        if content is not None:
            samples[-1] = TarSample(last.key, last.audio, _json_object(content, f"{name}, {member.key}.json"))
        elif PurePosixPath(f"x.{member.ending}").suffix.lower() in AUDIO_SUFFIXES:
            samples[-1] = TarSample(last.key, (*last.audio, member), last.info)
    return samples


def _members(file: BinaryIO, *, size_bytes: int, name: str) -> Iterator[tuple[Member, bytes | None]]:
    """Yields the members of a tar, with the content of `.json` ones, and checks the end mark."""
    last = "its start"
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                if info.offset_data + info.size > size_bytes:
                    raise TarError(f"{name} is cut inside {info.name}")
                last = info.name
                if not info.isreg() or PurePosixPath(info.name).name.startswith("."):
                    continue
                folder, _, base = info.name.rpartition("/")
                stem, _, ending = base.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                stream = tar.extractfile(info) if ending.lower() == "json" else None
                yield Member(key, ending, info.offset_data, info.size), stream.read() if stream else None
            end = tar.offset
    except tarfile.TarError as error:
        raise TarError(f"{name} is not a tar or is damaged after {last} ({error})") from error
    file.seek(end)
    # tarfile, and every reader built on it, takes a damaged header for the end
    mark = file.read(_BLOCK_BYTES)
    if len(mark) < _BLOCK_BYTES or mark.strip(b"\0"):
        raise TarError(f"{name} is cut or damaged after {last}: no end mark at byte {end} of {size_bytes}")


def _json_object(content: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise TarError(f"{where} is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise TarError(f"{where} is not an object of labels but {type(found).__name__}")
    return found


def _sample_or_reason(tar: TarFile) -> list[TarSample] | str:
    """Returns the samples of a tar, or the reason why it cannot be read."""
    store = open_store(tar.folder)
    local, where = store.local_path(tar.path), store.locate(tar.path)
    try:
        if local is not None:
            with local.open("rb") as file:
                return index_tar(file, size_bytes=local.stat().st_size, name=where)
        size_bytes = store.size(tar.path)
        with io.BufferedReader(_ObjectFile(store, tar.path, size_bytes), _READ_AHEAD_BYTES) as file:
            return index_tar(file, size_bytes=size_bytes, name=where)
    except TarError as error:
        return str(error)


def _entries(tar: TarFile, sample: TarSample, *, source: str) -> Iterator[ListEntry]:
    info = sample.info if isinstance(sample.info.get("labels"), dict) else {"labels": sample.info or None}
    for member in sample.audio:
        name = f"{tar.name}/{sample.key}"
        given = info.get("track")
        track = str(given) if given is not None else name
        if len(sample.audio) > 1:
            track = f"{track}.{member.ending}"
        yield ListEntry(
            track=track,
            audio=AudioPlace(f"{tar.folder.rstrip('/')}/{tar.path}", member=member, version=tar.version),
            source=str(info.get("source", source)),
            split=check_split(info.get("split"), name),
            group=str(info["group"]) if info.get("group") is not None else name,
            labels=info["labels"],
        )


class _ObjectFile(io.RawIOBase):
    """An object of a store as a seekable file, to read its headers without the rest."""

    def __init__(self, store: Store, path: str, size_bytes: int):
        self._read = partial(store.read_range, path)
        self._size_bytes, self._position = size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._size_bytes - self._position))
        buffer[:length] = self._read(self._position, length=length)
        self._position += length
        return length


def find_tars(written: Sequence[Location]) -> list[TarFile]:
    """Returns the tars in the order written, each once; those of a `*` sorted by name.

    The name of a tar is its file name, or, if two are equal, its path from the common folder.

    Raises:
        TarError: a pattern without a match, or a missing tar. StoreError: the store cannot be read.
    """
    urls: list[Location] = []
    for pattern in written:
        for url in expand_urls(pattern):
            urls += _matching(url) if "*" in url else [url]
    urls = list(dict.fromkeys(urls))
    versions = object_versions([url for url in urls if is_remote(url)])
    for url in urls:
        if not (versions[url] if url in versions else _is_file(url)):
            raise TarError(f"{url} does not exist, so its tracks would be missing; restore it or leave it out")
    names = [split_url(url)[1] for url in urls]
    if len(set(names)) < len(names):
        root = common_folder(urls)
        names = [url.removeprefix(root).lstrip("/") for url in urls]
    return [
        TarFile(*split_url(url), name.removesuffix(TAR_SUFFIX), versions.get(url, ""))
        for url, name in zip(urls, names, strict=True)
    ]


def _matching(pattern: Location) -> list[Location]:
    folder, name = split_url(pattern)
    before, _, behind = name.partition("*")
    if "*" in folder + behind:
        raise TarError(f"{pattern} has more than one * or one in a folder; write a .txt with the name of a tar a line")
    names = [path for path in open_location(folder).list(before) if "/" not in path and path.endswith(behind)]
    found = [path for path in names if len(path) >= len(before) + len(behind)]  # prefix and suffix must not overlap
    if not found:
        raise TarError(f"no tar matches {pattern}; correct the pattern")
    return [f"{folder.rstrip('/')}/{path}" for path in found]


def _is_file(url: Location) -> bool:
    folder, name = split_url(url)
    return open_location(folder).exists(name)

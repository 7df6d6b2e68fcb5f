"""WebDataset tars of audio as an input, indexed by their headers alone.

A sample is all members of one key, the name up to its first dot: one or more audio files (`key.flac`), and optionally
`key.json`: an object of labels, or, with a field `labels`, of all fields of a list's line: track, source, split, group,
labels. For names with dots, `key.mix.json` describes `key.mix.flac`. The JSON may come anywhere in the tar. A track is
named `<tar>/<key>`, or `<tar>/<key>.<ending>` if the sample has several audio files.

Plain tar readers take a cut or overwritten tar for a shorter one. Here a tar without its end mark is refused.
"""

import io
import json
import logging
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from webdataset.shardlists import expand_urls

from data.building.track_lists import check_split
from data.building.tracks import AudioPlace, ListEntry, Member
from data.pool import map_in_order
from data.store.files import Location, Store
from data.store.store import common_folder, is_remote, object_versions, open_location, open_store, split_url
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
    """One sample: its audio files, and the content of the JSON members that describe them.

    infos: by the stem, which a name has between key and suffix: "" for `key.json`, "mix" for `key.mix.json`.
    strays: names of JSON members that describe no audio.
    """

    key: str
    audio: tuple[Member, ...] = ()
    infos: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    strays: tuple[str, ...] = ()


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
    strays: list[str] = []
    read = map_in_order(_sample_or_reason, list(tars), workers=min(workers, len(tars)), preload="data.building.tars")
    for tar, found in zip(tars, follow(read, total=len(tars), title="index", unit="tars"), strict=True):
        if isinstance(found, str):
            damaged.append(found)
            continue
        silent += [f"{tar.name}/{sample.key}" for sample in found if not sample.audio]
        strays += [f"{tar.name}/{stray}" for sample in found if sample.audio for stray in sample.strays]
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
    if strays:
        _LOG.warning(
            "%d JSON members of the tars describe no audio, so they label no track; the first is %s",
            len(strays),
            strays[0],
        )
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
    contents: list[dict[str, bytes]] = []  # of the JSON members of each sample, by stem
    place_of_key: dict[str, int] = {}  # the last sample of each
    last_key = ""
    for member, content in _members(file, size_bytes=size_bytes, name=name):
        is_audio = PurePosixPath(f"x.{member.ending}").suffix.lower() in AUDIO_SUFFIXES
        here = place_of_key.get(member.key, -1)
        # audio of a key that has some makes another sample, unless the two are adjacent
        if here < 0 or (is_audio and samples[here].audio and member.key != last_key):
            here = place_of_key[member.key] = len(samples)
            samples.append(TarSample(member.key))
            contents.append({})
        last_key = member.key
        if content is not None and contents[here].setdefault(_stem(member), content) is not content:
            raise TarError(f"{name} holds {member.key}.{member.ending} twice, so labels are in doubt; remove one")
        if is_audio:
            samples[here] = replace(samples[here], audio=(*samples[here].audio, member))
    return [_with_labels(*found, name=name) for found in zip(samples, contents, strict=True)]


def _stem(member: Member) -> str:
    """Returns the part of a member's name between its key and its suffix: "" for `key.wav`."""
    return member.ending.rpartition(".")[0]


def _with_labels(sample: TarSample, contents: Mapping[str, bytes], *, name: str) -> TarSample:
    """Returns the sample with the JSON members that describe its audio; others are not parsed."""
    names = {stem: f"{sample.key}.{stem}.json" if stem else f"{sample.key}.json" for stem in contents}
    described = names.keys() & {"", *map(_stem, sample.audio)}
    infos = {stem: _json_object(contents[stem], f"{name}, {names[stem]}") for stem in sorted(described)}
    return replace(sample, infos=infos, strays=tuple(names[stem] for stem in names if stem not in described))


def _members(file: BinaryIO, *, size_bytes: int, name: str) -> Iterator[tuple[Member, bytes | None]]:
    """Yields the members of a tar, with the content of `.json` ones, and checks the end mark."""
    last = "its start"
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                if info.offset_data + info.size > size_bytes:
                    raise TarError(f"{name} is cut inside {info.name}")
                last = info.name
                if info.isdir() or PurePosixPath(info.name).name.startswith("."):
                    continue
                if info.issparse():
                    raise TarError(f"{name} stores {info.name} with holes; make it again without --sparse")
                folder, _, base = info.name.rpartition("/")
                stem, _, ending = base.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if not info.isreg():  # a link holds no bytes: its sample will be named as one without audio
                    ending = "link"
                is_json = f".{ending}".lower().endswith(".json")
                stream = tar.extractfile(info) if is_json else None
                yield Member(key, ending, info.offset_data, info.size), stream.read() if stream else None
            end = tar.offset
    except TarError:
        raise
    except (tarfile.TarError, ValueError, OverflowError, MemoryError) as error:  # damaged numbers in headers too
        raise TarError(f"{name} is not a tar or is damaged after {last} ({error})") from error
    file.seek(end)
    # tarfile, and every reader built on it, takes a damaged header for the end
    mark = file.read(_BLOCK_BYTES)
    if len(mark) < _BLOCK_BYTES or mark.strip(b"\0"):
        raise TarError(f"{name} is cut or damaged after {last}: no end mark at byte {end} of {size_bytes}")


def _json_object(content: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
        json.dumps(found, allow_nan=False)  # NaN and 1e400 could not be written into a shard
    except (ValueError, RecursionError) as error:
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
    except OSError as error:  # says nothing about the tar
        raise TarError(f"{where} cannot be read now ({error.strerror}); mend this, then run again") from error


def _entries(tar: TarFile, sample: TarSample, *, source: str) -> Iterator[ListEntry]:
    for member in sample.audio:
        given = sample.infos.get(_stem(member)) or sample.infos.get("", {})
        info = given if isinstance(given.get("labels"), dict) else {"labels": given or None}
        name = f"{tar.name}/{sample.key}"
        track = str(info["track"]) if info.get("track") is not None else name
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

"""Search for audio files in files and folders: a list in a fixed order, with unique names.

Links to files and folders are followed. Whatever a search leaves out is counted, and named where a user may miss it.
"""

import errno
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path, PurePosixPath

from pupujepa.audio.read import AUDIO_SUFFIXES
from pupujepa.errors import UserError

NOT_UNICODE = "names that are not valid Unicode, rename them"
# settings that macOS writes beside every file on a foreign disk; they keep the suffix of that file
_SIDECAR = "._"
_LEADS_NOWHERE = (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)
_MAX_NAMED = 5


@dataclass(frozen=True)
class FileState:
    """Version of a file: its size and the time of its last change."""

    size_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class AudioFile:
    """An audio file.

    name: its path below the searched folder, with forward slashes; for a file given directly, its file name.
    state: at the time of the search.
    """

    name: str
    path: Path
    state: FileState


@dataclass(frozen=True)
class PassedOver:
    """Everything that a search left out, for its summary.

    suffixes: number of files whose suffix is not that of audio that can be read.
    named: names of other files and links, by the reason.
    """

    suffixes: Counter[str] = field(default_factory=Counter)
    named: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, *names: str) -> None:
        """Notes files or links that were left out for a reason."""
        self.named.setdefault(reason, []).extend(names)

    def lines(self) -> list[str]:
        """Returns a summary: the number of files by suffix, the most frequent first, then names."""
        commonest = sorted(self.suffixes.items(), key=lambda item: (-item[1], item[0]))
        kinds = ", ".join(f"{count} {suffix or 'without one'}" for suffix, count in commonest)
        lines = (
            [f"passed over, not audio that is read (convert music to wav, flac, ogg or mp3): {kinds}"] if kinds else []
        )
        for reason, names in self.named.items():
            first = ", ".join(names[:_MAX_NAMED]).encode(errors="backslashreplace").decode()
            more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
            lines.append(f"passed over, {reason}: {len(names)} ({first}{more})")
        return lines


def find_audio(inputs: Iterable[Path]) -> tuple[list[AudioFile], PassedOver]:
    """Lists audio files in the order of the inputs, and by path within a folder.

    Folders are searched for `AUDIO_SUFFIXES` in any case; a file given directly may have any name.

    Returns:
        The files, and what was passed over in the folders.

    Raises:
        UserError: a missing input, a folder that cannot be read or has no audio, two files of one name, or a file given
            directly whose name is not Unicode.
    """
    found: dict[str, AudioFile] = {}
    passed_over = PassedOver()
    for given in inputs:
        for file in _files_of(given, passed_over):
            earlier = found.setdefault(file.name, file)
            if earlier is not file and earlier.path != file.path:  # the same file given twice is fine
                raise UserError(
                    f"{file.path} and {earlier.path} would both be stored as {file.name}; embed them separately"
                )
    return list(found.values()), passed_over


def search_folder(folder: Path, passed_over: PassedOver) -> list[str]:
    """Returns all files below a folder: relative paths with forward slashes, sorted by parts.

    Every folder is searched once: a loop of links ends, and a folder keeps its own name, not that of a link to it.

    Raises:
        UserError: a folder or the target of a link cannot be read, so that its files would be missing.
    """
    found: list[str] = []
    searched: set[str] = set()
    folders, linked = [""], list[str]()
    while folders or linked:
        name = folders.pop() if folders else heappop(linked)  # links last
        real = os.path.realpath(folder / name)
        # a link up would take in the neighbours of the searched folder too
        is_above = bool(name) and os.path.realpath((folder / name).parent).startswith(f"{real.rstrip('/')}/")
        if real in searched or is_above:
            passed_over.add("links to a folder that is searched already", name)
            continue
        searched.add(real)
        for entry in _entries(folder / name):
            below = f"{name}/{entry.name}" if name else entry.name
            match _kind(entry):
                case "file":
                    found.append(below)
                case "folder" if entry.is_symlink():
                    heappush(linked, below)
                case "folder":
                    folders.append(below)
                case reason:
                    passed_over.add(reason, below)
    return sorted(found, key=lambda name: name.split("/"))


def audio_among(names: Iterable[str], passed_over: PassedOver) -> list[str]:
    """Returns the names that are audio by their suffix, in their order."""
    audio = []
    for name in names:
        path = PurePosixPath(name)
        if path.name.startswith(_SIDECAR):
            passed_over.add(f"{_SIDECAR} files of macOS", name)
        elif path.suffix.lower() not in AUDIO_SUFFIXES:
            passed_over.suffixes[path.suffix.lower()] += 1
        elif not is_unicode(name):
            passed_over.add(NOT_UNICODE, name)
        else:
            audio.append(name)
    return audio


def is_unicode(name: str) -> bool:
    """Returns False for a name with surrogates, which Python makes of bytes that are not UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _files_of(given: Path, passed_over: PassedOver) -> Iterator[AudioFile]:
    """Yields the audio files of a folder, or the file itself."""
    if os.path.isfile(given):  # noqa: PTH113 - Path.is_file raises where a folder above may not be entered
        if not is_unicode(given.name):
            raise UserError(f"{given.name!a}: the name is not valid Unicode, so it cannot be stored; rename the file")
        yield AudioFile(given.name, given, _state(given))
        return
    if not os.path.isdir(given):  # noqa: PTH112 - as above
        raise UserError(f"{given}: no such file or folder; check the path")
    here = PassedOver()
    names = audio_among(search_folder(given, here), here)
    if not names:
        instead = "".join(f"; {line}" for line in here.lines())
        raise UserError(f"{given} holds no audio files ({', '.join(AUDIO_SUFFIXES)}){instead}")
    passed_over.suffixes.update(here.suffixes)
    for reason, left_out in here.named.items():
        passed_over.add(reason, *left_out)
    for name in names:
        yield AudioFile(name, given / name, _state(given / name))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise _unreadable(folder, error) from error


def _kind(entry: os.DirEntry[str]) -> str:
    """Returns "file", "folder", or the reason why the entry is neither."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError as error:  # of the target of a link
        if error.errno not in _LEADS_NOWHERE:
            raise _unreadable(entry.path, error) from error
    return "links that lead nowhere" if entry.is_symlink() else "neither files nor folders"


def _unreadable(path: Path | str, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be read ({error.strerror}), so its files would be missing; mend it or leave it out"
    )


def _state(path: Path) -> FileState:
    try:
        status = path.stat()
    except OSError:  # decoding it will raise a better error
        return FileState(0, 0)
    return FileState(status.st_size, status.st_mtime_ns)

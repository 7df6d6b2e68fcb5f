"""Which audio files there are: files and folders in, a list in a fixed order out, each under a name of its own."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pupujepa.audio.read import AUDIO_SUFFIXES
from pupujepa.errors import UserError


@dataclass(frozen=True)
class FileState:
    """Tells a file from what it was before or will be: its size in bytes, and when it was last written, in ns."""

    size_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class AudioFile:
    """An audio file.

    name: its path below the folder that was searched, with forward slashes; a file given by itself has its own name.
    state: when it was found.
    """

    name: str
    path: Path
    state: FileState


def find_audio(inputs: Iterable[Path]) -> tuple[list[AudioFile], Counter[str]]:
    """Lists audio files, folder by folder as given, and by path within a folder.

    Folders are searched for `AUDIO_SUFFIXES` in any case; a file that is given by itself is taken whatever its name.

    Returns:
        The files; and of those in the folders that have none of the suffixes, how many there are of each other one.

    Raises:
        UserError: a missing input, a folder without audio, two files of one name, or a name that is not Unicode.
    """
    found: dict[str, AudioFile] = {}
    passed_over: Counter[str] = Counter()
    for given in inputs:
        for file in _files_of(given, passed_over):
            if any("\udc80" <= letter <= "\udcff" for letter in file.name):  # what Python makes of undecodable bytes
                raise UserError(
                    f"{file.name!a}: the name is not valid Unicode, so no table can hold it; rename the file"
                )
            earlier = found.setdefault(file.name, file)
            if earlier is not file and earlier.path != file.path:
                raise UserError(
                    f"{file.path} and {earlier.path} would both be written as {file.name}; embed them separately"
                )
    return list(found.values()), passed_over


def told_passed_over(passed_over: Counter[str]) -> str:
    """Returns the sentence that says how many files were passed over, by suffix, the most frequent first."""
    commonest = sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))
    kinds = ", ".join(f"{count} {suffix or 'without one'}" for suffix, count in commonest)
    return f"passed over, no audio by their suffix: {kinds}"


def _files_of(given: Path, passed_over: Counter[str]) -> Iterator[AudioFile]:
    """Yields the audio of a folder, or the file itself; counts what is passed over."""
    if given.is_file():
        yield AudioFile(given.name, given, _state(given))
        return
    if not given.is_dir():
        raise UserError(f"{given}: no such file or folder; check the path")
    paths = sorted(path for path in given.rglob("*") if not path.is_dir())
    others = Counter(path.suffix.lower() for path in paths if path.suffix.lower() not in AUDIO_SUFFIXES)
    if others.total() == len(paths):
        instead = f"; {told_passed_over(others)}" if others else ""
        raise UserError(f"{given} holds no audio files ({', '.join(AUDIO_SUFFIXES)}){instead}")
    passed_over += others
    for path in paths:
        if path.suffix.lower() in AUDIO_SUFFIXES:
            yield AudioFile(path.relative_to(given).as_posix(), path, _state(path))


def _state(path: Path) -> FileState:
    """Returns zeros for what is no readable file, such as a dangling link: decoding it will say what is wrong."""
    if not path.is_file():
        return FileState(0, 0)
    status = path.stat()
    return FileState(status.st_size, status.st_mtime_ns)

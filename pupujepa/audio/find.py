"""Search for audio files in files and folders: a list in a fixed order, with unique names."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pupujepa.audio.read import AUDIO_SUFFIXES
from pupujepa.errors import UserError


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


def find_audio(inputs: Iterable[Path]) -> tuple[list[AudioFile], Counter[str]]:
    """Lists audio files in the order of the inputs, and by path within a folder.

    Folders are searched for `AUDIO_SUFFIXES` in any case; a file given directly may have any name.

    Returns:
        The files, and the number of other files in the folders by suffix.

    Raises:
        UserError: a missing input, a folder without audio, two files of one name, or a name that is not Unicode.
    """
    found: dict[str, AudioFile] = {}
    passed_over: Counter[str] = Counter()
    for given in inputs:
        for file in _files_of(given, passed_over):
            if any("\udc80" <= letter <= "\udcff" for letter in file.name):  # what Python makes of undecodable bytes
                raise UserError(
                    f"{file.name!a}: the name is not valid Unicode, so it cannot be stored; rename the file"
                )
            earlier = found.setdefault(file.name, file)
            if earlier is not file and earlier.path != file.path:  # the same file given twice is fine
                raise UserError(
                    f"{file.path} and {earlier.path} would both be stored as {file.name}; embed them separately"
                )
    return list(found.values()), passed_over


def told_passed_over(passed_over: Counter[str]) -> str:
    """Returns a sentence with the number of files passed over by suffix, the most frequent first."""
    commonest = sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))
    kinds = ", ".join(f"{count} {suffix or 'without one'}" for suffix, count in commonest)
    return f"passed over, no audio by their suffix: {kinds}"


def _files_of(given: Path, passed_over: Counter[str]) -> Iterator[AudioFile]:
    """Yields the audio files of a folder, or the file itself; counts other files in `passed_over`."""
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
    if not path.is_file():  # such as a dangling link; decoding it will raise a better error
        return FileState(0, 0)
    status = path.stat()
    return FileState(status.st_size, status.st_mtime_ns)

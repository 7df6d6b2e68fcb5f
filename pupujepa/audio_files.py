"""Which audio files there are: files and folders in, a list in a fixed order out, each under a name of its own."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pupujepa.errors import UserError

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif"})


@dataclass(frozen=True)
class AudioFile:
    """An audio file.

    name: its path below the folder that was searched, with forward slashes; a file given by itself has its own name.
    """

    name: str
    path: Path
    size_bytes: int


def find_audio(inputs: Iterable[Path]) -> list[AudioFile]:
    """Lists audio files, folder by folder as given, and by path within a folder.

    Raises:
        UserError: a missing input, a folder without audio, two files of one name, or a name that is not Unicode.
    """
    found: dict[str, AudioFile] = {}
    for file in _all(inputs):
        if any("\udc80" <= letter <= "\udcff" for letter in file.name):  # what Python makes of undecodable bytes
            raise UserError(f"{file.name!a}: the name is not valid Unicode, so no table can hold it; rename the file")
        earlier = found.setdefault(file.name, file)
        if earlier is not file and earlier.path != file.path:
            raise UserError(
                f"{file.path} and {earlier.path} would both be written as {file.name}; embed them separately"
            )
    return list(found.values())


def _all(inputs: Iterable[Path]) -> Iterator[AudioFile]:
    for given in inputs:
        if given.is_dir():
            paths = sorted(path for path in given.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
            if not paths:
                raise UserError(f"{given} holds no audio files ({', '.join(sorted(AUDIO_SUFFIXES))})")
            yield from (AudioFile(path.relative_to(given).as_posix(), path, _size_bytes(path)) for path in paths)
        elif given.is_file():
            yield AudioFile(given.name, given, _size_bytes(given))
        else:
            raise UserError(f"{given}: no such file or folder; check the path")


def _size_bytes(path: Path) -> int:
    """Returns 0 for what is no readable file, such as a dangling link: decoding it will say what is wrong."""
    return path.stat().st_size if path.is_file() else 0

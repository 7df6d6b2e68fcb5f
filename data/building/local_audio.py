"""Audio of any location as a temporary local file."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.building.tars import TarError, index_tar
from data.building.tracks import AudioPlace, Member
from data.store.files import Location, StoreError, local_copy
from data.store.store import open_location, split_url

_COPY_BYTES = 1 << 20


@contextmanager
def local_file(url: Location) -> Iterator[Path]:
    """Yields the file, or a temporary copy of an object. Raises StoreError if it cannot be fetched."""
    folder, name = split_url(url)
    with local_copy(open_location(folder), name) as file:
        yield file


@contextmanager
def local_audio(place: AudioPlace, *, tar: Path | None = None) -> Iterator[Path]:
    """Yields a file with the whole audio of `place`. Raises StoreError if it cannot be fetched.

    Args:
        tar: a local copy of its tar, if there is one.
    """
    if place.member is None:
        with local_file(place.url) as file:
            yield file
    elif tar is None:
        with local_file(place.url) as file, _extracted(file, place.member) as audio:
            yield audio
    else:
        with _extracted(tar, place.member) as audio:
            yield audio


def require_members(tar: Path, places: list[AudioPlace]) -> None:
    """Raises StoreError unless a copy of a tar has the members of its index.

    The index came from ranged reads, which stores do not check; the copy was fetched whole.
    """
    url = places[0].url
    try:
        with tar.open("rb") as file:
            held = {member for s in index_tar(file, size_bytes=tar.stat().st_size, name=url) for member in s.audio}
    except TarError as error:
        raise StoreError(f"{error}; it was whole when the build began: run again") from error
    for place in places:
        if place.member not in held:
            raise StoreError(f"{place.name} is not where the index of the tar has it: the tar changed; run again")


@contextmanager
def _extracted(tar: Path, member: Member) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile(prefix="pupujepa-", suffix=f".{member.ending.rpartition('.')[2]}") as audio:
        with tar.open("rb") as file:
            file.seek(member.offset)
            _copy(file, audio, member.bytes)
        audio.flush()  # other readers open it by name
        yield Path(audio.name)


def _copy(source, target, length: int) -> None:
    while length:
        piece = source.read(min(length, _COPY_BYTES))
        if not piece:
            raise StoreError(f"{source.name} ends {length} bytes too soon: it was cut; restore it")
        target.write(piece)
        length -= len(piece)

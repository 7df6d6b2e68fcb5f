"""Shares of a build: each machine makes the features of every n-th unit, and a merge packs them.

A finished share writes a receipt beside the spool, with the facts of its tracks. The merge computes no features, which
could take days on one machine; it names unfinished shares. Shares of one build may run at once; nothing else may.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from data.building.features import TrackFacts
from data.building.spool import facts_from_json
from data.store.files import Store
from pupujepa.errors import UserError
from pupujepa.locks import FolderInUseError, LockTakenError, held, only_writer, open_locked

_MAX_NAMED = 8
# parts come in one after the other, each in milliseconds, hundreds of them at once when a job array starts
_ENTRY_S = 30.0


@dataclass(frozen=True)
class Share:
    """Part `number` of `of`, counted from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def receipt(self) -> str:
        """Name of the share's receipt."""
        return f"parts/{self.number}-of-{self.of}.json"


def parse_share(text: str) -> Share:
    """Returns the share of the text "i/n". Raises UserError unless 1 <= i <= n."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--part {text!r} is not a part; write i/n with 1 <= i <= n, such as 3/8")
    return Share(int(found[1]), int(found[2]))


def write_receipt(store: Store, share: Share, *, digest: str, facts: Mapping[str, TrackFacts]) -> None:
    """Records in the work folder that a share is finished.

    Args:
        digest: of the build.
        facts: of all tracks of the share, by spool name.
    """
    content = {"digest": digest, "facts": {name: asdict(found) for name, found in facts.items()}}
    store.write(share.receipt, json.dumps(content).encode())


def read_receipts(store: Store, parts: int, *, digest: str) -> dict[str, TrackFacts]:
    """Returns the facts of all tracks, by spool name.

    Raises:
        UserError: parts are unfinished, or of another input or other settings; all are named.
    """
    present = set(store.list("parts/"))
    shares = [Share(number, parts) for number in range(1, parts + 1)]
    missing = [share for share in shares if share.receipt not in present]
    if missing:
        raise UserError(
            f"{len(missing)} of {parts} parts have not finished: {_named(missing)}; run each again with the same "
            f"arguments, e.g. --part {missing[0]}, which resumes it; then merge again"
        )
    facts: dict[str, TrackFacts] = {}
    strange = []
    for share in shares:
        receipt = json.loads(store.read(share.receipt))
        if receipt["digest"] != digest:
            strange.append(share)
        facts |= {name: facts_from_json(raw) for name, raw in receipt["facts"].items()}
    if strange:
        raise UserError(
            f"of {parts} parts, {_named(strange)} were made of another input (by path, size and modification time) or "
            "with other settings; run those parts again with the arguments of the merge"
        )
    return facts


@contextmanager
def only_build(folder: Path, *, digest: str, is_part: bool) -> Iterator[None]:
    """Reserves a folder for a build. The kernel ends the reservation with the process.

    Args:
        digest: of the build.
        is_part: other parts of the same build may come in too.

    Raises:
        FolderInUseError: another build, or a part of one, is at work in the folder.
        UserError: a folder that cannot be made or written to.
    """
    if not is_part:
        with only_writer(folder):
            _refuse_parts_but(None, folder)
            yield
        return
    own, handle = folder / f".parts-{digest[:16]}.lock", None
    with only_writer(folder, wait_s=_ENTRY_S):
        _refuse_parts_but(own, folder)
        with suppress(OSError):  # no locks on this file system: `only_writer` has warned
            own.touch()
            handle = open_locked(own, shared=True)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _refuse_parts_but(own: Path | None, folder: Path) -> None:
    """Removes the locks of parts that have ended.

    Raises:
        FolderInUseError: parts of another build are at work.
    """
    for lock in set(folder.glob(".parts-*.lock")) - {own}:
        try:
            with suppress(OSError), held(lock):  # which removes it
                pass
        except LockTakenError as error:
            raise FolderInUseError(
                f"parts of a build are being made in {folder}; another build would mix its files with theirs: wait for "
                "them, end them, or choose another folder"
            ) from error


def _named(shares: Sequence[Share]) -> str:
    more = f" and {len(shares) - _MAX_NAMED} more" if len(shares) > _MAX_NAMED else ""
    return ", ".join(map(str, shares[:_MAX_NAMED])) + more

"""Tracks that a build leaves out: their list, the limit on unusable ones, and the summary by reason.

Only damaged and missing tracks count against the limit: tracks that are whole but too short or silent do not. A track
that cannot be read now is not rejected: the build stops without it, and its next start tries it again.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from data.building.config import BuildConfig
from data.building.features import TrackFacts
from data.building.tracks import DAMAGED, MISSING, UNREADABLE, quantity
from data.store.files import Store
from pupujepa.errors import UserError
from pupujepa.json_lines import encode_rows

REJECTED_NAME = "rejected.jsonl"
NOTES_NAME = "notes.jsonl"
# if the limit is a share, a small build continues to its end, to name all unusable tracks at once
_MAX_BEFORE_END = 20
_MAX_NAMED = 5


@dataclass(frozen=True)
class Rejections:
    """The limit and the list of the tracks that a build leaves out.

    Args:
        total: tracks of the whole input.
        store: of the corpus.
        name: of the list in the store.
    """

    config: BuildConfig
    total: int
    store: Store
    name: str = REJECTED_NAME

    def write(self, left_out: Mapping[str, TrackFacts]) -> None:
        """Writes the list of the tracks that are left out, with kinds and reasons."""
        rows = ({"kind": f.kind, "reason": f.rejected, "track": track} for track, f in sorted(left_out.items()))
        self.store.write(self.name, encode_rows(rows))

    def judge(self, left_out: Mapping[str, TrackFacts], *, at_end: bool) -> None:
        """Writes the list and raises UserError if the build must not continue.

        Args:
            left_out: the facts of the tracks that are left out so far, by track.
            at_end: no other track will follow.

        Raises:
            UserError: more unusable tracks than allowed, no usable one, or tracks that cannot be read now.
        """
        unusable = {track: f for track, f in left_out.items() if f.kind in (DAMAGED, MISSING)}
        unread = {track: f for track, f in left_out.items() if f.kind == UNREADABLE}
        files, where = quantity(self.total, "file"), f"see {self.store.locate(self.name)}"
        if len(left_out) == self.total and not unread:
            problem = f"none of {files} can be used, {_because(left_out)}; {where}"
        elif self._are_too_many(len(unusable), at_end=at_end):
            problem = (
                f"{len(unusable)} of {files} cannot be used, more than --max-rejected {self.config.max_rejected:g} "
                f"allows, {_because(unusable)}; {where}, then repair or remove them, or raise the limit"
            )
        elif unread and (at_end or self._are_too_many(len(unread), at_end=False)):
            problem = (
                f"{len(unread)} of {files} cannot be read now, {_because(unread)}; mend this or leave them out, then "
                "run the same command again, which keeps what is done"
            )
        else:
            return
        self.write(left_out)
        raise UserError(problem)

    def _are_too_many(self, count: int, *, at_end: bool) -> bool:
        is_early = not at_end and self.config.max_rejected < 1 and count <= _MAX_BEFORE_END
        return not is_early and not self.config.bears(count, self.total)


def _because(left_out: Mapping[str, TrackFacts]) -> str:
    """Returns the reason of the first track and the names of some others."""
    first, *others = left_out
    more = f" and {len(others) - _MAX_NAMED} more" if len(others) > _MAX_NAMED else ""
    also = f" (the others: {', '.join(others[:_MAX_NAMED])}{more})" if others else ""
    return f"the first because: {left_out[first].rejected}{also}"


def write_notes(store: Store, notes: Mapping[str, str]) -> None:
    """Writes the remarks on tracks that are used, by track; without any there is no list."""
    if notes:
        store.write(NOTES_NAME, encode_rows({"note": note, "track": track} for track, note in sorted(notes.items())))
    else:
        store.remove(NOTES_NAME)  # of an earlier build


def summary_lines(facts: Iterable[TrackFacts], store: Store, *, dropped: int) -> list[str]:
    """Returns lines that account for every track of the input, with the first notes.

    Args:
        dropped: tracks left out because they repeat another.
    """
    kinds: Counter[str] = Counter()
    notes = []
    for found in facts:
        kinds[found.kind] += 1
        if found.note:
            notes.append(found.note)
    left_out = [f"{count} {kind}" for kind, count in kinds.most_common() if kind]
    repeated = [f"{quantity(dropped, 'duplicate')} dropped"] if dropped else []
    where = [f"see {store.locate(REJECTED_NAME)}"] if left_out else []
    used = f"{quantity(kinds.total(), 'track')} in the input: {kinds[''] - dropped} built"
    lines = ["; ".join([", ".join([used, *left_out, *repeated]), *where])]
    lines += [f"note: {note}" for note in notes[:_MAX_NAMED]]
    if len(notes) > _MAX_NAMED:
        lines.append(f"note: {len(notes) - _MAX_NAMED} more, see {store.locate(NOTES_NAME)}")
    return lines

"""The first half of a build: every track decoded and turned into parts in the spool, by processes, once."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from data.build_config import BuildConfig
from data.features import TrackFacts
from data.files import Location, Store
from data.pool import map_unordered
from data.spool import Unit, spool_unit, spooled_facts
from pupujepa.errors import UserError
from pupujepa.json_lines import encode_rows
from pupujepa.progress import Progress

REJECTED_NAME = "rejected.jsonl"


@dataclass(frozen=True)
class Rejections:
    """Decides when too many tracks are unusable, and writes down which.

    Args:
        total: tracks of the whole input.
        store: of the corpus.
        name: of the list there.
    """

    config: BuildConfig
    total: int
    store: Store
    name: str = REJECTED_NAME

    def write(self, rejected: Mapping[str, str]) -> None:
        """Lists unusable tracks and the reasons, by name."""
        rows = ({"reason": reason, "track": track} for track, reason in sorted(rejected.items()))
        self.store.write(self.name, encode_rows(rows))

    def judge(self, rejected: Mapping[str, str]) -> None:
        """Writes the list and raises UserError when there are more than the build bears."""
        count = len(rejected)
        if self.config.bears(count, self.total) and count < self.total:
            return
        self.write(rejected)
        where, first = f"see {self.store.locate(self.name)}", next(iter(rejected.values()))
        if count == self.total:
            raise UserError(f"none of {self.total} files can be used, the first because: {first}; {where}")
        raise UserError(
            f"{count} of {self.total} files cannot be used, more than --max-rejected {self.config.max_rejected:g} "
            f"allows, the first because: {first}; {where}, then repair or remove them, or raise the limit"
        )


def make_features(
    units: Sequence[Unit], *, spool: Location, config: BuildConfig, workers: int, rejections: Rejections
) -> dict[str, TrackFacts]:
    """Returns the facts of all tracks of `units` by their names in the spool, where their parts lie then.

    Raises:
        UserError: more unusable tracks than the build bears; it stops at the first that is too many.
    """
    tracks = {name: track for unit in units for track, name in unit}
    known = spooled_facts(spool, tracks)
    todo = [[(track, name) for track, name in unit if name not in known] for unit in units]
    rejected = {tracks[name].track: facts.rejected for name, facts in known.items() if facts.rejected}
    rejections.judge(rejected)
    frames, hours_per_frame = 0, 1 / config.features.frontend.frames_per_s / 3600
    work = partial(spool_unit, spool=spool, config=config.features)
    pieces = list(enumerate(unit for unit in todo if unit))
    with (
        Progress(len(tracks), title="features", unit="tracks") as progress,
        closing(map_unordered(work, pieces, workers=workers, preload="data.spool")) as results,
    ):
        progress.skip(len(known))
        for position, found in results:
            for (track, name), facts in zip(pieces[position][1], found, strict=True):
                known[name] = facts
                frames += facts.frames
                if facts.rejected:
                    rejected[track.track] = facts.rejected
            rejections.judge(rejected)
            rate = frames * hours_per_frame / (progress.elapsed_s / 60)
            progress.advance(len(found), note=f"{rate:.2f} h of audio per minute, {len(rejected)} rejected")
    return known

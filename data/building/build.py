"""A build from tracks to shards with a manifest; resumable at every step, on one machine or several."""

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

from data.building.config import BuildConfig, input_digest, read_build_record, write_build_record
from data.building.duplicates import DUPLICATES_NAME, Duplicates, find_duplicates, to_lines, without
from data.building.features import TrackFacts
from data.building.packing import PlannedShard, SpooledTrack, pack_shard, plan_shards
from data.building.rejections import Rejections, summary_lines, write_notes
from data.building.shares import Share, only_build, read_receipts, write_receipt
from data.building.spool import make_features, spool_id, units
from data.building.tracks import SourceTrack
from data.pool import map_unordered
from data.shards.format import index_name
from data.shards.manifest import MANIFEST_NAME, SPLITS, Manifest, ShardEntry, write_manifest
from data.store.files import Location
from data.store.store import LocalStore, Store, open_store
from pupujepa.audio.log_mel import frontend_digest
from pupujepa.durable import PART_SUFFIX, remove_unfinished
from pupujepa.errors import UserError
from pupujepa.progress import Progress


class Build:
    """One build from tracks to manifests; every step leaves whole files, so that the next run resumes it.

    Args:
        url: of the corpus; its splits are folders in it.
        work: folder for intermediate files, removed at the end; machines that share a build share it.
        workers: processes.
    """

    def __init__(
        self, tracks: Sequence[SourceTrack], url: Location, *, config: BuildConfig, work: Location, workers: int
    ):
        self.tracks, self.url, self.config, self.workers = tracks, url, config, workers
        self.work = str(work)
        self.store = open_store(url)
        self.frames_per_s = config.features.frontend.frames_per_s
        self.names = [spool_id(track, config.features) for track in tracks]
        self.digest = input_digest(tracks, self.names, config)
        self.duplicates: list[Duplicates] = []
        self.summary: list[str] = []

    @property
    def spool(self) -> Location:
        """Folder of the parts of tracks until they are packed."""
        return f"{self.work}/spool"

    @contextmanager
    def reserved(self, *, is_part: bool) -> Iterator[None]:
        """Keeps other builds out of the corpus and the work folder; parts of this one may come in together.

        Only folders of file systems can be reserved, not those of an object store.

        Raises:
            FolderInUseError: another build, or a part of one, is at work there.
        """
        out, work = (store.root if isinstance(store, LocalStore) else None for store in (self.store, self._work))
        with ExitStack() as stack:
            if out is not None:
                stack.enter_context(only_build(out, digest=self.digest, is_part=is_part))
            if work is not None and (out is None or not work.resolve().is_relative_to(out.resolve())):
                stack.callback(_remove_if_empty, work)  # after its lock file is gone
                stack.enter_context(only_build(work, digest=self.digest, is_part=is_part))
            yield

    def run(self, *, replace: bool = False) -> dict[str, Manifest]:
        """Builds all splits and returns their manifests.

        Raises:
            UserError: too many rejected inputs, no usable audio, no training audio, or OUT has another build.
        """
        self._refuse_other_build(replace=replace)
        facts = self._make_features(units(self.tracks, self.names), self._rejections())
        return self._finish(facts, replace=replace)

    def run_share(self, share: Share, *, replace: bool = False) -> dict[str, TrackFacts]:
        """Makes the features of a share, writes its receipt and returns the facts by spool name.

        Raises:
            UserError: too many rejected inputs, or OUT has another build.
        """
        self._refuse_other_build(replace=replace)
        mine = units(self.tracks, self.names)[share.number - 1 :: share.of]  # strided, so that shares are alike
        rejections = self._rejections(name=f"rejected-{share.number}-of-{share.of}.jsonl")
        facts = self._make_features(mine, rejections)
        write_receipt(self._work, share, digest=self.digest, facts=facts)
        return facts

    def merge(self, parts: int, *, replace: bool = False) -> dict[str, Manifest]:
        """Packs the features of all shares and returns the manifests; the bytes equal those of `run`.

        Raises:
            UserError: unfinished shares, by name, and the errors of `run`.
        """
        self._refuse_other_build(replace=replace)
        return self._finish(read_receipts(self._work, parts, digest=self.digest), replace=replace)

    def clean(self) -> None:
        """Removes the intermediate files; a work folder with other files in it stays."""
        work = self._work
        if isinstance(work, LocalStore):
            for folder in ("spool", "parts"):
                shutil.rmtree(work.root / folder, ignore_errors=True)
            _remove_if_empty(work.root)
            return
        for name in [*work.list("spool/"), *work.list("parts/")]:
            work.remove(name)

    def is_complete(self) -> bool:
        """Returns True if OUT has exactly this build."""
        recorded = read_build_record(self.store)
        if recorded is None or recorded["digest"] != self.digest:
            return False
        return all(self.store.exists(f"{split}/{MANIFEST_NAME}") for split in recorded["splits"])

    @property
    def _work(self) -> Store:
        return open_store(self.work)

    def _refuse_other_build(self, *, replace: bool) -> None:
        published = self._published()
        recorded = read_build_record(self.store)
        if published and not (recorded and recorded["digest"] == self.digest) and not replace:
            raise UserError(
                f"{self.url} already holds another corpus ({', '.join(published)}), which runs may need; choose "
                "another OUT, or replace it with --replace"
            )

    def _published(self) -> list[str]:
        return [split for split in SPLITS if self.store.exists(f"{split}/{MANIFEST_NAME}")]

    def _rejections(self, **name: str) -> Rejections:
        return Rejections(self.config, len(self.tracks), self.store, **name)

    def _make_features(self, pieces: Sequence, rejections: Rejections) -> dict[str, TrackFacts]:
        return make_features(pieces, spool=self.spool, config=self.config, workers=self.workers, rejections=rejections)

    def _finish(self, facts: Mapping[str, TrackFacts], *, replace: bool) -> dict[str, Manifest]:
        spooled = self._usable(facts)
        self._refuse_other_build(replace=replace)  # again: one may have been published during the feature pass
        shards = {split: self._plan(spooled, split) for split in SPLITS}
        self._remove_leftovers()
        # without a manifest, readers do not take the new shards for a complete set
        for split in self._published():
            self.store.remove(f"{split}/{MANIFEST_NAME}")
        entries = self._pack([shard for planned in shards.values() for shard in planned])
        self._remove_strangers({name for planned in shards.values() for shard in planned for name in _files(shard)})
        manifests = self._manifests(spooled, {split: [entries[s.name] for s in shards[split]] for split in SPLITS})
        rejected = sum(bool(found.rejected) for found in facts.values())
        write_build_record(
            self.store,
            self.config,
            digest=self.digest,
            inputs=len(self.tracks),
            rejected=rejected,
            duplicates=sum(len(same.tracks) - 1 for same in self.duplicates),
            splits=sorted(manifests),
        )
        # the training split last: a run that waits for it finds the others
        for split in reversed(SPLITS):  # test, valid, train
            if split in manifests:
                write_manifest(self.store.locate(split), manifests[split])
        self.clean()
        return manifests

    def _usable(self, facts: Mapping[str, TrackFacts]) -> list[SpooledTrack]:
        """Returns the tracks to pack; writes the lists of rejected and duplicate tracks."""
        done = [SpooledTrack(t, name, facts[name]) for t, name in zip(self.tracks, self.names, strict=True)]
        left_out = {spooled.track.track: spooled.facts for spooled in done if spooled.facts.rejected}
        rejections = self._rejections()
        rejections.judge(left_out, at_end=True)
        rejections.write(left_out)
        write_notes(self.store, {s.track.track: s.facts.note for s in done if s.facts.note})
        usable = [track for track in done if not track.facts.rejected]
        self.duplicates, dropping = find_duplicates(usable), self.config.drop_duplicates
        self.store.write(DUPLICATES_NAME, to_lines(self.duplicates, dropped=dropping))
        spooled = without(usable, self.duplicates) if dropping else usable
        self.summary = summary_lines(facts.values(), self.store, dropped=len(usable) - len(spooled))
        if not any(track.track.split == "train" for track in spooled):
            raise UserError("the training split is empty, but every split needs its mean and deviation; add tracks")
        return spooled

    def _plan(self, spooled: Sequence[SpooledTrack], split: str) -> list[PlannedShard]:
        return plan_shards(
            spooled,
            split,
            seed=self.config.seed,
            shard_bytes=self.config.shard_bytes,
            frames_per_s=self.frames_per_s,
        )

    def _pack(self, shards: Sequence[PlannedShard]) -> dict[str, ShardEntry]:
        work = partial(_pack_one, spool=self.spool, url=self.url)
        entries: dict[str, ShardEntry] = {}
        written_bytes = 0
        with Progress(len(shards), title="shards", unit="shards") as progress:
            for position, entry in map_unordered(
                work, list(enumerate(shards)), workers=min(self.workers, len(shards)), preload="data.building.packing"
            ):
                entries[shards[position].name] = entry
                written_bytes += entry.bytes
                progress.advance(note=f"{written_bytes / progress.elapsed_s / 1e6:.0f} MB/s")
        return entries

    def _remove_leftovers(self) -> None:
        """Removes the partial files of killed workers."""
        if isinstance(self.store, LocalStore):
            for folder in (self.store.root / split for split in SPLITS):
                remove_unfinished(folder)
            for leftover in self.store.root.glob(f".*{PART_SUFFIX}"):
                leftover.unlink()

    def _remove_strangers(self, planned: set[str]) -> None:
        """Removes shards of an earlier plan, which a reader of all tars in the folder would find."""
        for path in self.store.list():
            split, _, name = path.partition("/")
            if split in SPLITS and name.startswith(f"{split}-") and ".tar" in name and path not in planned:
                self.store.remove(path)
            if path.startswith("rejected-") and path.endswith(".jsonl"):  # of parts that stopped
                self.store.remove(path)

    def _manifests(self, spooled: Sequence[SpooledTrack], entries: dict[str, list[ShardEntry]]) -> dict[str, Manifest]:
        features = self.config.features
        mean, std = moments([t.facts for t in spooled if t.track.split == "train"], features.frontend.mel_bands)
        manifests = {}
        for split in SPLITS:
            facts = [t.facts for t in spooled if t.track.split == split]
            if facts:
                manifests[split] = Manifest(
                    split=split,
                    frontend=asdict(features.frontend),
                    frontend_digest=frontend_digest(features.frontend),
                    dtype=features.dtype,
                    lo=features.lo,
                    hi=features.hi,
                    mean=mean,
                    std=std,
                    audio_hours=sum(f.frames for f in facts) / self.frames_per_s / 3600,
                    tracks=len(facts),
                    shards=tuple(entries[split]),
                    clipped_values=sum(f.clipped for f in facts),
                )
        return manifests


def moments(facts: Sequence[TrackFacts], mel_bands: int) -> tuple[float, float]:
    """Returns mean and standard deviation over all stored values, independent of the order of tracks."""
    count = sum(f.frames for f in facts) * mel_bands
    mean = math.fsum(f.total for f in facts) / count
    # fsum is exact
    return mean, math.sqrt(max(math.fsum(f.total_of_squares for f in facts) / count - mean * mean, 0.0))


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _files(shard: PlannedShard) -> tuple[str, str]:
    return f"{shard.split}/{shard.name}", f"{shard.split}/{index_name(shard.name)}"


def _pack_one(shard: PlannedShard, *, spool: Location, url: Location) -> ShardEntry:
    return pack_shard(shard, spool=spool, url=open_store(url).locate(shard.split))

"""The stream of micro-batches; global batches are equal for any world size, workers and micro-batch.

    corpora = read_corpora(config)    # one, or a mix of several
    stream = Stream(config, manifest=corpora, rank=0, world_size=1, micro_batch=16, masks=masks, total_steps=1000)
    stream.seek(state)                # of a checkpoint; replays nothing
    for batch in stream:              # epoch after epoch, until total_steps
        ...
    state = stream.state()            # a few bytes, the same on all ranks

Worker processes make the batches (`data.stream.workers`). Steps are the same on every rank; any world size that divides
the lanes resumes a checkpoint of any other.
"""

import logging
import time
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, replace

from data.order.layout import Layout, OrderError, lanes_of_rank, micro_batches_per_step
from data.order.mix import Mix
from data.reading.fetching import COUNTED
from data.shards.manifest import Manifest
from data.store.store import open_store
from data.stream.batches import Batch, CropStage, MaskStage
from data.stream.config import StreamConfig
from data.stream.corpora import Corpora, StreamCorpus
from data.stream.source import ReadPlan
from data.stream.workers import Failure, Recipe, deliveries_of
from pupujepa.errors import UserError
from pupujepa.training.masks import MaskConfig

_LOG = logging.getLogger(__name__)


class StreamError(UserError):
    """A stream that cannot start, seek or continue."""


@dataclass(frozen=True)
class StreamState:
    """The position of a stream, as checkpoints keep it; the same on all ranks.

    step is the next global step, from the start of training; epoch is its epoch. layout has the settings of the order
    as text; "" is not compared. mix has the corpora and their shares as text; "" is a single corpus.
    """

    manifest_digest: str
    seed: int
    epoch: int
    step: int
    layout: str = ""
    mix: str = ""


class Stream:
    """The micro-batches of one rank.

    Args:
        manifest: of the corpus at the configuration's url, or all corpora of its mix.
        ranks_of_node: ranks that share the node's cache, including this one.
        total_steps: length of the run, where the stream ends.
        horizon_steps: basis of the masks' warm-up fractions; None is the length of the run.
        patch_frames, patch_bands: of the model, for the masks' grid.
        pin_memory: batches are in page-locked memory.

    Raises:
        OrderError: lanes, world size, global batch and micro-batch do not divide.
        StreamError: other settings do not fit together.
    """

    def __init__(
        self,
        config: StreamConfig,
        *,
        manifest: Manifest | Corpora,
        rank: int,
        world_size: int,
        micro_batch: int,
        ranks_of_node: int = 1,
        masks: MaskConfig | None = None,
        total_steps: int | None = None,
        horizon_steps: int | None = None,
        patch_frames: int = 4,
        patch_bands: int = 16,
        pin_memory: bool = False,
    ):
        corpora = (
            manifest if isinstance(manifest, Corpora) else Corpora((StreamCorpus("", config.url, manifest),), (1,))
        )
        self.config, self.corpora, self.pin_memory = config, corpora, pin_memory
        self.mix = _mix(config, corpora)
        lanes = tuple(lanes_of_rank(config.lanes, rank, world_size))
        self.micro_batches_per_step = micro_batches_per_step(config.global_batch, world_size, micro_batch)
        _check_cache(config, corpora, len(lanes) * ranks_of_node)
        ranges = tuple((of_corpus.lo, of_corpus.hi) for of_corpus in corpora.manifests)
        crop = CropStage(config.seed, config.crop_frames, ranges, corpora.mean, corpora.std)
        mask = None
        if masks is not None:
            grid = _grid(config.crop_frames, corpora.frontend["mel_bands"], patch_frames, patch_bands)
            mask = _mask_stage(config.seed, masks, grid, horizon_steps or total_steps)
        plan = ReadPlan(self.mix, lanes, micro_batch, last_step=total_steps)
        self._recipe = Recipe(config, corpora, plan, crop, mask)
        self._rank = rank
        self._next_step, self._taken_of_step = 0, 0
        self._iteration = 0
        self._counters: Counter[str] = Counter()
        self._wait_s = 0.0
        self._damaged_of_epoch: tuple[int, list[str]] = (0, [])  # (epoch, uids)

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of an epoch; in a mix, an epoch draws as many samples as all corpora have."""
        return self.mix.steps_per_epoch

    def state(self) -> StreamState:
        """Returns the position of the stream. A step counts once all its micro-batches were yielded."""
        epoch = self._next_step // self.steps_per_epoch
        layout, mix = self.mix.describe(), self.corpora.describe()
        return StreamState(self.corpora.digest, self.config.seed, epoch, self._next_step, layout, mix)

    def seek(self, state: StreamState) -> None:
        """Moves to the position of a stream of the same data, of any world size, workers and micro-batch.

        Raises:
            StreamError: the state is of another shard set, mix, seed or layout.
        """
        # of this stream at that step
        expected = replace(self.state(), step=state.step, epoch=state.step // self.steps_per_epoch)
        for name, of_state, of_stream in (
            ("mix", state.mix or "of one corpus", expected.mix or "of one corpus"),
            ("shard set (manifest digest)", state.manifest_digest, expected.manifest_digest),
            ("seed", state.seed, expected.seed),
            ("layout", state.layout or expected.layout, expected.layout),  # old checkpoints have ""
            (f"epoch at step {state.step}", state.epoch, expected.epoch),
        ):
            if of_state != of_stream:
                raise StreamError(
                    f"the checkpoint was made with {name} {of_state}, this stream has {of_stream}: resuming would "
                    "repeat some samples and lose others; use the same data and settings, or begin a new run"
                )
        self._next_step, self._taken_of_step = state.step, 0
        self._iteration += 1

    def counters(self) -> dict[str, float]:
        """Returns totals since the stream was made: `data.reading.fetching.COUNTED`, `wait_s` and `left_out`.

        wait_s: seconds that training waited for batches. left_out: draws of finished epochs in no batch, of all ranks.
        """
        left_out = self.mix.left_out(self._next_step)
        return {name: self._counters[name] for name in COUNTED} | {"wait_s": self._wait_s, "left_out": left_out}

    def mixture(self) -> dict[str, float]:
        """Returns `mix/NAME/share` of the crops so far and `mix/NAME/epochs` per corpus; {} for one corpus.

        The same on all ranks: computed from the step, not counted.
        """
        if len(self.corpora.members) == 1:
            return {}
        drawn, numbers = self.mix.taken_by_all(self._next_step), {}
        for corpus, layout, items in zip(self.corpora.members, self.mix.layouts, drawn):
            numbers[f"mix/{corpus.name}/share"] = items / max(1, sum(drawn))
            numbers[f"mix/{corpus.name}/epochs"] = items / (layout.items_per_lane_epoch * layout.lanes)
        return numbers

    def __iter__(self) -> Generator[Batch, None, None]:
        """Yields batches from the current position; restarts a step that was yielded in part.

        Raises:
            StreamError: too many damaged samples. ShardError, StoreError, CacheError: a shard cannot be read.
        """
        self._iteration += 1
        iteration, self._taken_of_step = self._iteration, 0
        plan = replace(self._recipe.plan, first_step=self._next_step)
        with deliveries_of(replace(self._recipe, plan=plan), pin_memory=self.pin_memory) as deliveries:
            while True:
                started = time.perf_counter()
                delivery = next(deliveries, None)
                self._wait_s += time.perf_counter() - started
                if delivery is None:
                    return
                self._counters.update(delivery.counts)
                if isinstance(delivery, Failure):
                    raise delivery.error
                if delivery.batch is None:
                    continue
                self._take(delivery.batch, delivery.damaged)
                yield delivery.batch
                if iteration != self._iteration:  # checked after the yield, where the caller may have called seek
                    raise StreamError("another seek or iteration ended this one; begin a new iteration")

    def _take(self, batch: Batch, damaged_of_batch: list[str]) -> None:
        self._taken_of_step += 1
        if self._taken_of_step == self.micro_batches_per_step:
            self._next_step, self._taken_of_step = batch.step + 1, 0  # the last micro-batch of the step
        epoch, damaged = self._damaged_of_epoch
        damaged = damaged_of_batch if batch.epoch != epoch else damaged + damaged_of_batch
        self._damaged_of_epoch = (batch.epoch, damaged)
        # of this rank in an epoch
        draws = self.steps_per_epoch * self.micro_batches_per_step * self._recipe.plan.micro_batch
        if len(damaged) > self.config.max_bad_fraction * draws:
            names, urls = sorted(set(damaged)), self.corpora.urls
            _LOG.error("damaged samples of %s: %s", ", ".join(urls), " ".join(names))
            verify = " and ".join(f"`python -m data verify {url}`" for url in urls)
            raise StreamError(
                f"{len(damaged)} of the {draws} samples of rank {self._rank} in epoch {batch.epoch} are "
                f"damaged, more than max_bad_fraction {self.config.max_bad_fraction:g}: {' '.join(names[:20])}"
                f"{' ...' if len(names) > 20 else ''}; run {verify}, then restore the shards or build them again"
            )


def _mix(config: StreamConfig, corpora: Corpora) -> Mix:
    if config.workers < 0 or config.prefetch_batches < 1 or config.crop_frames < 1:
        raise StreamError(
            f"workers {config.workers}, prefetch_batches {config.prefetch_batches} and crop_frames "
            f"{config.crop_frames} must be at least 0, 1 and 1"
        )
    several = len(corpora.members) > 1
    layouts = []
    for corpus in corpora.members:
        if several and corpus.manifest.samples * config.crops_per_sample < config.lanes:
            raise OrderError(
                f"corpus {corpus.name} ({corpus.url}) holds {corpus.manifest.samples} samples x "
                f"{config.crops_per_sample} crops, fewer than the {config.lanes} lanes, so some lanes would have none "
                "of it; use fewer lanes or leave the corpus out"
            )
        layouts.append(
            Layout(
                manifest_digest=corpus.manifest.digest,
                samples_per_shard=tuple(shard.samples for shard in corpus.manifest.shards),
                seed=config.seed,
                lanes=config.lanes,
                # each corpus of a mix has its own epochs, in which every lane gives equally many items
                global_batch=config.lanes if several else config.global_batch,
                window_shards=config.window_shards,
                crops_per_sample=config.crops_per_sample,
            )
        )
    return Mix(tuple(layouts), corpora.parts, config.global_batch)


def _check_cache(config: StreamConfig, corpora: Corpora, num_lanes: int) -> None:
    """Raises StreamError if the cache cannot hold a node's windows: shards would be fetched repeatedly."""
    needed = 0
    for corpus in corpora.members:
        if open_store(corpus.url).local_path() is None:
            # worst case: the largest shards together
            sizes = sorted((shard.bytes for shard in corpus.manifest.shards), reverse=True)
            needed += sum(sizes[: num_lanes * config.window_shards])
    if needed > config.cache_bytes:
        raise StreamError(
            f"cache_bytes {config.cache_bytes} cannot hold the {num_lanes} lanes x {config.window_shards} shards that "
            f"a node reads at a time{' of each corpus' if len(corpora.members) > 1 else ''}, up to {needed} bytes; "
            "raise cache_bytes, or in a new run lower window_shards or lanes"
        )


def _grid(crop_frames: int, mel_bands: int, patch_frames: int, patch_bands: int) -> tuple[int, int]:
    if crop_frames % patch_frames or mel_bands % patch_bands:
        raise StreamError(
            f"patches of {patch_frames} x {patch_bands} do not divide a crop of {crop_frames} frames x {mel_bands} "
            f"bands, so masks cannot cover it; use crop_frames {crop_frames // patch_frames * patch_frames}"
        )
    return crop_frames // patch_frames, mel_bands // patch_bands


def _mask_stage(seed: int, masks: MaskConfig, grid: tuple[int, int], total_steps: int | None) -> MaskStage:
    if total_steps is None:
        raise StreamError("total_steps is not set, but masks follow the progress of the run; set it")
    return MaskStage(seed, masks, steps=grid[0], bands=grid[1], total_steps=total_steps)

"""A training run at scale, by arithmetic: bytes, rates, and the simulated run.

Sizes come from the code itself (operations per crop, bytes of a sample, the preset's batch), the rest from `MEASURED`
and `ASSUMED`, so that a page can list every number with its source.
"""

import math
from dataclasses import dataclass
from functools import cache

from benchmarks.simulate.network import FOREVER, Latency, StoreModel
from benchmarks.simulate.outcome import Site
from benchmarks.simulate.reading import Run
from data.building.build import BuildConfig
from data.building.features import FeatureConfig
from data.order.layout import Layout
from data.stream.config import StreamConfig
from distributed.experiment import load_experiment
from distributed.run.speed import PEAK_BF16_TFLOPS
from pupujepa.audio.log_mel import FrontendConfig
from pupujepa.cost.cost import training_cost

SIZES = ("tiny", "small", "base", "large", "huge", "giant")
GPUS_PER_NODE = 8
FRAMES_PER_S = FrontendConfig().frames_per_s
SAMPLE_FRAMES = FeatureConfig().part_frames
BYTES_OF_VALUE = {"uint8": 1, "float16": 2}


@dataclass(frozen=True)
class Number:
    """A number that the code does not decide, with its unit and its source."""

    value: float
    unit: str
    source: str


_START = "`python -m benchmarks simulate --start`, in benchmarks/RESULTS.md"
MEASURED = {
    "overhead_bytes": Number(
        2816, "bytes", "tar headers, .npy header and JSON of a sample, in the shards of `make demo`"
    ),
    "crop_cpu_s": Number(3.7e-4, "core-seconds", f"one crop read, checked, decoded, masked: {_START}"),
    "start_s": Number(1.6e-5, "seconds a shard", f"manifest parsed, digested, handed on, ordered: {_START}"),
    "manifest_bytes": Number(271, "bytes a shard", f"length of manifest.json: {_START}"),
}
ASSUMED = {
    "peak_flops": Number(PEAK_BF16_TFLOPS["H100"] * 1e12, "FLOP/s", "H100, dense bf16, by its maker's sheet"),
    "mfu": Number(0.35, "", "share of the peak; **a guess**: nothing of ours was timed on a GPU yet"),
    "connection": Number(90e6, "bytes/s", "one GET from an object store; stores advise to plan with 85 to 90 MB/s"),
    "node": Number(25e9 / 8, "bytes/s", "a node's link to the store, 25 Gbit/s"),
    "latency_s": Number(0.1, "seconds", "median to the first byte; stores speak of 100 to 200 ms"),
    "file_system": Number(2e9, "bytes/s", "a shared file system, written to by all nodes together"),
    "prefix_gets": Number(5500, "GETs/s", "what a large store promises for one prefix before it says slow down"),
}


@dataclass(frozen=True)
class Setting:
    """A run of the paper preset: model size, number of GPUs, hours of audio.

    lanes: 0 takes the preset's, doubled until every worker has one.
    """

    size: str
    gpus: int
    hours: float
    lanes: int = 0
    crops_per_sample: int = 1
    dtype: str = "uint8"
    window_shards: int = StreamConfig.window_shards
    workers: int = StreamConfig.workers

    @property
    def crops_per_s(self) -> float:
        """Crops per second of all GPUs, if the assumed share of their peak is reached."""
        return self.gpus * ASSUMED["mfu"].value * ASSUMED["peak_flops"].value / flops_per_crop(self.size)

    @property
    def global_batch(self) -> int:
        """Crops of a step."""
        return _preset().stream.global_batch

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return self.global_batch / self.crops_per_s

    @property
    def num_lanes(self) -> int:
        """Lanes: the preset's, doubled until every worker has one to fetch ahead for."""
        lanes = _preset().stream.lanes
        while lanes < self.gpus * self.workers and lanes < self.global_batch:
            lanes *= 2
        return self.lanes or lanes

    @property
    def nodes(self) -> int:
        """Machines of eight GPUs."""
        return -(-self.gpus // GPUS_PER_NODE)

    @property
    def sample_bytes(self) -> float:
        """Bytes of a stored sample in its tar."""
        values = SAMPLE_FRAMES * FrontendConfig().mel_bands * BYTES_OF_VALUE[self.dtype]
        return values + MEASURED["overhead_bytes"].value

    @property
    def bytes_per_s(self) -> float:
        """Bytes per second that all nodes read from the store, without repeated reads."""
        return self.crops_per_s / self.crops_per_sample * self.sample_bytes

    @property
    def samples(self) -> float:
        """Samples of the corpus."""
        return self.hours * 3600 * FRAMES_PER_S / SAMPLE_FRAMES

    @property
    def shards(self) -> int:
        """Shards of the size that `data build` makes unless told otherwise."""
        return max(1, round(self.samples * self.sample_bytes / BuildConfig.shard_bytes))

    @property
    def shards_per_lane(self) -> float:
        """Shards that a lane reads in an epoch."""
        return self.shards / self.num_lanes

    @property
    def repeated_share(self) -> float:
        """Share of shards that a boundary between lanes cuts, so two ranks read them; an upper bound."""
        return (self.num_lanes - 1) / self.shards

    @property
    def reads_of_shard(self) -> float:
        """Mean fetches of a shard in an epoch: one, and one more for each boundary between lanes in it."""
        return 1 + self.repeated_share

    @property
    def window_bytes_of_rank(self) -> float:
        """Bytes of the shards that the lanes of one rank shuffle together."""
        return self.window_bytes_of_node * self.nodes / self.gpus

    @property
    def prefetch_bytes_per_s_of_rank(self) -> float:
        """Bytes per second that a rank can prefetch: one connection per worker with a lane."""
        connections = min(self.workers, self.num_lanes // self.gpus)
        seconds = BuildConfig.shard_bytes / ASSUMED["connection"].value + 2 * ASSUMED["latency_s"].value
        return connections * BuildConfig.shard_bytes / seconds

    @property
    def window_bytes_of_node(self) -> float:
        """Bytes of the shards that the lanes of one node shuffle together, for one window."""
        return self.num_lanes / self.nodes * min(self.window_shards, self.shards_per_lane) * BuildConfig.shard_bytes

    @property
    def cores_per_gpu(self) -> float:
        """Cores that make batches for one GPU."""
        return self.crops_per_s / self.gpus * MEASURED["crop_cpu_s"].value

    def run(self, *, windows: float = 3.0) -> Run:
        """Returns the simulated run: `windows` windows of every lane, at least 20 steps."""
        samples_per_shard = max(1, round(self.samples / self.shards))
        layout = Layout(
            manifest_digest=f"{self.hours:g} hours",
            samples_per_shard=(samples_per_shard,) * self.shards,
            seed=0,
            lanes=self.num_lanes,
            global_batch=self.global_batch,
            window_shards=self.window_shards,
            crops_per_sample=self.crops_per_sample,
        )
        items_of_window = self.window_shards * samples_per_shard * self.crops_per_sample
        steps = max(20, math.ceil(windows * items_of_window / layout.items_per_lane_step))
        size = round(samples_per_shard * self.sample_bytes)
        micro_batch = self.global_batch // self.gpus
        return Run(layout, (size,) * self.shards, self.gpus, micro_batch, steps, self.workers)

    def site(
        self, store: StoreModel, *, cache_bytes: float = FOREVER, prefetch_bytes: int = StreamConfig.prefetch_bytes
    ) -> Site:
        """Returns the machines that the run is simulated on."""
        return Site(
            store,
            tick_s=self.step_s,
            ranks_per_node=min(GPUS_PER_NODE, self.gpus),
            cache_bytes=cache_bytes,
            prefetch_batches=StreamConfig.prefetch_batches,
            prefetch_bytes=prefetch_bytes,
        )


def usual_store(*, median_s: float | None = None, total_bytes_per_s: float = FOREVER, **changes: float) -> StoreModel:
    """Returns the store of the tables: log-normal latency, one request in a hundred from a Pareto tail."""
    latency = Latency(ASSUMED["latency_s"].value if median_s is None else median_s, 0.5, 0.01)
    return StoreModel(
        latency,
        connection_bytes_per_s=ASSUMED["connection"].value,
        node_bytes_per_s=ASSUMED["node"].value,
        total_bytes_per_s=total_bytes_per_s,
        **changes,  # type: ignore[arg-type]
    )


@cache
def flops_per_crop(size: str) -> int:
    """Returns the operations of one training crop of the paper preset."""
    experiment = load_experiment(["paper"], overrides=[f"model={size}"])
    return training_cost(experiment.model, experiment.masks, experiment.objective).total


@cache
def _preset():
    return load_experiment(["paper"], overrides=["model=base"])

"""Limits of the stream at scale, with their numbers: a table of docs/scale.md."""

from benchmarks.simulate.command import as_markdown
from benchmarks.simulate.setting import ASSUMED, MEASURED, Setting
from data.building.build import BuildConfig
from data.stream.config import StreamConfig

MEGA, GIGA, GIB = 1e6, 1e9, 2**30


def limits() -> str:
    """Returns the table of limits, each with its remedy."""
    one_node = Setting("base", gpus=8, hours=1e5, lanes=64)
    wide = Setting("base", gpus=512, hours=1e5)
    tiny = Setting("tiny", gpus=512, hours=1e5)
    small = Setting("base", gpus=512, hours=1e3)
    million = Setting("base", gpus=512, hours=1e6)
    hours_of_window = 1e5 * wide.num_lanes * wide.window_shards / wide.shards
    window_bytes_of_lane = wide.window_shards * wide.run(windows=0.1).shard_bytes[0]
    manifests = million.gpus * MEASURED["manifest_bytes"].value * million.shards
    rows = [
        (
            "cache of a node",
            f"64 lanes on one node have {one_node.window_bytes_of_node / GIB:.0f} GiB of windows at hand, which is all "
            f"of the default {StreamConfig.cache_bytes / GIB:.0f} GiB; nothing can be fetched ahead",
            "the first to give out: set cache_bytes to twice the windows, or window_shards=2; the check at the start "
            "counts one rank and not the node",
        ),
        (
            "connections of a rank",
            f"one a worker: {tiny.prefetch_bytes_per_s_of_rank / MEGA:.0f} MB/s, and a rank of Tiny reads "
            f"{tiny.bytes_per_s / tiny.gpus / MEGA:.0f} MB/s",
            "crops_per_sample=3, more workers, or several downloads at once (not built)",
        ),
        (
            "lanes against workers",
            "with one lane a rank only one of its two workers fetches ahead",
            "lanes at least ranks x workers; the presets' 64 are enough for 32 ranks",
        ),
        (
            "lanes against the batch",
            f"each lane gives a batch one crop or more: {wide.global_batch} lanes at most, which is "
            f"{wide.global_batch // StreamConfig.workers} ranks of two workers",
            "a larger global batch; more ranks than that need another optimisation recipe anyhow",
        ),
        (
            "prefetch_bytes",
            f"below the window of a rank ({wide.window_bytes_of_rank / GIB:.0f} GiB with two lanes, "
            f"{one_node.window_bytes_of_rank / GIB:.0f} GiB with eight) lanes run dry at every change of windows",
            f"the default {StreamConfig.prefetch_bytes / GIB:.0f} GiB carries "
            f"{StreamConfig.prefetch_bytes // window_bytes_of_lane} lanes a "
            "rank; with eight it is a few bytes short, since shards come out a little above 256 MiB",
        ),
        (
            "shards a lane",
            f"{wide.num_lanes} lanes need {hours_of_window:,.0f} hours for one full window each; at 1,000 hours "
            f"each shard is read {small.reads_of_shard:.1f} times an epoch",
            "smaller shards (--shard-mib) or fewer lanes for small corpora; the cache makes it once a node",
        ),
        (
            "the store's bandwidth",
            f"Tiny on 512 GPUs reads {tiny.bytes_per_s / GIGA:.0f} GB/s, Base {wide.bytes_per_s / GIGA:.0f}",
            "crops_per_sample=3 divides it by three; a corpus that fits the nodes' disks is read once",
        ),
        (
            "requests on one prefix",
            f"{2 * tiny.bytes_per_s / BuildConfig.shard_bytes:.0f} GETs/s at the most (Tiny, 512 GPUs), of "
            f"{ASSUMED['prefix_gets'].value:,.0f}; but at a cold start all ranks ask at once",
            "never the limit with shards of 256 MiB; with 1 MiB it would be",
        ),
        (
            "manifest and start",
            f"at 1 million hours {manifests / million.gpus / MEGA:.0f} MB of JSON for each of 512 ranks "
            f"({manifests / GIGA:.0f} GB from one object), {MEASURED['start_s'].value * million.shards:.0f} s of work, "
            "and a copy in every worker",
            "bearable; a binary manifest, read once a node, would end it",
        ),
        (
            "checkpoints",
            f"every 2,000 steps are {in_words(2000 * tiny.step_s)} apart for Tiny on 512 GPUs, and the next one "
            "waits for the one that is being written",
            "checkpoint.every in minutes: about 20,000 steps there",
        ),
        (
            "cores",
            f"{tiny.cores_per_gpu:.2f} for a GPU of Tiny, {wide.cores_per_gpu:.2f} for Base",
            "two workers a rank carry all sizes",
        ),
    ]
    return as_markdown((("what", "where it gives out", "what helps"), rows))


def in_words(seconds: float) -> str:
    """Returns a time in a suitable unit."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"

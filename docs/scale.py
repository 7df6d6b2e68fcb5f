"""Computation of the needs of training at scale: `python docs/scale.py --write`

Prints the tables, or with --write puts them into docs/scale.md and draws its picture. Most are arithmetic from the
code's counts and the constants of benchmarks/simulate/setting.py. Two are simulated and take a few minutes
(`--without-simulation` skips them).
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.simulate.command import (  # noqa: E402 - run as a script, the root is not on the path before
    DEPTH_SETTING,
    DEPTHS_GIB,
    LATENCIES_S,
    SCENARIOS,
    as_markdown,
    depth_shares,
    percent,
    scenario_table,
)
from benchmarks.simulate.setting import (  # noqa: E402
    ASSUMED,
    BYTES_OF_VALUE,
    MEASURED,
    SIZES,
    Setting,
    flops_per_crop,
)
from data.building.build import BuildConfig  # noqa: E402
from data.stream.config import StreamConfig  # noqa: E402
from distributed.experiment import Experiment, load_experiment  # noqa: E402
from docs.marks import with_section  # noqa: E402
from docs.scale_limits import in_words, limits  # noqa: E402
from pupujepa.cost.cost import count_parameters, model_size  # noqa: E402
from pupujepa.cost.memory import memory_per_rank  # noqa: E402

PAGE = ROOT / "docs" / "scale.md"
PICTURE = ROOT / "docs" / "images" / "prefetch.svg"
HOURS = (1_000, 10_000, 100_000, 300_000, 1_000_000)
GPUS = (1, 8, 64, 512)
MEGA, GIGA, TERA, GIB = 1e6, 1e9, 1e12, 2**30


def constants() -> str:
    """Returns the table of all numbers that the code does not decide."""
    rows = [
        (name, f"{number.value:.4g} {number.unit}".strip(), kind, number.source)
        for kind, numbers in (("measured", MEASURED), ("assumed", ASSUMED))
        for name, number in numbers.items()
    ]
    return as_markdown((("constant", "value", "", "where from"), rows))


def gpu() -> str:
    """Returns the table of data rates of one GPU, by model size."""
    rows = []
    for size in SIZES:
        one, three = (Setting(size, gpus=1, hours=1e5, crops_per_sample=crops) for crops in (1, 3))
        rows.append(
            (
                size.capitalize(),
                f"{flops_per_crop(size) / TERA:.3g}",
                f"{one.crops_per_s:,.0f}",
                f"{one.bytes_per_s / MEGA:,.0f}",
                f"{three.bytes_per_s / MEGA:,.0f}",
                f"{one.cores_per_gpu:.2f}",
            )
        )
    header = ("size", "TFLOP a crop", "crops/s", "MB/s, a crop a sample", "MB/s, 3 crops a sample", "cores")
    return as_markdown((header, rows))


def cluster() -> str:
    """Returns the table of data rates of a cluster."""
    rows = []
    for size in SIZES:
        for gpus in GPUS:
            one = Setting(size, gpus=gpus, hours=1e5)
            gets = 2 * one.bytes_per_s / BuildConfig.shard_bytes
            rows.append(
                (
                    size.capitalize(),
                    f"{gpus}",
                    in_words(one.step_s),
                    f"{one.bytes_per_s / GIGA:.2f}",
                    f"{one.bytes_per_s / one.nodes / GIGA:.2f}",
                    f"{gets:.2g}",
                    f"{one.crops_per_s * 10.24 / 3600:,.1f} h/s",
                    f"{_days(load_experiment(['paper']).train.steps * one.step_s)}",
                )
            )
    header = ("size", "GPUs", "a step", "GB/s", "GB/s of a node", "GETs/s", "audio in crops", "500,000 steps")
    return as_markdown((header, rows))


def corpus() -> str:
    """Returns the table of corpora by hours: bytes, shards, and reads by 512 GPUs with 1,024 lanes."""
    rows = []
    for hours in HOURS:
        codes, values = (Setting("base", gpus=512, hours=hours, dtype=dtype) for dtype in BYTES_OF_VALUE)
        crops = _paper().train.steps * codes.global_batch
        rows.append(
            (
                f"{hours:,}",
                f"{codes.samples * codes.sample_bytes / TERA:.3g}",
                f"{values.samples * values.sample_bytes / TERA:.3g}",
                f"{codes.shards:,}",
                f"{codes.shards_per_lane:.2g}",
                f"{codes.reads_of_shard:.2f}",
                f"{crops / codes.samples:,.1f}",
                f"{MEASURED['manifest_bytes'].value * codes.shards / MEGA:.2f}",
                f"{MEASURED['start_s'].value * codes.shards:.2f}",
            )
        )
    header = (
        *("hours", "TB, uint8", "TB, float16", "shards", "shards a lane", "reads of a shard", "epochs of the run"),
        *("manifest, MB", "start of a rank, s"),
    )
    return as_markdown((header, rows))


def node() -> str:
    """Returns the table of a node's cache and a rank's prefetching."""
    rows = []
    for gpus, lanes in ((8, 16), (8, 64), (64, 64), (64, 128), (512, 512), (512, 1024)):
        setting = Setting("base", gpus=gpus, hours=1e5, lanes=lanes)
        window = setting.window_bytes_of_node
        rows.append(
            (
                f"{gpus}",
                f"{lanes}",
                f"{lanes / gpus:g}",
                f"{setting.window_bytes_of_rank / GIB:.0f}",
                f"{window / GIB:.0f}",
                f"{2 * window / GIB:.0f}",
                f"{(window + min(StreamConfig.prefetch_bytes * gpus / setting.nodes, 2 * window)) / GIB:.0f}",
                f"{setting.prefetch_bytes_per_s_of_rank / MEGA:.0f}",
            )
        )
    header = (
        *("GPUs", "lanes", "lanes a rank", "prefetch_bytes needed, GiB", "windows at hand of a node, GiB"),
        *("cache needed, GiB", "cache that the defaults fill, GiB", "MB/s a rank can fetch"),
    )
    return as_markdown((header, rows))


def checkpoints() -> str:
    """Returns the table of checkpoints: sizes, intervals, seconds to write."""
    every = _paper().checkpoint.every
    rows = []
    for size in SIZES:
        counts = count_parameters(model_size(size))
        memory = memory_per_rank(counts, zero_stage=1, ranks=1, activation_bytes=0)
        stored = memory.parameters + memory.optimizer + memory.teacher
        between_s = [every * Setting(size, gpus=gpus, hours=1e5).step_s for gpus in (8, 64, 512)]
        write_s = stored / ASSUMED["file_system"].value
        rows.append(
            (
                size.capitalize(),
                f"{stored / GIGA:.2f}",
                *(in_words(seconds) for seconds in between_s),
                f"{write_s:.1f}",
                percent(write_s / (write_s + between_s[-1])),
            )
        )
    header = (
        *("size", "GB", "apart, 8 GPUs", "64 GPUs", "512 GPUs"),
        *("seconds to write", "of the time, on 512 GPUs"),
    )
    return as_markdown((header, rows))


ARITHMETIC: dict[str, Callable[[], str]] = {
    "constants": constants,
    "gpu": gpu,
    "cluster": cluster,
    "corpus": corpus,
    "node": node,
    "checkpoints": checkpoints,
    "limits": limits,
}
SIMULATED = ("depth", "scenarios")


def simulated() -> dict[str, str]:
    """Returns the simulated tables, and draws the first one."""
    shares = depth_shares(DEPTH_SETTING)
    draw(shares)
    header = ("median latency", *(f"{depth:g} GiB" for depth in DEPTHS_GIB))
    rows = [(f"{latency_s:g} s", *map(percent, row)) for latency_s, row in zip(LATENCIES_S, shares)]
    return {"depth": as_markdown((header, rows)), "scenarios": as_markdown(scenario_table(SCENARIOS))}


def draw(shares: Sequence[Sequence[float]]) -> None:
    """Draws the share of waiting over the prefetch depth, one curve per latency."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "scale", "font.size": 9}):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axis = figure.subplots()
        shades = ("#9ec5de", "#5d9cc4", "#1f5f8b", "#0c2f4a")
        for latency_s, row, shade in zip(LATENCIES_S, shares, shades):
            axis.plot(DEPTHS_GIB, [100 * share for share in row], "o-", color=shade, label=f"{latency_s:g} s")
        window_gib = DEPTH_SETTING.window_bytes_of_rank / GIB
        axis.axvline(window_gib, color="#b5482a", linestyle=":", label="one window of a rank")
        axis.set_xlabel("prefetch_bytes of a rank, GiB")
        axis.set_ylabel("time waiting for data, %")
        axis.set_ylim(0)
        axis.legend(title="median latency", frameon=False)
        figure.savefig(PICTURE, metadata={"Date": None})


def write(tables: dict[str, str]) -> None:
    """Puts every table between its marks in the page."""
    text = PAGE.read_text()
    for name, content in tables.items():
        text = with_section(text, name, content, command="python docs/scale.py --write")
    PAGE.write_text(text)


def main(argv: Sequence[str]) -> None:
    """Prints the tables, or writes them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="renew docs/scale.md and its picture")
    parser.add_argument("--without-simulation", action="store_true", help="the arithmetic alone; seconds")
    args = parser.parse_args(argv)
    tables = {name: section() for name, section in ARITHMETIC.items()}
    if not args.without_simulation:
        tables |= simulated()
    if args.write:
        write(tables)
    else:
        print("\n\n".join(f"{name}\n\n{content}" for name, content in tables.items()))


@cache
def _paper() -> Experiment:
    return load_experiment(["paper"])


def _days(seconds: float) -> str:
    return f"{seconds / 86400:,.0f} days" if seconds > 10 * 86400 else f"{seconds / 3600:,.0f} h"


if __name__ == "__main__":
    main(sys.argv[1:])

"""The stream on up to 512 GPUs, simulated event by event in the real order: waits, start-up, caches.

  python -m benchmarks simulate                the tables; a few minutes on one core
  python -m benchmarks simulate --quick        the depth table alone, on 8 GPUs; seconds
  python -m benchmarks simulate --measured     a real stream from a local S3 store, and its simulation
  python -m benchmarks simulate --start        cost of a start with a large corpus, and of a crop

The order, the lanes, the windows and what is fetched ahead come from `data.order.epoch` and `data.reading.prefetch`
themselves (benchmarks/simulate/reading.py); latencies and bandwidths are models (benchmarks/simulate/network.py). Runs
are those of the paper preset; `docs/scale.md` lists the sources of all numbers.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import arguments_of
from benchmarks.simulate.engine import simulate
from benchmarks.simulate.network import Latency, StoreModel
from benchmarks.simulate.outcome import Outcome
from benchmarks.simulate.setting import ASSUMED, Setting, usual_store

GIB, GB = 2**30, 1e9
HOURS = 100_000
DEPTHS_GIB = (0.0, 1.0, 1.5, 2.0, 2.25, 3.0, 4.0)
LATENCIES_S = (0.02, 0.1, 0.5, 2.0)
DEPTH_SETTING = Setting("large", gpus=64, hours=HOURS)
QUICK_SETTING = Setting("large", gpus=8, hours=HOURS, lanes=16)
WINDOWS = 3.0

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


@dataclass(frozen=True)
class Scenario:
    """A row of the table: name, setting, a store that may depend on the setting, and changes of the site."""

    name: str
    setting: Setting
    store: Callable[[Setting], StoreModel] = lambda setting: usual_store()
    site: dict[str, Any] = field(default_factory=dict)


def _throttled(share: float) -> Callable[[Setting], StoreModel]:
    return lambda setting: usual_store(total_bytes_per_s=share * setting.bytes_per_s)


def _slow_node(setting: Setting) -> StoreModel:
    return usual_store(slow_nodes=1, slow_node_bytes_per_s=0.5 * setting.bytes_per_s / setting.nodes)


def _long_tail(setting: Setting) -> StoreModel:
    return StoreModel(
        Latency(ASSUMED["latency_s"].value, 0.5, tail_share=0.05, tail_from_s=2.0, tail_exponent=1.1),
        connection_bytes_per_s=ASSUMED["connection"].value,
        node_bytes_per_s=ASSUMED["node"].value,
    )


_BASE = Setting("base", gpus=512, hours=HOURS)
SCENARIOS = (
    Scenario("Giant", Setting("giant", gpus=512, hours=HOURS)),
    Scenario("Base", _BASE),
    Scenario("Tiny", Setting("tiny", gpus=512, hours=HOURS)),
    Scenario("Tiny, 3 crops of each sample", Setting("tiny", gpus=512, hours=HOURS, crops_per_sample=3)),
    Scenario("Base, one lane a rank", Setting("base", gpus=512, hours=HOURS, lanes=512)),
    Scenario("Base, nothing beyond the window at hand", _BASE, site={"prefetch_bytes": 0}),
    Scenario("Base, 5 % of requests from a Pareto tail (2 s, exponent 1.1)", _BASE, _long_tail),
    Scenario("Base, 20 % of requests refused at first", _BASE, lambda setting: usual_store(refused_share=0.2)),
    Scenario("Base, the store gives 80 % of the need", _BASE, _throttled(0.8)),
    Scenario("Base, one node's link gives half of its need", _BASE, _slow_node),
    Scenario("Base, cache of 1.25 windows", _BASE, site={"cache_bytes": 1.25 * _BASE.window_bytes_of_node}),
)


def main() -> None:
    """Prints the requested tables."""
    args = parse(arguments_of("simulate"))
    if args.measured:
        from benchmarks.simulate import measured

        measured.main(steps=args.steps, repeats=args.repeats)
    elif args.start:
        from benchmarks.simulate import start

        start.main(hours=args.hours)
    else:
        print(as_markdown(depth_table(QUICK_SETTING if args.quick else DEPTH_SETTING)), flush=True)
        if not args.quick:
            print("\n" + as_markdown(scenario_table(SCENARIOS)))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads what follows the benchmark's name."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks simulate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="the depth table on 8 GPUs alone")
    parser.add_argument("--measured", action="store_true", help="compare with a real stream on this machine")
    parser.add_argument("--steps", type=int, default=160, help="of each real stream (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of each real stream (default: %(default)s)")
    parser.add_argument("--start", action="store_true", help="measure a start with a large corpus, and a crop")
    parser.add_argument("--hours", type=float, nargs="+", default=[10_000.0, 100_000.0, 1_000_000.0])
    return parser.parse_args(arguments)


def depth_shares(setting: Setting) -> list[list[float]]:
    """Returns the share of waiting after the first window, by latency (rows) and prefetch depth."""
    run = setting.run(windows=WINDOWS)
    return [
        [
            _steady_share(
                simulate(run, setting.site(usual_store(median_s=latency_s), prefetch_bytes=round(depth * GIB)))
            )
            for depth in DEPTHS_GIB
        ]
        for latency_s in LATENCIES_S
    ]


def depth_table(setting: Setting) -> Table:
    """Returns those shares as a table."""
    header = ("median latency", *(f"{depth:g} GiB" for depth in DEPTHS_GIB))
    rows = zip(LATENCIES_S, depth_shares(setting))
    return header, [(f"{latency_s:g} s", *(percent(share) for share in shares)) for latency_s, shares in rows]


def scenario_table(scenarios: Sequence[Scenario]) -> Table:
    """Returns a row for each scenario."""
    header = (
        "scenario",
        "need, GB/s",
        "first batch after",
        "waiting, first window",
        "waiting, later",
        "most at once, GB/s",
        "cache of a node, GiB",
        "fetched again",
    )
    return header, [scenario_row(scenario) for scenario in scenarios]


def scenario_row(scenario: Scenario) -> tuple[str, ...]:
    """Simulates a scenario and returns its row."""
    setting = scenario.setting
    outcome = simulate(setting.run(windows=WINDOWS), setting.site(scenario.store(setting), **scenario.site))
    return (
        scenario.name,
        f"{setting.bytes_per_s / GB:.1f}",
        f"{outcome.start_s:.0f} s",
        percent(_first_share(outcome)),
        percent(_steady_share(outcome)),
        f"{outcome.busiest_bytes_per_s / GB:.0f}",
        f"{outcome.cache_peak_bytes / GIB:.0f}",
        percent(outcome.repeated / outcome.fetches),
    )


def as_markdown(table: Table) -> str:
    """Returns a table in Markdown."""
    header, rows = table
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def percent(share: float) -> str:
    """Returns a share in percent, with a decimal below 10 %."""
    return f"{100 * share:.1f} %" if 0 < share < 0.0995 else f"{100 * share:.0f} %"


def _first_window(outcome: Outcome) -> int:
    return int(outcome.ticks / WINDOWS)


def _steady_share(outcome: Outcome) -> float:
    return outcome.wait_share(first_tick=_first_window(outcome))


def _first_share(outcome: Outcome) -> float:
    waited = (outcome.stall_ticks > 0) & (outcome.stall_ticks < _first_window(outcome))
    waited_s = float(outcome.stall_s[waited].sum())
    return waited_s / (waited_s + _first_window(outcome) * outcome.tick_s)

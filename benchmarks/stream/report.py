"""Markdown tables of contenders' runs: medians, ratios by round, and the aims."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.stream.process import Measured

OURS, RAW = "pupujepa", "raw"
AIM_PER_CPU_S, AIM_OF_RAW_GET, AIM_RESUME = 1.5, 0.9, 10.0
Rate = Callable[[Measured], float]


@dataclass
class Setting:
    """One table: place, dtype, number of workers, and the runs of each contender by round.

    Args:
        place: one of those of `benchmarks.stream.command`.
        runs: by contender; None is a void round.
        void: reasons, by contender.
    """

    place: str
    dtype: str
    workers: int
    runs: dict[str, list[Measured | None]] = field(default_factory=dict)
    void: dict[str, str] = field(default_factory=dict)

    def add(self, contender: str, measured: Measured | None, *, reason: str = "") -> None:
        """Adds the next round of a contender."""
        self.runs.setdefault(contender, []).append(measured)
        if measured is None:
            self.void[contender] = reason

    def valid(self, contender: str) -> list[Measured]:
        """Returns the rounds of a contender that count."""
        return [run for run in self.runs.get(contender, []) if run is not None]


def per_cpu_s(run: Measured) -> float:
    """Returns samples per processor second."""
    return run.samples / max(run.cpu_s, 1e-9)


def megabytes_per_s(run: Measured) -> float:
    """Returns 10^6 bytes of stored arrays per second."""
    return run.megabytes / max(run.seconds, 1e-9)


def quickness(run: Measured) -> float:
    """Returns the inverse of the seconds to the first batch."""
    return 1 / max(run.first_s, 1e-9)


def table(setting: Setting) -> str:
    """Returns heading, table, voids and the aim of a setting."""
    lines = [f"### {setting.place}, {setting.dtype}, {setting.workers} workers", ""]
    lines += _resume_rows(setting) if setting.place.startswith("resume") else _rows(setting)
    lines += [f"\n{name} is void: {reason}" for name, reason in setting.void.items()]
    return "\n".join([*lines, "", *_verdicts(setting)])


def ratio(ours: Sequence[Measured | None], other: Sequence[Measured | None], rate: Rate) -> tuple[float, float, float]:
    """Returns (median, lowest, highest) of ours / other, round by round; void rounds are left out.

    Raises:
        ValueError: no round in which both count.
    """
    found = sorted(rate(a) / rate(b) for a, b in zip(ours, other, strict=False) if a is not None and b is not None)
    if not found:
        raise ValueError("no round in which both sides count")
    return statistics.median(found), found[0], found[-1]


def best(setting: Setting, rate: Rate, *, among: Sequence[str]) -> str | None:
    """Returns the contender with the highest median rate, or None when none of them has a valid round."""
    rates = {name: statistics.median(map(rate, setting.valid(name))) for name in among if setting.valid(name)}
    return max(rates, key=lambda name: rates[name]) if rates else None


def _rows(setting: Setting) -> list[str]:
    lines = [
        "| contender | samples/s | MB/s | CPU s per GB | samples per CPU s | first batch, s | peak, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in setting.runs:
        runs = setting.valid(name)
        if not runs:
            continue
        middle = {
            "samples": _median(runs, lambda run: run.samples / max(run.seconds, 1e-9)),
            "rate": _median(runs, megabytes_per_s),
            "cpu": _median(runs, lambda run: run.cpu_s / max(run.megabytes, 1e-9) * 1e3),
            "per_cpu": _median(runs, per_cpu_s),
        }
        samples, per_cpu = (f"{middle[key]:.0f}" if name != RAW else "" for key in ("samples", "per_cpu"))
        first, peak = _median(runs, lambda run: run.first_s), max(run.peak_mib for run in runs)
        first_s = f"{first:.2f}" if name != RAW else ""
        lines.append(
            f"| {name} | {samples} | {middle['rate']:.0f} | {middle['cpu']:.2f} | {per_cpu} | {first_s} | {peak:.0f} |"
        )
    return lines


def _resume_rows(setting: Setting) -> list[str]:
    lines = ["| contender | first batch after the state, s | is it the next batch? |", "|---|---|---|"]
    for name in setting.runs:
        runs = setting.valid(name)
        if runs:
            exact = "yes" if all(run.continues for run in runs) else "no"
            lines.append(f"| {name} | {_median(runs, lambda run: run.first_s):.3f} | {exact} |")
    return lines


def _verdicts(setting: Setting) -> list[str]:
    peers = [name for name in setting.runs if name not in (OURS, RAW)]
    if setting.place.startswith("resume"):
        peers = [name for name in peers if all(run.continues for run in setting.valid(name))]
        return _verdict(setting, peers, quickness, "quickness to go on, of those that can", AIM_RESUME)
    said = _verdict(setting, peers, per_cpu_s, "samples per CPU second", AIM_PER_CPU_S)
    if setting.place == "s3":
        said += _verdict(setting, [RAW], megabytes_per_s, "MB/s", AIM_OF_RAW_GET)
        said += _verdict(setting, peers, megabytes_per_s, "MB/s", None)
    return said


def _verdict(setting: Setting, others: Sequence[str], rate: Rate, what: str, aim: float | None) -> list[str]:
    other = best(setting, rate, among=others)
    if other is None or not setting.valid(OURS):
        return []
    middle, low, high = ratio(setting.runs[OURS], setting.runs[other], rate)
    aimed = "" if aim is None else f"; aim {aim:g}: {'reached' if middle >= aim else 'missed'}"
    return [f"- {what}, {OURS} / {other}: **{middle:.2f}** [{low:.2f}, {high:.2f}]{aimed}"]


def _median(runs: Sequence[Measured], rate: Rate) -> float:
    return statistics.median(map(rate, runs))


def checked(result: Mapping[str, Any], expected: tuple[int, int, float]) -> str:
    """Returns the reason why a run is void, or "": each sample must come `epochs` times, unchanged.

    Args:
        result: of `benchmarks.stream.contender`.
        expected: (samples of an epoch, epochs, checksum over all epochs).
    """
    samples, epochs, checksum = expected
    distinct, fewest, most = result["times_each"]
    if (distinct, fewest, most) != (samples, epochs, epochs):
        return f"{distinct} of {samples} samples came, each {fewest} to {most} times instead of {epochs}"
    if abs(result["checksum"] - checksum) > 1e-4 * checksum:
        return f"its values add up to {result['checksum']:.6g} instead of {checksum:.6g}"
    return ""

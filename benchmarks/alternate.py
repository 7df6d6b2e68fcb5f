"""Timing by alternation: A B A B ..., so a machine whose speed drifts slows both sides equally.

The result is the median of the pairwise ratios; single times are printed for orientation.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pupujepa.precision import hardware_bf16


@dataclass(frozen=True)
class Comparison:
    """Seconds of each counted run, in pairs."""

    ours_s: tuple[float, ...]
    peer_s: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Peer's time over ours, pair by pair, ascending: above 1, ours is faster."""
        return sorted(peer / ours for ours, peer in zip(self.ours_s, self.peer_s, strict=True))

    def row(self, name: str) -> str:
        """Returns a row of a Markdown table: name, medians, ratio with its range."""
        ours, peer, ratio = (statistics.median(x) for x in (self.ours_s, self.peer_s, self.ratios))
        return f"| {name} | {ours:.4f} | {peer:.4f} | {ratio:.2f} [{self.ratios[0]:.2f}, {self.ratios[-1]:.2f}] |"


HEADER = "| what | ours, median s | peer, median s | peer / ours [min, max] |\n|---|---|---|---|"


def alternate(ours: Callable[[], object], peer: Callable[[], object], *, runs: int = 7) -> Comparison:
    """Times both sides `runs` times in turn, after one uncounted run of each."""
    pairs = [(_seconds(ours), _seconds(peer)) for _ in range(runs + 1)][1:]
    return Comparison(*zip(*pairs, strict=True))


def machine() -> str:
    """Returns one line about this machine: processor, its support of bf16, cores, system, Python."""
    info = Path("/proc/cpuinfo")
    model = next((x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")), "?")
    return (
        f"{model} ({hardware_bf16(torch.device('cpu')).reason}), {os.cpu_count()} cores, {platform.system()} "
        f"{platform.machine()}, Python {platform.python_version()}"
    )


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started

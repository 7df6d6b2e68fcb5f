"""A profile of one process: functions by own time from cProfile, as a Markdown table."""

import cProfile
import pstats
from collections.abc import Callable
from pathlib import Path


def profile(work: Callable[[], object], *, rows: int = 14) -> str:
    """Runs `work` once uncounted and once under the profiler, which exaggerates short functions."""
    work()
    profiler = cProfile.Profile()
    profiler.runcall(work)
    stats = pstats.Stats(profiler)
    entries = stats.stats.items()  # type: ignore[attr-defined]
    timed = sorted(((own, calls, _name(where)) for where, (_, calls, own, _, _) in entries), reverse=True)
    total = sum(own for own, _, _ in timed)
    lines = [f"| {name} | {calls} | {own:.3f} | {own / total:.0%} |" for own, calls, name in timed[:rows]]
    return "\n".join(["| function | calls | own time, s | share |", "|---|---|---|---|", *lines])


def _name(where: tuple[str, int, str]) -> str:
    file, line, function = where
    if file == "~":
        return function.strip("<>")
    path = Path(file)
    return f"{path.parent.name}/{path.name}:{line} {function}"

"""Limits of containers and batch systems: cores and memory of control groups, in both versions."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CGROUP_ROOT, PROC = Path("/sys/fs/cgroup"), Path("/proc")
# version 1 writes the largest number of pages for "no limit"
_NO_LIMIT_BYTES = 1 << 60


@dataclass(frozen=True)
class MachineMemory:
    """Memory that this process may use, the free part of it, and the origin of the limit."""

    limit_bytes: int
    available_bytes: int
    limited_by: str


def core_limit(proc: Path = PROC, root: Path = CGROUP_ROOT) -> float | None:
    """Returns the cores that control groups allow, 1.5 for `docker run --cpus 1.5`; None for all."""
    limits = []
    for folder in _folders("cpu", proc, root):
        # version 2: "150000 100000" or "max 100000", in microseconds
        quota, _, period = (_text(folder / "cpu.max") or "").partition(" ")
        if not quota:
            quota, period = _text(folder / "cpu.cfs_quota_us") or "", _text(folder / "cpu.cfs_period_us") or ""
        if quota.isdecimal() and period.isdecimal() and int(period):
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def machine_memory(proc: Path = PROC, root: Path = CGROUP_ROOT) -> MachineMemory | None:
    """Returns the memory of the machine or of the tightest control group; None without /proc/meminfo."""
    told: dict[str, str] = dict(re.findall(r"^(Mem\w+):\s+(\d+) kB", _text(proc / "meminfo") or "", re.MULTILINE))
    if not {"MemTotal", "MemAvailable"} <= told.keys():
        return None
    limit_bytes, available_bytes = int(told["MemTotal"]) << 10, int(told["MemAvailable"]) << 10
    limited_by = "the machine"
    for folder in _folders("memory", proc, root):
        group = _group_memory(folder)
        if group is None:
            continue
        own_limit, free = group
        available_bytes = min(available_bytes, free)
        if own_limit < limit_bytes:
            limit_bytes, limited_by = own_limit, "the container or job (cgroup)"
    return MachineMemory(limit_bytes, available_bytes, limited_by)


def _group_memory(folder: Path) -> tuple[int, int] | None:
    """Returns limit and free bytes of one control group; None if it has no limit."""
    limit = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes") or ""
    used = _text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes") or ""
    if not (limit.isdecimal() and used.isdecimal()) or int(limit) >= _NO_LIMIT_BYTES:
        return None
    # the page cache counts as used, but the kernel frees it on demand
    statistics: dict[str, str] = dict(re.findall(r"^(\w+) (\d+)$", _text(folder / "memory.stat") or "", re.MULTILINE))
    cached = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
    return int(limit), max(0, int(limit) - int(used) + cached)


def _folders(controller: str, proc: Path, root: Path) -> Iterator[Path]:
    """Yields the folders of this process's control group and of its ancestors, which limit it too."""
    for line in (_text(proc / "self" / "cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # version 2 has one tree without controller names; version 1 has a tree per controller
        base = root / controllers if controllers else root
        if controllers and not base.is_dir():
            base = root / controller
        inside = base / path.strip("/")
        # in a container, the path is often the host's, while the container's group is the base
        yield from (folder for folder in (inside, *inside.parents) if folder.is_dir() and folder.is_relative_to(base))


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:  # no such controller, or no access to it
        return None

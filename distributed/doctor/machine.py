"""Cores, memory, disk, shared memory and open files of this machine, against the needs of the aim.

Functions named `..._finding` are pure: they judge facts that `machine_findings` reads from the system. The limits of
containers and batch systems count: control groups, in both versions.
"""

import os
import re
import resource
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.pool import available_cores
from data.stream.config import default_cache_dir
from distributed.doctor.findings import FAILED, OK, WARNING, Finding
from pupujepa.locks import can_lock

GIB, MIB = 2**30, 2**20
SHARED_MEMORY, PROC, CGROUP_ROOT = Path("/dev/shm"), Path("/proc"), Path("/sys/fs/cgroup")

# two ranks of the demo with their workers hold 2.1 GiB on small crops (measured); other processes need some too
_MEMORY_BYTES = {"embed": 2 * GIB, "train": 4 * GIB, "demo": 4 * GIB}
# NVIDIA's advice for NCCL in containers; docker gives 64 MiB
_SHARED_BYTES, _LEAST_SHARED_BYTES = GIB, 32 * MIB
# a rank that reads 64 lanes (preset `paper`) holds 4 shards of each, and fetches others: over 256 files
_FILES, _LEAST_FILES = 1024, 64
_LEAST_FREE_FILES = 10_000
# control groups of version 1 write the largest number of pages for "no limit"
_NO_LIMIT_BYTES = 1 << 60
_OTHER_PLACE = {
    "run directory": "choose another --run-dir",
    "shard cache": "set stream.cache_dir or PUPUJEPA_CACHE_DIR",
    "temporary files": "set TMPDIR",
}


@dataclass(frozen=True)
class MachineMemory:
    """Memory that this process may use, the free part of it, and the origin of the limit."""

    limit_bytes: int
    available_bytes: int
    limited_by: str


@dataclass(frozen=True)
class WorkFolder:
    """A folder that a run writes to.

    Attributes:
        name: of the check.
        folder: the nearest one that exists.
        free_files: None if the file system does not count files.
        error: why no file can be made there; "" if one was made.
        locks: True if `flock` works there.
    """

    name: str
    folder: Path
    free_bytes: int
    free_files: int | None = None
    error: str = ""
    locks: bool = True


def machine_findings(aim: str, *, run_dir: Path) -> list[Finding]:
    """Reads the machine and judges it for an aim; leaves no folder or file behind."""
    try:
        cache, temporary = default_cache_dir(), Path(tempfile.gettempdir())
    except FileNotFoundError:  # no candidate is writable: the check of /tmp says why
        cache = temporary = Path("/tmp")
    places = [] if aim == "embed" else [("run directory", run_dir, 5 * GIB), ("shard cache", cache, 5 * GIB)]
    places.append(("temporary files", temporary, GIB))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return [
        cores_finding(available_cores(), limit=core_limit(), online=os.cpu_count() or 1),
        memory_finding(machine_memory(), needed_bytes=_MEMORY_BYTES[aim]),
        *(folder_finding(read_folder(name, folder), needed_bytes=needed) for name, folder, needed in places),
        shared_memory_finding(read_folder("/dev/shm", SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None),
        files_finding(soft, hard),
    ]


def cores_finding(cores: int, *, limit: float | None, online: int) -> Finding:
    """Judges the cores that this process may use, and the limit of its container."""
    found = f"{cores} of {online}" if cores < online else f"{cores}"
    if limit is not None and limit < cores:
        found += f", but a container's limit (cgroup) leaves the time of {limit:g}"
        remedy = f"raise the limit (docker run --cpus), or start no more than {max(1, int(limit))} ranks and workers"
        return Finding("cores", WARNING, found, remedy)
    if cores == 1:
        return Finding("cores", WARNING, f"{found}: ranks and their workers take turns", "use two or more")
    return Finding("cores", OK, found)


def memory_finding(found: MachineMemory | None, *, needed_bytes: int) -> Finding:
    """Judges memory; less than half of the needed bytes fails."""
    if found is None:
        return Finding("memory", WARNING, "unknown: /proc/meminfo is missing", "check that there is enough")
    words = f"{_gib(found.available_bytes)} free of {_gib(found.limit_bytes)} that {found.limited_by} has"
    if found.available_bytes >= needed_bytes:
        return Finding("memory", OK, words)
    level = FAILED if found.available_bytes < needed_bytes / 2 else WARNING
    remedy = f"end other programs, or raise the limit (docker run --memory, sbatch --mem) to {_gib(needed_bytes)}"
    return Finding("memory", level, f"{words}, and {_gib(needed_bytes)} are needed", remedy)


def folder_finding(place: WorkFolder, *, needed_bytes: int) -> Finding:
    """Judges a folder; less than a tenth of the needed bytes fails."""
    words = f"{_gib(place.free_bytes)} free in {place.folder}"
    if place.error:
        found = f"no file can be made in {place.folder}: {place.error}"
        return Finding(place.name, FAILED, found, f"{_OTHER_PLACE[place.name]}, or mend the folder's rights")
    if place.free_bytes < needed_bytes:
        level = FAILED if place.free_bytes < needed_bytes / 10 else WARNING
        found = f"{words}, and {_gib(needed_bytes)} are needed at least"
        return Finding(place.name, level, found, f"free space there, or {_OTHER_PLACE[place.name]}")
    if place.free_files is not None and place.free_files < _LEAST_FREE_FILES:
        found = f"{words}, but only {place.free_files} more files can be made (inodes)"
        return Finding(place.name, WARNING, found, f"remove small files there, or {_OTHER_PLACE[place.name]}")
    if not place.locks:
        level = FAILED if place.name == "shard cache" else WARNING
        found = f"{words}, but file locks (flock) do not work there, so two processes can spoil each other's files"
        return Finding(place.name, level, found, f"mount it with locks, or {_OTHER_PLACE[place.name]}")
    return Finding(place.name, OK, words)


def shared_memory_finding(place: WorkFolder | None) -> Finding:
    """Judges /dev/shm, which holds semaphores, the workers' batches, NCCL's buffers and Ray's objects."""
    name, remedy = "/dev/shm", f"start the container with --shm-size={_SHARED_BYTES // GIB}g or more, or --ipc=host"
    if place is None or place.error:
        why = place.error if place else "it is not here"
        return Finding(name, FAILED, f"cannot be used ({why}), and no process can share memory without it", remedy)
    if place.free_bytes >= _SHARED_BYTES:
        return Finding(name, OK, f"{_gib(place.free_bytes)} free")
    level = FAILED if place.free_bytes < _LEAST_SHARED_BYTES else WARNING
    found = f"{place.free_bytes / MIB:.0f} MiB free: NCCL, Ray and PyTorch's workers can end with a bus error"
    return Finding(name, level, found, remedy)


def files_finding(soft: int, hard: int) -> Finding:
    """Judges the limits on open files (ulimit -n); RLIM_INFINITY is no limit."""
    if soft == resource.RLIM_INFINITY or soft >= _FILES:
        return Finding("open files", OK, "no limit" if soft == resource.RLIM_INFINITY else f"up to {soft}")
    level = FAILED if soft < _LEAST_FILES else WARNING
    found = f"up to {soft} at once, and a rank that reads 64 lanes holds 256 for the stream alone"
    if hard == resource.RLIM_INFINITY or hard >= _FILES:
        return Finding("open files", level, found, f"ulimit -n {_FILES}")
    remedy = f"the hard limit is {hard}: raise it in /etc/security/limits.conf, or docker run --ulimit nofile={_FILES}"
    return Finding("open files", level, found, remedy)


def read_folder(name: str, folder: Path) -> WorkFolder:
    """Tests a folder, or its nearest ancestor that exists, with a temporary file."""
    there = folder.absolute()
    while not os.path.exists(there):  # noqa: PTH110 - Path.exists raises in a folder that we may not look into
        there = there.parent
    free_bytes, counted = shutil.disk_usage(there).free, os.statvfs(there)
    # btrfs and others allocate inodes on demand, and count none
    free_files = counted.f_favail if counted.f_files else None
    error, locks = "", True
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"1")
            file.flush()
            locks = can_lock(file.fileno())
    except OSError as failure:
        error = failure.strerror or str(failure)
    return WorkFolder(name, there, free_bytes, free_files, error, locks)


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
        limit = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes") or ""
        used = _text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes") or ""
        if not (limit.isdecimal() and used.isdecimal()) or int(limit) >= _NO_LIMIT_BYTES:
            continue
        # the page cache counts as used, but the kernel frees it on demand
        counted: dict[str, str] = dict(re.findall(r"^(\w+) (\d+)$", _text(folder / "memory.stat") or "", re.MULTILINE))
        cached = int(counted.get("total_inactive_file", counted.get("inactive_file", 0)))
        available_bytes = min(available_bytes, max(0, int(limit) - int(used) + cached))
        if int(limit) < limit_bytes:
            limit_bytes, limited_by = int(limit), "the container or job (cgroup)"
    return MachineMemory(limit_bytes, available_bytes, limited_by)


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


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"

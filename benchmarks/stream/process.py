"""Measurement of one contender in a fresh process, with its descendants, from outside.

Processor seconds come from the contender's own marks; the peak of memory and the start of the traffic from samples that
this process takes meanwhile. Memory is the sum of proportional set sizes, so pages that processes share count once.
"""

import ctypes
import json
import mmap
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.stream.contender import Reading, tree_cpu_s

ROOT = Path(__file__).parents[2]
DEADLINE_S = 300.0
_SAMPLE_EVERY_S = 0.02
_MEMORY_EVERY_S = 0.5
# more than the traffic of an idle store, less than any shard
_TRAFFIC_BEGINS_BYTES = 1 << 20


class ContenderError(RuntimeError):
    """A contender that failed, hung, or did not deliver what it should have; its figures are void."""


@dataclass(frozen=True)
class Measured:
    """Figures of one run of a contender.

    Args:
        first_s: from opening to the first batch.
        seconds, cpu_s, samples: of the counted period, see `measure`.
        megabytes: stored arrays of these samples, in 10^6 bytes.
        peak_mib: peak memory of the process and its descendants together.
        continues: after a resume, True if the batch was the next one.
    """

    first_s: float
    seconds: float
    cpu_s: float
    samples: int
    megabytes: float
    peak_mib: float
    continues: bool | None = None


def measure(reading: Reading, *, python: Path, payload_bytes: int, samples: int) -> tuple[Measured, dict[str, Any]]:
    """Runs a reading; returns its figures and the contender's own result.

    From local files, time counts from the first batch to the last, because the start of processes does not matter in a
    run of weeks. From a store, it counts from the first MiB on the network to the last batch, because some contenders
    prefetch a lot before the first batch.

    Args:
        payload_bytes, samples: of one epoch.

    Raises:
        ContenderError: it failed or hung.
    """
    with tempfile.TemporaryDirectory(prefix="reading-") as folder:
        path = Path(folder) / "reading.json"
        path.write_text(json.dumps(asdict(reading)))
        lines, watch = _watched([str(python), "-m", "benchmarks.stream.contender", str(path)], reading.contender)
    marks = {line["mark"]: line for line in lines if "mark" in line}
    result = next((line for line in lines if "mark" not in line), {})
    if "last" not in marks:  # its task was only to save its state
        return Measured(0.0, 0.0, 0.0, 0, 0.0, watch.peak_bytes / 2**20), result
    opened, last, first = marks["open"], marks["last"], marks.get("first", marks["open"])
    if reading.url.startswith("s3://") and watch.traffic is not None:
        begun, done = {"at_s": watch.traffic[0], "cpu_s": watch.traffic[1]}, result["samples"]
    else:
        begun, done = first, result["samples"] - first.get("samples", 0)
    payload = result["payload_bytes"] or done * payload_bytes / samples
    found = Measured(
        first_s=first["at_s"] - opened["at_s"],
        seconds=last["at_s"] - begun["at_s"],
        cpu_s=last["cpu_s"] - begun["cpu_s"],
        samples=done,
        megabytes=payload / 1e6,
        peak_mib=watch.peak_bytes / 2**20,
        continues=result.get("continues"),
    )
    return found, result


class Watch:
    """An observer of a process: peak memory, and the start of its network traffic."""

    def __init__(self, pid: int):
        self.pid = pid
        self.peak_bytes = 0
        self.traffic: tuple[float, float] | None = None  # when it began, and the processor seconds until then
        self._received_before = received_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stops observing."""
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        memory_due = 0.0
        while not self._ended.wait(_SAMPLE_EVERY_S):
            try:
                if self.traffic is None and received_bytes() - self._received_before > _TRAFFIC_BEGINS_BYTES:
                    self.traffic = (time.monotonic(), tree_cpu_s(self.pid))
                if time.monotonic() >= memory_due:
                    self.peak_bytes = max(self.peak_bytes, tree_memory_bytes(self.pid))
                    memory_due = time.monotonic() + _MEMORY_EVERY_S
            except psutil.NoSuchProcess:
                return


def received_bytes() -> int:
    """Returns the bytes that this machine has received on all its network devices, the loopback included."""
    return psutil.net_io_counters().bytes_recv


def tree_memory_bytes(pid: int) -> int:
    """Returns the proportional set size of a process and its descendants together."""
    total = 0
    process = psutil.Process(pid)
    for member in [process, *process.children(recursive=True)]:
        try:
            rollup = Path(f"/proc/{member.pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has just ended
        total += next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
    return total


def evict(paths: Iterable[Path]) -> float:
    """Drops files from the kernel's cache and returns the share of their pages that stayed."""
    kept = pages = 0
    for path in paths:
        with path.open("rb") as file:
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            resident = resident_pages(file.fileno())
        kept, pages = kept + sum(resident), pages + len(resident)
    return kept / max(pages, 1)


def warm(paths: Iterable[Path]) -> None:
    """Reads files once, so that the kernel caches them."""
    block = bytearray(8 << 20)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


def resident_pages(file: int) -> list[bool]:
    """Returns True for every page of an open file that the kernel has in memory."""
    size = os.fstat(file).st_size
    if not size:
        return []
    count = -(-size // mmap.PAGESIZE)
    states = (ctypes.c_ubyte * count)()
    with mmap.mmap(file, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as view:
        address = ctypes.addressof(ctypes.c_char.from_buffer(view))
        if ctypes.CDLL(None, use_errno=True).mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), states):
            raise OSError(ctypes.get_errno(), "mincore")
    return [bool(state & 1) for state in states]


def _watched(command: list[str], contender: str) -> tuple[list[dict[str, Any]], Watch]:
    """Runs a command, and kills any process that it leaves behind."""
    with tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=complaints, text=True, start_new_session=True
        )
        watch = Watch(process.pid)
        try:
            output, _ = process.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise ContenderError(f"{contender} was not done after {DEADLINE_S:g} s") from None
        finally:
            watch.end()
            _end_group(process)
        complaints.seek(0)
        if process.returncode:
            raise ContenderError(f"{contender} failed: {' '.join(complaints.read().split()[-60:])}")
    return [json.loads(line) for line in output.split("\n") if line.startswith("{")], watch


def _end_group(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

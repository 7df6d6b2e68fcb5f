"""The machine: limits of containers are read, what is too small is named, and the real limits of a process count."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from distributed.doctor.findings import FAILED, OK, WARNING
from distributed.doctor.machine import (
    GIB,
    MIB,
    MachineMemory,
    WorkFolder,
    core_limit,
    cores_finding,
    files_finding,
    folder_finding,
    machine_findings,
    machine_memory,
    memory_finding,
    read_folder,
    shared_memory_finding,
)

ROOT = Path(__file__).parents[3]
MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\n"


@pytest.fixture
def system(tmp_path):
    """Writes files of a made-up /proc and /sys/fs/cgroup and returns both folders."""

    def write(**files):
        for path, text in files.items():
            path = tmp_path / path.replace("__", "/").replace("memory_", "memory.").replace("cpu_", "cpu.")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / "proc", tmp_path / "cgroup"

    write(proc__meminfo=MEMINFO)
    return write


def test_a_machine_without_limits(system):
    """No control group says anything: /proc counts."""
    proc, groups = system(proc__self__cgroup="0::/user.slice\n")
    assert core_limit(proc, groups) is None
    assert machine_memory(proc, groups) == MachineMemory(16 * GIB, 8 * GIB, "the machine")
    assert machine_memory(proc / "none", groups) is None


def test_limits_of_version_2(system):
    """The tightest of all groups above this process holds, and files in the cache count as free."""
    proc, groups = system(
        proc__self__cgroup="0::/jobs/task\n",
        cgroup__jobs__cpu_max="150000 100000\n",
        cgroup__jobs__task__cpu_max="max 100000\n",
        cgroup__jobs__memory_max=f"{4 * GIB}\n",
        cgroup__jobs__memory_current=f"{3 * GIB}\n",
        cgroup__jobs__memory_stat=f"anon 1\ninactive_file {GIB // 2}\n",
        cgroup__jobs__task__memory_max="max\n",
        cgroup__jobs__task__memory_current=f"{GIB}\n",
    )
    assert core_limit(proc, groups) == 1.5
    assert machine_memory(proc, groups) == MachineMemory(4 * GIB, GIB + GIB // 2, "the container or job (cgroup)")


def test_limits_of_version_1_in_a_container(system, tmp_path):
    """The path is the host's and does not exist inside; the container's own group is the root of each controller."""
    proc, groups = system(
        proc__self__cgroup="5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n",
        cgroup__memory__memory_limit_in_bytes=f"{2 * GIB}",
        cgroup__memory__memory_usage_in_bytes=f"{GIB}",
        cgroup__memory__memory_stat=f"total_inactive_file {MIB}\n",
    )
    folder = tmp_path / "cgroup" / "cpu,cpuacct"
    folder.mkdir()
    (folder / "cpu.cfs_quota_us").write_text("50000")
    (folder / "cpu.cfs_period_us").write_text("100000")
    assert core_limit(proc, groups) == 0.5
    assert machine_memory(proc, groups) == MachineMemory(2 * GIB, GIB + MIB, "the container or job (cgroup)")
    (folder / "cpu.cfs_quota_us").write_text("-1")
    assert core_limit(proc, groups) is None


def test_version_1_without_a_limit_has_a_huge_one(system):
    """Its "no limit" is the largest number of pages."""
    proc, groups = system(
        proc__self__cgroup="5:memory:/\n",
        cgroup__memory__memory_limit_in_bytes="9223372036854771712",
        cgroup__memory__memory_usage_in_bytes="1",
    )
    assert machine_memory(proc, groups) == MachineMemory(16 * GIB, 8 * GIB, "the machine")


@pytest.mark.parametrize(
    ("cores", "limit", "level", "words"),
    [
        (8, None, OK, "8 of 64"),
        (8, 16.0, OK, "8 of 64"),
        (8, 1.5, WARNING, "leaves the time of 1.5"),
        (1, None, WARNING, "1 of 64: ranks and their workers take turns"),
    ],
)
def test_cores(cores, limit, level, words):
    """Those that this process may use, and their time."""
    found = cores_finding(cores, limit=limit, online=64)
    assert found.level == level
    assert words in found.found
    assert bool(found.remedy) == (level == WARNING)


@pytest.mark.parametrize(("free_gib", "level"), [(4, OK), (3, WARNING), (1, FAILED)])
def test_memory(free_gib, level):
    """Less than what is needed is a warning, less than half of it a failure."""
    found = memory_finding(MachineMemory(8 * GIB, free_gib * GIB, "the machine"), needed_bytes=4 * GIB)
    assert found.level == level
    assert found.found.startswith(f"{free_gib}.0 GiB free of 8.0 GiB that the machine has")


def test_unknown_memory_is_said():
    """Not every system has /proc."""
    assert memory_finding(None, needed_bytes=GIB).level == WARNING


@pytest.mark.parametrize(
    ("place", "level", "words"),
    [
        (WorkFolder("run directory", Path("/x"), 9 * GIB), OK, "9.0 GiB free in /x"),
        (WorkFolder("run directory", Path("/x"), 4 * GIB), WARNING, "4.0 GiB free in /x, and 5.0 GiB are needed"),
        (WorkFolder("run directory", Path("/x"), GIB // 3), FAILED, "0.3 GiB free in /x, and 5.0 GiB are needed"),
        (WorkFolder("temporary files", Path("/x"), 9 * GIB, 12), WARNING, "only 12 more files can be made (inodes)"),
        (
            WorkFolder("shard cache", Path("/x"), 9 * GIB, error="Read-only file system"),
            FAILED,
            "in /x: Read-only file",
        ),
        (WorkFolder("shard cache", Path("/x"), 9 * GIB, locks=False), FAILED, "file locks (flock) do not work there"),
        (
            WorkFolder("run directory", Path("/x"), 9 * GIB, locks=False),
            WARNING,
            "file locks (flock) do not work there",
        ),
    ],
)
def test_places(place, level, words):
    """Room, rights, inodes and locks; each failure says where else to go."""
    found = folder_finding(place, needed_bytes=5 * GIB)
    assert (found.name, found.level) == (place.name, level)
    assert words in found.found
    option = {"run directory": "--run-dir", "shard cache": "PUPUJEPA_CACHE_DIR", "temporary files": "TMPDIR"}
    assert (option[place.name] in found.remedy) == (level != OK)


def test_a_real_folder_is_tried_and_left_as_it_was(tmp_path):
    """The nearest folder that exists stands for one that does not; neither is a folder made nor a file left."""
    place = read_folder("run directory", tmp_path / "a" / "b")
    assert (place.folder, place.error, place.locks) == (tmp_path, "", True)
    assert place.free_bytes > 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_rights_is_found():
    """Not by its mode, which means nothing to root, but by trying."""
    place = read_folder("run directory", Path("/proc/1"))
    assert place.error
    assert folder_finding(place, needed_bytes=0).level == FAILED


@pytest.mark.parametrize(
    ("place", "level", "words"),
    [
        (WorkFolder("/dev/shm", Path("/dev/shm"), 8 * GIB), OK, "8.0 GiB free"),
        (WorkFolder("/dev/shm", Path("/dev/shm"), 64 * MIB), WARNING, "64 MiB free"),
        (WorkFolder("/dev/shm", Path("/dev/shm"), MIB), FAILED, "1 MiB free"),
        (WorkFolder("/dev/shm", Path("/dev/shm"), GIB, error="Permission denied"), FAILED, "Permission denied"),
        (None, FAILED, "it is not here"),
    ],
)
def test_shared_memory(place, level, words):
    """Docker's 64 MiB are the classical failure; without any nothing can be shared."""
    found = shared_memory_finding(place)
    assert found.level == level
    assert words in found.found
    assert ("--shm-size=1g" in found.remedy) == (level != OK)


@pytest.mark.parametrize(
    ("soft", "hard", "level", "words"),
    [
        (1024, 4096, OK, ""),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, OK, ""),
        (256, 4096, WARNING, "ulimit -n 1024"),
        (256, resource.RLIM_INFINITY, WARNING, "ulimit -n 1024"),
        (256, 256, WARNING, "the hard limit is 256"),
        (32, 4096, FAILED, "ulimit -n 1024"),
    ],
)
def test_open_files(soft, hard, level, words):
    """A shell can raise the soft limit up to the hard one."""
    found = files_finding(soft, hard)
    assert found.level == level
    assert words in found.remedy


def test_a_lowered_limit_is_seen(tmp_path):
    """A process that may open 40 files is told so, and needs no more to find out."""
    code = (
        "import json; from pathlib import Path; from distributed.doctor.machine import machine_findings; "
        f"print(json.dumps([vars(f) for f in machine_findings('train', run_dir=Path({str(tmp_path)!r}))]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)),
    )
    (files,) = (row for row in json.loads(ran.stdout) if row["name"] == "open files")
    assert files["level"] == FAILED
    assert files["found"].startswith("up to 40 at once")
    assert files["remedy"].startswith("the hard limit is 40")


def test_fewer_cores_are_seen(tmp_path):
    """A process that is bound to one core has one, whatever the machine has."""
    code = (
        "from pathlib import Path; from distributed.doctor.machine import machine_findings; "
        "print(machine_findings('embed', run_dir=Path('.'))[0].found)"
    )
    first = min(os.sched_getaffinity(0))
    ran = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {first}),
    )
    assert ran.stdout.startswith("1")


def test_a_machine_without_a_place_for_temporary_files(tmp_path, monkeypatch):
    """Python finds none where every disk is full; that is a finding and no crash."""

    def none_usable():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.delenv("PUPUJEPA_CACHE_DIR", raising=False)
    monkeypatch.setattr("tempfile.gettempdir", none_usable)
    found = machine_findings("train", run_dir=tmp_path)
    assert "/tmp" in next(f for f in found if f.name == "temporary files").found


def test_an_embedding_needs_no_run_directory(tmp_path):
    """It writes where its user says."""
    names = [f.name for f in machine_findings("embed", run_dir=tmp_path)]
    assert names == ["cores", "memory", "temporary files", "/dev/shm", "open files"]
    names = [f.name for f in machine_findings("train", run_dir=tmp_path)]
    assert names == ["cores", "memory", "run directory", "shard cache", "temporary files", "/dev/shm", "open files"]

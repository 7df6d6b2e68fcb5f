import json
import os
import time
from pathlib import Path

import pytest

from distributed.marble.datasets import audio_digests as module
from distributed.marble.datasets.audio_digests import LIST, audio_digests
from distributed.processes.topology import Topology

HOUR_NS = 3600 * 10**9


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Five files with different content."""
    (tmp_path / "audio").mkdir()
    paths = [tmp_path / "audio" / f"{i}.wav" for i in range(5)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * 1000)
    return paths


def digests_of(files: list[Path], cache: Path, *, hours_later: int = 1) -> dict[str, str]:
    return audio_digests(
        files, cache=cache, topology=Topology(), clock_ns=lambda: time.time_ns() + hours_later * HOUR_NS
    )


def test_files_that_did_not_change_are_read_once(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Equal marks avoid a second reading; only a file that was written meanwhile is read."""
    first = digests_of(files, tmp_path)
    assert len(set(first.values())) == 5
    read: list[str] = []
    digest = module._digest
    monkeypatch.setattr(module, "_digest", lambda path: read.append(path) or digest(path))
    assert digests_of(files, tmp_path) == first
    assert read == []
    status = files[2].stat()
    files[2].write_bytes(bytes([2]) * 500 + bytes([9]) + bytes([2]) * 499)
    os.utime(files[2], ns=(status.st_atime_ns, status.st_mtime_ns))
    second = digests_of(files, tmp_path)
    assert read == [str(files[2])]
    assert {path for path in first if first[path] != second[path]} == {str(files[2])}


def test_a_file_that_changed_a_moment_ago_is_not_remembered(files: list[Path], tmp_path: Path):
    """A file changed just now is not stored: a second write in the same clock tick would keep its mark."""
    digests_of(files, tmp_path, hours_later=0)
    assert not (tmp_path / LIST).is_file()
    digests_of(files, tmp_path)
    assert len(json.loads((tmp_path / LIST).read_text())) == 5


def test_ranks_share_the_files(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One of three ranks reads each file, and every rank gets all digests."""
    shares: list = []
    monkeypatch.setattr(module, "gather", lambda value, topology: shares.append(value) or [value])
    parts = [audio_digests(files, cache=tmp_path, topology=Topology(rank, 3, rank)) for rank in range(3)]
    assert [len(part) for part in parts] == [2, 2, 1]
    monkeypatch.setattr(module, "gather", lambda value, topology: [*shares[:2], value])
    assert audio_digests(files, cache=tmp_path, topology=Topology(2, 3, 2)) == digests_of(files, tmp_path / "alone")

"""The node's shard cache: one download per node, no stale locks, a hard budget, and respected pins."""

import ctypes
import errno
import itertools
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest

from data.reading.cache import CacheBusyError, CachedShard, CacheError, ShardCache
from data.reading.fetching import Tally
from data.reading.room import CacheConfig
from data.shards.format import ShardError
from data.shards.manifest import Manifest, ShardEntry
from data.store.files import LocalStore, MissingObjectError
from tests.data.shardsets import build_shard_set

PROCESSES = multiprocessing.get_context("forkserver")


@pytest.fixture(autouse=True, scope="module")
def quick_processes() -> None:
    """Children need not import torch each."""
    PROCESSES.set_forkserver_preload(["torch", "webdataset", "data.stream.workers"])


class CountingStore(LocalStore):
    """A slow folder that logs each download in a file and may fail."""

    def __init__(self, root: Path, *, seconds: float = 0.0, pieces: int = 1):
        super().__init__(str(root), root=root)
        self.seconds, self.pieces, self.log = seconds, pieces, root.with_name("downloads.log")
        self.fail: Callable[[Path], None] | None = None

    def download(self, path: str, local_path: Path | str) -> int:
        with self.log.open("a") as log:
            log.write(f"{path}\n")
        if self.seconds:
            for number in range(self.pieces):
                # what a download that is under way looks like
                part = Path(local_path).with_name(f".{Path(local_path).name}.half.part")
                part.write_bytes(b"half" * (number + 1))
                time.sleep(self.seconds)
            part.unlink()
        if self.fail is not None:
            self.fail(Path(local_path))
        return super().download(path, local_path)

    @property
    def downloads(self) -> list[str]:
        """The names of the shards in the order of their downloads, by all processes."""
        return self.log.read_text().split() if self.log.exists() else []


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Five shards of about equal size in tmp_path/store."""
    return build_shard_set(str(tmp_path / "store"), (3, 3, 3, 3, 3), num_frames=lambda number: 32)


@pytest.fixture
def store(tmp_path: Path, manifest: Manifest) -> CountingStore:
    return CountingStore(tmp_path / "store")


@pytest.fixture
def ticks() -> Iterator[int]:
    """A clock that advances by a second per call, so that "least recently used" is unambiguous."""
    return itertools.count(time.time_ns(), 10**9)


@pytest.fixture
def make_cache(tmp_path: Path, manifest: Manifest, store: CountingStore, ticks) -> Callable[..., ShardCache]:
    """Caches in tmp_path/cache with room for `shards` shards."""

    def make(shards: float = 2, namespace: str = "set", **options) -> ShardCache:
        config = CacheConfig(tmp_path / "cache", int(shards * max_bytes(manifest)), patience_s=0.3)
        return ShardCache(config, store=store, namespace=namespace, clock_ns=lambda: next(ticks), **options)

    return make


def max_bytes(manifest: Manifest) -> int:
    return max(entry.bytes for entry in manifest.shards)


def content(shard: CachedShard) -> bytes:
    return os.pread(shard.file, 1 << 30, 0)


def use(cache: ShardCache, *entries: ShardEntry) -> None:
    for entry in entries:
        cache.open(entry).close()


def files_of(cache: ShardCache) -> list[str]:
    folder = cache.config.directory
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def kept(cache: ShardCache) -> set[str]:
    return {path.name for path in cache.config.directory.glob("*/*.tar")}


def test_a_shard_is_fetched_once_and_then_found(make_cache, manifest, store, tmp_path):
    """The second opening is a hit, and the bytes are those of the store."""
    cache = make_cache(tally=(tally := Tally()))
    entry = manifest.shards[0]
    for _ in range(2):
        shard = cache.open(entry)
        assert content(shard) == (tmp_path / "store" / entry.name).read_bytes()
        assert len(shard.index) == 3
        shard.close()
    assert store.downloads == [entry.name]
    counts = tally.take()
    assert (counts["cache_misses"], counts["cache_hits"]) == (1, 1)
    assert counts["bytes_read"] == entry.bytes + (tmp_path / "store" / f"{entry.name}.idx").stat().st_size


class OtherProcess:
    """Another process of the node, with its own cache on the same folder."""

    def __init__(self, tmp_path: Path, store: CountingStore, budget_bytes: int):
        self.tmp_path, self.store, self.budget_bytes = tmp_path, store, budget_bytes

    def open(self) -> ShardCache:
        return plain_cache(self.tmp_path, self.store, self.budget_bytes, patience_s=20.0)

    def report(self, entry: ShardEntry, barrier, results) -> None:
        cache = self.open()
        barrier.wait()
        shard = cache.open(entry)
        results.put(content(shard))
        shard.close()

    def hold(self, entry: ShardEntry, holding) -> None:
        shard = self.open().open(entry)
        holding.set()
        time.sleep(600)
        shard.close()

    def keep_opening(self, manifest: Manifest, seed: int) -> None:
        cache, rng = plain_cache(self.tmp_path, self.store, self.budget_bytes, patience_s=60.0), random.Random(seed)
        while True:
            cache.prefetch(rng.choice(manifest.shards))
            use(cache, rng.choice(manifest.shards))

    @contextmanager
    def holding(self, entry: ShardEntry) -> Iterator[tuple[BaseProcess, Event]]:
        """A process that opens the shard and keeps it until it is killed, and the event that the shard is open."""
        holding = PROCESSES.Event()
        process = PROCESSES.Process(target=self.hold, args=(entry, holding))
        process.start()
        try:
            yield process, holding
        finally:
            process.kill()
            process.join()


def plain_cache(tmp_path: Path, store: CountingStore, budget_bytes: int, patience_s: float = 0.2) -> ShardCache:
    return ShardCache(CacheConfig(tmp_path / "cache", budget_bytes, patience_s), store=store, namespace="set")


def test_processes_of_one_node_download_a_shard_once(tmp_path, manifest):
    """Three processes that open one shard at the same moment cause one download, and all get its bytes."""
    store = CountingStore(tmp_path / "store", seconds=0.3)
    other = OtherProcess(tmp_path, store, 4 * max_bytes(manifest))
    entry = manifest.shards[0]
    barrier, results = PROCESSES.Barrier(3), PROCESSES.Queue()
    processes = [PROCESSES.Process(target=other.report, args=(entry, barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    contents = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    assert set(contents) == {(tmp_path / "store" / entry.name).read_bytes()}
    assert store.downloads == [entry.name]


def test_kill_9_during_a_download_leaves_no_stale_lock(tmp_path, manifest, store):
    """The next process takes over at once, removes the leftovers, and gets the whole shard."""
    entry, folder, downloads = manifest.shards[0], tmp_path / "cache" / "set", tmp_path / "cache" / "downloads"
    slow = OtherProcess(tmp_path, CountingStore(tmp_path / "store", seconds=600), 4 * max_bytes(manifest))
    with slow.holding(entry):
        wait_until(lambda: list(downloads.glob("set.*")) and list(downloads.glob(".*.part")))
        assert not (folder / entry.name).exists(), "nothing lies under its name before it is whole"
    started = time.monotonic()
    shard = plain_cache(tmp_path, store, 4 * max_bytes(manifest)).open(entry)
    assert time.monotonic() - started < 300, "it waited for the download of the dead"
    assert content(shard) == (tmp_path / "store" / entry.name).read_bytes()
    shard.close()
    assert not list(downloads.iterdir())


def test_room_reserved_by_a_killed_download_is_given_back(tmp_path, manifest, store):
    """A killed download does not count against the budget, even if its shard is never opened again."""
    downloads = tmp_path / "cache" / "downloads"
    slow = OtherProcess(tmp_path, CountingStore(tmp_path / "store", seconds=600), 4 * max_bytes(manifest))
    with slow.holding(manifest.shards[0]):
        wait_until(lambda: list(downloads.glob(".*.part")))
        cache = plain_cache(tmp_path, store, max_bytes(manifest))
        with pytest.raises(CacheError, match="in use"):
            cache.open(manifest.shards[1])
    use(cache, manifest.shards[1])
    assert not list(downloads.iterdir())


def test_a_suspended_download_is_waited_for_with_a_limit(tmp_path, manifest, store, caplog):
    """The holder is named once, with its host and shard; other shards come as ever; awake again, it frees the shard."""
    entry, other, *_ = manifest.shards
    slow = OtherProcess(tmp_path, CountingStore(tmp_path / "store", seconds=600), 4 * max_bytes(manifest))
    cache = plain_cache(tmp_path, store, 4 * max_bytes(manifest))
    with slow.holding(entry) as (process, _):
        wait_until(lambda: list((tmp_path / "cache" / "downloads").glob(".*.part")))
        os.kill(process.pid, signal.SIGSTOP)
        for _ in range(2):
            with pytest.raises(CacheBusyError, match=rf"process {process.pid} on \S+ holds a lock .* {entry.name}"):
                cache.open(entry)
        use(cache, other)
    (record,) = caplog.records
    assert re.search(
        rf"process {process.pid} on {socket.gethostname()} holds \S+{entry.name}.fetch .* no progress for 0 s; .* "
        "beside the cache: continue or end",
        record.message,
    )
    use(cache, entry)  # killed in the end
    assert kept(cache) == {entry.name, other.name}


def test_a_download_that_goes_on_is_waited_for(tmp_path, manifest):
    """However long it takes, compared with the limit: slow is not suspended."""
    entry = manifest.shards[0]
    store = CountingStore(tmp_path / "store", seconds=0.15, pieces=10)
    with OtherProcess(tmp_path, store, 4 * max_bytes(manifest)).holding(entry) as (_, holding):
        wait_until(lambda: list((tmp_path / "cache" / "downloads").glob(".*.part")))
        assert not holding.is_set()
        cache = plain_cache(tmp_path, store, 4 * max_bytes(manifest), patience_s=0.5)
        use(cache, entry)
    assert store.downloads == [entry.name]


def test_a_suspended_holder_of_the_budget_stops_nobody(tmp_path, manifest, store, caplog):
    """The first shard waits for it, the next ones do not, and nobody hears of it twice."""
    cache = plain_cache(tmp_path, store, 4 * max_bytes(manifest), patience_s=1.0)
    use(cache, manifest.shards[0])
    code = "import sys; from pathlib import Path; from pupujepa.locks import held\n"
    code += "with held(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "cache" / "budget.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        os.kill(process.pid, signal.SIGSTOP)
        started = time.monotonic()
        for entry in manifest.shards[1:]:
            with pytest.raises(CacheBusyError, match=f"process {process.pid} on"):
                cache.open(entry)
        assert time.monotonic() - started < 3.0, "each of four shards waited"
        use(cache, manifest.shards[0])
        process.kill()
    assert len(caplog.records) == 1
    use(cache, *manifest.shards)
    assert len(files_of(cache)) == 9, "four shards, their indices and the budget"


def test_the_work_of_a_fetch_does_not_grow_with_the_shards_seen(make_cache, manifest, store, monkeypatch):
    """Neither the files left nor the entries read from folders: 60 shards later both are what they were."""
    entries_read = []
    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, counting(getattr(os, name), os.listdir, entries_read))
    cache = make_cache(shards=2)
    work = []
    for number in range(80):
        entry = named_anew(store, manifest.shards[0], number)
        if number % 2:
            assert cache.prefetch(entry)
        use(cache, entry)
        for path in store.root.glob(f"{entry.name}*"):
            path.unlink()
        if number % 20 == 19:
            work.append((sum(entries_read), len(files_of(cache)), len([*cache.config.directory.rglob("*")])))
            entries_read.clear()
    assert work[1:] == work[1:2] * 3, work
    assert work[0][1] <= 2 * 2 + 1, "two shards, their indices and the budget"


def counting(real: Callable, listing: Callable, counts: list[int]) -> Callable:
    """A listing of a folder of the cache that counts the entries."""

    def listed(path):
        if "/cache" in str(path):
            counts.append(len(listing(path)))
        return real(path)

    return listed


def named_anew(store: CountingStore, entry: ShardEntry, number: int) -> ShardEntry:
    """A copy of a shard and its index in the store, under another name."""
    copy = replace(entry, name=f"copy-{number:06d}.tar")
    shutil.copy(store.root / entry.name, store.root / copy.name)
    shutil.copy(store.root / f"{entry.name}.idx", store.root / f"{copy.name}.idx")
    return copy


def test_kills_leave_no_room_unused_and_none_used_twice(tmp_path, manifest, store):
    """Processes that open shards are killed at any moment: the budget is never exceeded, and all of it comes back."""
    other = OtherProcess(tmp_path, store, 3 * max_bytes(manifest))
    folder = tmp_path / "cache"
    for _ in range(2):
        processes = [PROCESSES.Process(target=other.keep_opening, args=(manifest, seed)) for seed in range(3)]
        for process in processes:
            process.start()
        wait_until(lambda: [*folder.glob("*/*.tar")])
        for process in processes:
            for _ in range(30):
                assert sum(size_of(path) for path in folder.glob("*/*.tar")) <= 3 * max_bytes(manifest)
            process.kill()
            process.join()
    cache = plain_cache(tmp_path, store, 3 * max_bytes(manifest))
    pins = [cache.open(entry) for entry in manifest.shards[:3]]
    assert kept(cache) == {entry.name for entry in manifest.shards[:3]}
    assert int((folder / "budget").read_text()) == sum(entry.bytes for entry in manifest.shards[:3])
    assert not [*(folder / "downloads").iterdir()]
    for pin in pins:
        pin.close()


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_a_shard_in_use_by_another_process_is_not_evicted(tmp_path, manifest, store):
    """Pins hold across processes, and end with the process, even by SIGKILL."""
    cache = plain_cache(tmp_path, store, max_bytes(manifest))
    with OtherProcess(tmp_path, store, max_bytes(manifest)).holding(manifest.shards[0]) as (_, holding):
        assert holding.wait(300)
        with pytest.raises(CacheError, match="all other shards are in use"):
            cache.open(manifest.shards[1])
        assert kept(cache) == {manifest.shards[0].name}
    use(cache, manifest.shards[1])
    assert kept(cache) == {manifest.shards[1].name}


def test_least_recently_used_goes_first(make_cache, manifest):
    """Use, not age, decides: the reopened shard stays."""
    a, b, c, *_ = manifest.shards
    cache = make_cache(shards=2)
    use(cache, a, b, a, c)
    assert kept(cache) == {a.name, c.name}


def test_pinned_shards_stay_even_when_they_are_the_oldest(make_cache, manifest):
    """Eviction takes the next oldest; once released, the pinned one can go too."""
    a, b, c, d, _ = manifest.shards
    cache = make_cache(shards=2)
    pinned = cache.open(a)
    use(cache, b, c)
    assert kept(cache) == {a.name, c.name}
    pinned.close()
    use(cache, d)
    assert kept(cache) == {c.name, d.name}


def test_the_budget_holds_over_many_openings_and_two_sets(make_cache, manifest, store):
    """For any order of opening, both sets together never exceed the budget."""
    rng = np.random.default_rng(0)
    caches = [make_cache(shards=3, namespace=name) for name in ("one set", "another")]
    pins: list[CachedShard] = []
    for _ in range(60):
        pins.append(caches[rng.integers(2)].open(manifest.shards[rng.integers(5)]))
        if len(pins) > 2:
            pins.pop(0).close()
        held = sum(path.stat().st_size for path in caches[0].config.directory.glob("*/*.tar"))
        assert held <= caches[0].config.budget_bytes
    for pin in pins:
        pin.close()
    assert len(store.downloads) > 20


def test_no_room_is_one_clear_sentence(make_cache, manifest):
    """All in use, larger than the budget, or a full disk: the shard, the folder and the remedy are named."""
    a, b, c, *_ = manifest.shards
    cache = make_cache(shards=2)
    pins = [cache.open(a), cache.open(b)]
    with pytest.raises(
        CacheError, match=rf"no room in cache_dir .* for shard {c.name} .* raise cache_bytes, lower window"
    ):
        cache.open(c)
    for pin in pins:
        pin.close()
    with pytest.raises(CacheError, match="it alone is larger than cache_bytes"):
        make_cache(shards=0.5).open(c)


def test_a_disk_with_less_room_than_the_budget_counts(make_cache, manifest):
    """A full disk evicts shards too; without a shard to evict, an error says so."""
    a, b, *_ = manifest.shards
    free = {"bytes": 10 * max_bytes(manifest)}
    cache = make_cache(shards=5, free_bytes=lambda path: free["bytes"])
    use(cache, a)
    free["bytes"] = 0
    use(cache, b)
    assert kept(cache) == {b.name}
    pin = cache.open(b)
    with pytest.raises(CacheError, match="bytes are lacking"):
        cache.open(a)
    pin.close()


def test_a_disk_that_fills_up_during_a_download(make_cache, manifest, store):
    """No partial shard stays, and the error says that the disk is full."""

    def fill(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    store.fail = fill
    cache = make_cache()
    with pytest.raises(CacheError, match=r"the disk is full \(No space left on device\); free space there"):
        cache.open(manifest.shards[0])
    assert files_of(cache) == ["budget"]


def test_a_disk_that_is_full_for_real(tmp_path, manifest, store):
    """A file system of 20 kB, in a process of its own: the kernel's own "no space" becomes the sentence.

    Where the kernel lets this process mount none, its own limit on the size of files stands in for it.
    """
    results = PROCESSES.Queue()
    process = PROCESSES.Process(target=_open_on_a_full_disk, args=(tmp_path, store, manifest.shards[0], results))
    process.start()
    try:
        said = results.get(timeout=300)
    finally:
        process.kill()
        process.join()
    assert re.fullmatch(
        rf"no room in cache_dir .* for shard {manifest.shards[0].name} of \d+ bytes: the disk is full "
        r"\((No space left on device|File too large)\); free space there.*",
        said,
    )


def _open_on_a_full_disk(tmp_path: Path, store: CountingStore, entry: ShardEntry, results) -> None:
    limit = entry.bytes - 1
    folder = tmp_path / "cache"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    alone, private = 0x20000 | (0 if os.geteuid() == 0 else 0x10000000), (1 << 14) | (1 << 18)
    mounted = (
        libc.unshare(alone) == 0
        # what is mounted here is to be seen by this process alone
        and libc.mount(b"none", b"/", None, private, None) == 0
        and libc.mount(b"none", bytes(folder), b"tmpfs", 0, f"size={limit // 4096 * 4096}".encode()) == 0
    )
    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    config = CacheConfig(folder, 10**9)
    # the room was there when it was asked for; others have taken it since
    cache = ShardCache(config, store=store, namespace="set", free_bytes=lambda path: 10**9)
    try:
        cache.open(entry)
    except CacheError as error:
        results.put(str(error))


def test_trouble_with_the_disk_is_one_sentence(make_cache, manifest, store):
    """Other disk errors name the folder, the shard and the system's message."""

    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    store.fail = fail
    with pytest.raises(
        CacheError,
        match=r"cache_dir .* cannot keep shard .* \(Input/output error\).*repair the disk or its permissions",
    ):
        make_cache().open(manifest.shards[0])


def test_evictions_are_counted(make_cache, manifest):
    """Each shard that makes room for another."""
    cache = make_cache(shards=2, tally=(tally := Tally()))
    use(cache, *manifest.shards)
    assert tally.take()["evictions"] == 3


def test_a_folder_that_cannot_be_made_is_named(tmp_path, store):
    """The cache directory is checked when the cache is made."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match=r"cache_dir .*file/cache cannot be made .*; choose a folder"):
        ShardCache(CacheConfig(tmp_path / "file" / "cache", 1), store=store, namespace="set")


def test_a_shard_that_came_damaged_is_fetched_again(make_cache, manifest, store, tmp_path, caplog):
    """One bad transfer costs one retry; only a whole shard is published."""
    entry, whole = manifest.shards[0], (tmp_path / "store" / manifest.shards[0].name)
    good = whole.read_bytes()
    bad = [good[:-5] + b"\0" + good[-4:-1] + b"x", good[:100]]

    def damage_first(path: Path) -> None:
        whole.write_bytes(bad.pop() if bad and len(store.downloads) == 1 else good)

    store.fail = damage_first
    cache = make_cache(tally=(tally := Tally()))
    shard = cache.open(entry)
    assert content(shard) == good
    shard.close()
    assert len(store.downloads) == 2 and tally.take()["retries"] == 1
    assert "came damaged (" in caplog.text


def test_a_cut_shard_is_refused(make_cache, manifest, tmp_path):
    """A shard that is shorter in the store than in the manifest is named, never taken for the end of data."""
    whole = tmp_path / "store" / manifest.shards[0].name
    os.truncate(whole, 1024)
    with pytest.raises(ShardError, match=rf"{whole.name} has 1024 bytes .* truncated; restore it"):
        make_cache().open(manifest.shards[0])


def test_a_missing_shard_is_named(make_cache, manifest, tmp_path):
    """The store's own error passes through, and nothing stays locked."""
    whole = tmp_path / "store" / manifest.shards[0].name
    moved = whole.rename(whole.with_suffix(".moved"))
    cache = make_cache()
    with pytest.raises(MissingObjectError, match=f"{whole.name} does not exist"):
        cache.open(manifest.shards[0])
    moved.rename(whole)
    use(cache, manifest.shards[0])


def test_an_index_that_rots_in_the_cache_is_fetched_again(make_cache, manifest, tmp_path):
    """The index is compared with the manifest's digest at every read."""
    cache = make_cache()
    use(cache, manifest.shards[0])
    index = next((tmp_path / "cache" / "set").glob("*.idx"))
    index.write_bytes(index.read_bytes().replace(b"track", b"truck"))
    shard = cache.open(manifest.shards[0])
    assert shard.index.uid[0].startswith("track0")
    shard.close()


def test_renewing_fetches_once_for_all_who_hold_the_damaged_copy(make_cache, manifest, store):
    """The first to report it causes a download; the others find the new copy."""
    cache, entry = make_cache(shards=4), manifest.shards[0]
    first, second = cache.open(entry), cache.open(entry)
    renewed = [cache.renew(entry, first), cache.renew(entry, second)]
    assert len({shard.inode for shard in renewed}) == 1
    assert len(store.downloads) == 2
    for shard in renewed:
        shard.close()


def test_prefetching_does_not_evict_what_waits_to_be_read(make_cache, manifest):
    """A prefetched shard is evicted for one that is needed now, not for another prefetched one."""
    a, b, c, d, _ = manifest.shards
    cache = make_cache(shards=2)
    assert cache.prefetch(a) and cache.prefetch(a) and cache.prefetch(b)
    assert not cache.prefetch(c)
    assert kept(cache) == {a.name, b.name}
    use(cache, a)
    assert cache.prefetch(c), "a was read and let go of"
    assert kept(cache) == {b.name, c.name}
    use(cache, d)
    assert kept(cache) == {c.name, d.name}


def test_what_is_still_wanted_is_kept_however_long_it_waits(make_cache, manifest, ticks):
    """Windows may last for hours: a shard fetched ahead is kept from other prefetching while its prefetcher lives.

    Once nobody renews its grace, its reader has died, and it makes way.
    """
    a, b, c, *_ = manifest.shards
    cache = make_cache(shards=2)
    assert cache.prefetch(a) and cache.prefetch(b)
    for _ in range(20):
        for _ in range(100):
            next(ticks)
        assert cache.prefetch(a) and cache.prefetch(b)
        assert not cache.prefetch(c)
    for _ in range(700):
        next(ticks)
    assert cache.prefetch(c)


def test_replaced_shards_of_another_manifest_are_not_mixed_up(make_cache, manifest, store):
    """Two sets may have shards of equal names: the manifest's digest separates them."""
    for namespace in ("a" * 64, "b" * 64):
        use(make_cache(shards=4, namespace=namespace), manifest.shards[0])
    assert len(store.downloads) == 2


def wait_until(condition: Callable[[], object], timeout_s: float = 300.0) -> None:
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, "waited in vain"
        time.sleep(0.02)

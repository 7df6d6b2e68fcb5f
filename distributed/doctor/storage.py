"""Checks of a store: reach, clock, rights to list, read and write, and bandwidth of one connection.

The store's errors are sentences that end with a remedy (data/store/s3.py); a finding splits them into fact and remedy.
A local folder has no clock and no rights to list: it is checked like the other folders.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from data.shards.manifest import MANIFEST_NAME, SPLITS, ManifestError, from_json
from data.store.files import LocalStore, MissingObjectError, RetryPolicy, Store, StoreError
from data.store.s3 import S3Store
from data.store.store import open_store
from distributed.doctor.findings import ABSENT, FAILED, OK, WARNING, Finding, failure
from distributed.doctor.machine import read_folder

# a user waits for the answer, so retries end early
_IMPATIENT = RetryPolicy(deadline_s=8.0, connect_timeout_s=5.0, read_timeout_s=5.0)
# S3 refuses signatures from a clock that is this far off
_MOST_SKEW_S, _MUCH_SKEW_S = 15 * 60.0, 5 * 60.0
_READ_BYTES, _WRITTEN_BYTES = 16 * 2**20, 4 * 2**20
_MEGA = 1e6


def store_findings(url: str, *, write: bool, now_s: Callable[[], float] = time.time) -> list[Finding]:
    """Connects to a store and judges it; `write` also checks the right to write."""
    with _sentence("store") as failures:
        store = open_store(url, policy=_IMPATIENT)
        findings = [_folder(store, write=write)] if isinstance(store, LocalStore) else _server(store, now_s)
    if failures:
        return failures
    findings += _read(store)
    if write:
        findings += _write(store)
    merged: dict[str, Finding] = {}
    for finding in findings:
        # failures with one remedy, such as a wrong key, are one line
        key = finding.remedy if finding.level == FAILED else finding.name
        if key in merged:
            finding = replace(merged[key], name=f"{merged[key].name}, {finding.name.removeprefix('store: ')}")
        merged[key] = finding
    return list(merged.values())


def clock_finding(store_s: float | None, now_s: float) -> Finding:
    """Compares the clocks of this machine and the store, in seconds since 1970; None without a date."""
    if store_s is None:
        return Finding("clock", WARNING, "the store sends no date", "check that this machine's clock is right")
    skew_s = now_s - store_s
    found = f"{abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} the store's"
    remedy = "set this machine's clock, and keep it right with chrony or systemd-timesyncd"
    if abs(skew_s) >= _MOST_SKEW_S:
        return Finding("clock", FAILED, f"{found}; S3 refuses signatures from 15 minutes on", remedy)
    if abs(skew_s) >= _MUCH_SKEW_S:
        return Finding("clock", WARNING, f"{found}; from 15 minutes on S3 will refuse signatures", remedy)
    # the store's date has whole seconds, and an answer takes a moment
    return Finding("clock", OK, found if abs(skew_s) > 2 else "agrees with the store's")


@contextmanager
def _sentence(name: str) -> Iterator[list[Finding]]:
    """Yields a list, which gets a finding if the block fails for a reason that the user can mend."""
    failures: list[Finding] = []
    try:
        yield failures
    except (StoreError, ManifestError) as error:
        failures.append(failure(name, error, remedy="correct --url"))
    except ImportError as error:
        failures.append(Finding(name, FAILED, f"no client can be loaded: {error}", "pip install 'pupujepa[data]'"))


def _folder(store: LocalStore, *, write: bool) -> Finding:
    if store.root.is_dir():
        return Finding("store", OK, f"{store.root} is a folder here")
    if store.root.exists():
        return Finding("store", FAILED, f"{store.root} is a file", "name the folder that holds manifest.json")
    # a folder to write may not exist yet; a folder to read must
    level = ABSENT if write else FAILED
    return Finding("store", level, f"{store.root} does not exist", "python -m data build makes it; or correct --url")


def _server(store: Store, now_s: Callable[[], float]) -> list[Finding]:
    """Connects, and compares clocks first: with a wrong clock the store refuses the rest."""
    assert isinstance(store, S3Store)
    began = time.perf_counter()
    store_s = store.time_s()
    found = f"a server answers for {store.url}, the first time after {time.perf_counter() - began:.1f} s"
    with _sentence("store: list") as failures:
        # the narrowest prefix, because the list of a million objects takes a thousand requests
        store.list(MANIFEST_NAME)
    listed = failures or [Finding("store: list", OK, "allowed")]
    return [Finding("store", OK, found), clock_finding(store_s, now_s()), *listed]


def _read(store: Store) -> list[Finding]:
    """Reads the manifest of the url or of its first split, and the beginning of its first shard."""
    name, manifest = "store: read", None
    with _sentence(name) as failures:
        for folder in ("", *(f"{split}/" for split in SPLITS)):
            with suppress(MissingObjectError):
                text = store.read(folder + MANIFEST_NAME)
                manifest = from_json(text, origin=store.locate(folder + MANIFEST_NAME))
                break
        if manifest is None:
            found = f"there is no {MANIFEST_NAME}, so nothing was read"
            return [Finding(name, ABSENT, found, "build shards there first, or correct --url")]
        if not manifest.shards:
            found = f"the manifest {store.locate(folder)} names no shard"
            return [Finding(name, WARNING, found, "build the shards again")]
        first = manifest.shards[0]
        length = min(first.bytes, _READ_BYTES)
        began = time.perf_counter()
        store.read_range(folder + first.name, 0, length=length)
        read = f"one connection read {_speed(length, time.perf_counter() - began)}"
        return [Finding(name, OK, f"{len(manifest.shards)} shards, {manifest.audio_hours:.1f} hours; {read}")]
    return failures


def _write(store: Store) -> list[Finding]:
    """Writes an object, reads it back, tries to create it again, and removes it; none in a folder."""
    if isinstance(store, LocalStore):
        # the nearest folder that exists, so that the check makes none
        place = read_folder("store: write", store.root)
        if not place.error:
            return [Finding(place.name, OK, f"files can be made in {place.folder}")]
        found = f"no file can be made in {place.folder}: {place.error}"
        return [Finding(place.name, FAILED, found, "correct --url, or mend the folder's rights")]
    name, path, content = "store: write", f"doctor-{secrets.token_hex(8)}", secrets.token_bytes(_WRITTEN_BYTES)
    with _sentence(name) as failures:
        began = time.perf_counter()
        store.write(path, content)
        speed = f"one connection wrote {_speed(len(content), time.perf_counter() - began)}"
        try:
            finding = Finding(name, OK, f"allowed, {speed}")
            if store.read(path) != content:
                found = f"{store.locate(path)} returned other bytes than were written"
                finding = Finding(name, FAILED, found, "do not use this store until its operator has mended it")
            elif store.create(path, content):
                found = (
                    f"allowed, {speed}; but it ignores If-None-Match, so two starts of a run can take one generation"
                )
                remedy = "start a run once at a time, or use a store with conditional writes"
                finding = Finding(name, WARNING, found, remedy)
        finally:
            with _sentence(f"{name} and remove") as left_over:
                store.remove(path)
        return [finding, *left_over]
    return failures


def _speed(size_bytes: int, seconds: float) -> str:
    return f"{size_bytes / _MEGA:.1f} MB at {size_bytes / max(seconds, 1e-6) / _MEGA:.0f} MB/s"

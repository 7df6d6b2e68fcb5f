"""The store: whole objects or a named error, over plain paths, a real S3 server, and a proxy that breaks answers."""

import errno
import logging
import os
import pickle
import random
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from data.store.files import LocalStore
from data.store.s3 import answered_hosts, remember_hosts
from data.store.store import MissingObjectError, RetryPolicy, S3Store, Store, StoreError, open_store
from examples.local_s3 import LocalS3
from pupujepa.durable import atomic_file
from pupujepa.errors import UserError
from tests.faultproxy import Fault, FaultProxy

CONTENT = random.Random(0).randbytes(300_000)
# waits hardly at all between two tries, and for an answer as long as a busy machine may take
QUICK = RetryPolicy(deadline_s=300.0, first_wait_s=0.01, max_wait_s=0.05, read_timeout_s=100.0)
# for answers that do not come; an answer that does may be too late for it, so its retries are not counted exactly
IMPATIENT = replace(QUICK, read_timeout_s=1.0, min_upload_bytes_per_s=1e6)


@pytest.fixture(params=["path", "file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """The three kinds of location, each empty."""
    if request.param == "s3":
        return open_store(request.getfixturevalue("bucket") + "/some/prefix", policy=QUICK)
    return open_store(str(tmp_path / "root") if request.param == "path" else (tmp_path / "root").as_uri())


@pytest.fixture
def faulty_store(bucket: str, faulty_s3: FaultProxy) -> S3Store:
    """A store behind the proxy that holds CONTENT under "shard.tar"."""
    open_store(bucket).write("shard.tar", CONTENT)
    store = open_store(bucket, policy=QUICK, rng=random.Random(0))
    assert isinstance(store, S3Store)
    return store


def test_what_is_written_is_read(store: Store, tmp_path: Path):
    """Every kind of location returns the bytes it was given, for all ways of reading and writing."""
    store.write("a/b.bin", CONTENT)
    (tmp_path / "local").write_bytes(CONTENT[::-1])
    store.upload(tmp_path / "local", "a/c.bin")
    assert store.read("a/b.bin") == CONTENT
    assert store.read("a/c.bin") == CONTENT[::-1]
    assert store.read_range("a/b.bin", 1000, length=77) == CONTENT[1000:1077]
    assert store.download("a/c.bin", tmp_path / "deep" / "copy") == len(CONTENT)
    assert (tmp_path / "deep" / "copy").read_bytes() == CONTENT[::-1]
    assert store.size("a/b.bin") == len(CONTENT)
    assert open_store(store.locate("a/b.bin")).read() == CONTENT


def test_listing_is_relative_sorted_and_by_prefix(store: Store):
    """`list` names all objects below the url, and `remove` removes them, twice without an error."""
    for name in ("b/2", "a", "b/1"):
        store.write(name, b"")
    assert store.list() == ["a", "b/1", "b/2"]
    assert store.list("b/") == ["b/1", "b/2"]
    store.remove("b/1")
    store.remove("b/1")
    assert store.list("b/") == ["b/2"]
    assert not store.exists("b/1")
    assert store.exists("b/2")


def test_a_missing_object_is_named(store: Store, tmp_path: Path):
    """Reading a missing object names the location, on every kind of store, and leaves no file."""
    with pytest.raises(MissingObjectError, match=r"nothing\.tar does not exist"):
        store.read("nothing.tar")
    with pytest.raises(MissingObjectError, match=r"nothing\.tar does not exist"):
        store.download("nothing.tar", tmp_path / "copy" / "x")
    with pytest.raises(MissingObjectError, match=r"nothing\.tar does not exist"):
        store.size("nothing.tar")
    assert not (tmp_path / "copy" / "x").exists()
    assert store.retries == 0


def test_listings_longer_than_a_page_are_whole(bucket: str, monkeypatch: pytest.MonkeyPatch):
    """`list` follows the pages of the server to the end."""
    store = open_store(bucket)
    assert isinstance(store, S3Store)
    names = [f"{i:02d}" for i in range(7)]
    for name in names:
        store.write(name, b"")
    client = store._client()
    whole = client.call_s3
    monkeypatch.setattr(client, "call_s3", lambda method, **kw: whole(method, MaxKeys=3, **kw))
    assert store.list() == names


@pytest.mark.parametrize("kind", ["503", "500", "429", "reset", "truncate", "stall", "bitflip"])
@pytest.mark.parametrize("times", [1, 3])
def test_passing_faults_are_outlived(
    kind: str, times: int, faulty_store: S3Store, faulty_s3: FaultProxy, tmp_path: Path
):
    """After each passing fault, both whole reads return the right bytes, and every retry is counted."""
    if kind == "stall":
        faulty_store.policy = IMPATIENT
        times = min(times, 2)
    faulty_s3.inject(Fault(kind, times=times, match="shard.tar"))
    assert faulty_store.read("shard.tar") == CONTENT
    assert faulty_s3.struck == [kind] * times
    # on a kept connection that turns out to be closed, the HTTP library itself sends the request again
    if kind == "stall":
        assert faulty_store.retries >= times and len(faulty_s3.requests) >= times + 1
    else:
        assert faulty_store.retries == times or (kind == "reset" and faulty_store.retries < times)
        assert len(faulty_s3.requests) == times + 1
    faulty_s3.inject(Fault(kind, times=1, match="shard.tar"))
    assert faulty_store.download("shard.tar", tmp_path / "copy") == len(CONTENT)
    assert (tmp_path / "copy").read_bytes() == CONTENT
    assert faulty_s3.struck == [kind]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


@pytest.mark.parametrize("kind", ["503", "500", "429", "reset", "stall"])
def test_writes_outlive_faults(kind: str, faulty_store: S3Store, faulty_s3: FaultProxy):
    """A write with a fault, or without an answer, is repeated, and the object is whole."""
    if kind == "stall":
        faulty_store.policy = IMPATIENT
    faulty_store.list()  # the client is made, which takes longer than the impatient policy grants a write
    faulty_s3.inject(Fault(kind, times=2, match="other", method="PUT"))
    faulty_store.write("other", CONTENT[::-1])
    assert faulty_s3.struck == [kind] * 2
    assert faulty_store.read("other") == CONTENT[::-1]


@pytest.mark.parametrize("kind", ["503", "reset", "truncate"])
def test_ranges_and_listings_outlive_faults(kind: str, faulty_store: S3Store, faulty_s3: FaultProxy):
    """Ranged reads and listings are repeated like whole reads."""
    faulty_s3.inject(Fault(kind, times=1))
    assert faulty_store.read_range("shard.tar", 5, length=1000) == CONTENT[5:1005]
    assert faulty_s3.struck == [kind]
    faulty_s3.inject(Fault("503" if kind == "truncate" else kind, times=1))
    assert faulty_store.list() == ["shard.tar"]
    assert faulty_s3.struck


def test_a_slow_answer_is_no_fault(faulty_store: S3Store, faulty_s3: FaultProxy):
    """The client waits through latency and slow bytes: silence times out, not slowness."""
    faulty_s3.inject(Fault("latency", value=0.4), Fault("throttle", value=1e6))
    assert faulty_store.read("shard.tar") == CONTENT
    assert faulty_store.read("shard.tar") == CONTENT
    assert faulty_store.retries == 0


def test_one_404_is_final(faulty_store: S3Store, faulty_s3: FaultProxy):
    """A missing key is reported at once: waiting would not help."""
    faulty_s3.inject(Fault("404", times=1, match="shard.tar"))
    with pytest.raises(MissingObjectError, match=r"shard\.tar does not exist at 127\.0\.0\.1"):
        faulty_store.read("shard.tar")
    assert faulty_store.retries == 0
    assert faulty_store.read("shard.tar") == CONTENT


def test_the_client_below_does_not_retry(faulty_store: S3Store, faulty_s3: FaultProxy):
    """One retry policy: the number of requests on the wire is the number of our tries."""
    faulty_s3.inject(Fault("503", times=2, match="shard.tar"))
    faulty_store.read("shard.tar")
    assert [method for method, _ in faulty_s3.requests] == ["GET"] * 3


def test_the_deadline_ends_the_tries(bucket: str, faulty_s3: FaultProxy, caplog: pytest.LogCaptureFixture):
    """Lasting faults end at the policy's deadline: one sentence with tries, reason, host and remedy."""
    now_s = 0.0
    waits_s: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds
        waits_s.append(seconds)

    policy = RetryPolicy(deadline_s=30.0, first_wait_s=1.0, max_wait_s=8.0)
    store = open_store(bucket, policy=policy, rng=random.Random(1), clock=lambda: now_s, sleep=sleep)
    faulty_s3.inject(Fault("503", times=1000))
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(
            StoreError, match=r"tries in 30 s failed, the last with 503 SlowDown; see whether the store at 127"
        ),
    ):
        store.read("shard.tar")
    assert sum(waits_s) <= 30.0
    bounds_s = [min(8.0, 2.0**i) for i in range(len(waits_s))]
    assert all(bound / 2 <= wait <= bound for wait, bound in zip(waits_s, bounds_s, strict=True))
    assert len(set(waits_s)) == len(waits_s)
    assert "503 SlowDown" in caplog.text


def test_wrong_credentials_are_refused_in_one_sentence(bucket: str, bare_aws_environment: pytest.MonkeyPatch):
    """An unknown key, a wrong secret and no credentials: each fails at once, naming what to set, without the secret."""
    for name, value, expected in (
        ("AWS_ACCESS_KEY_ID", "nobody", r"127\.0\.0\.1:\d+ refuses these credentials \(403 InvalidAccessKeyId\)"),
        ("AWS_SECRET_ACCESS_KEY", "not-the-secret", r"refuses these credentials \(403 SignatureDoesNotMatch\)"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(name, value)
            store = open_store(bucket)
            for attempt in (lambda s=store: s.read("x"), lambda s=store: s.write("x", b""), lambda s=store: s.list()):
                with pytest.raises(StoreError, match=expected + r".*set AWS_ACCESS_KEY_ID") as caught:
                    attempt()
                assert "\n" not in str(caught.value)
                assert value not in str(caught.value)
            with pytest.raises(StoreError, match="refuses these credentials"):
                store.size("x")
            assert store.retries == 0
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        bare_aws_environment.delenv(name)
    with pytest.raises(StoreError, match=r"no credentials were found; set AWS_ACCESS_KEY_ID"):
        open_store(bucket).read("x")


def test_the_store_s_clock_is_read_from_a_refusal_too(bucket: str, monkeypatch: pytest.MonkeyPatch):
    """A client with a wrong clock is refused, but still learns the store's time."""
    for name in ("bucket", "no-such-bucket"):
        store = open_store(bucket if name == "bucket" else f"s3://{name}/x")
        assert isinstance(store, S3Store)
        store_s = store.time_s()
        assert store_s is not None
        assert abs(store_s - time.time()) < 120
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    refused = open_store(bucket)
    assert isinstance(refused, S3Store)
    assert refused.time_s() is not None


def test_a_missing_bucket_is_named(s3_environment: LocalS3):
    """Every operation on a missing bucket says so: it is neither an empty folder nor a missing key."""
    store = open_store("s3://no-such-bucket/prefix")
    for attempt in (
        lambda: store.read("x"),
        lambda: store.write("x", b""),
        store.list,
        lambda: store.size("x"),
        lambda: store.exists("x"),
    ):
        with pytest.raises(StoreError, match=r"bucket 'no-such-bucket' does not exist at 127\.0\.0\.1:\d+; create it"):
            attempt()
    assert store.retries == 0


def test_no_server_is_an_error_at_once(bare_aws_environment: pytest.MonkeyPatch):
    """A first request without an answer names the endpoint, without retries."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    for name, value in (
        ("ENDPOINT_URL", f"http://127.0.0.1:{port}"),
        ("ACCESS_KEY_ID", "a"),
        ("SECRET_ACCESS_KEY", "b"),
    ):
        bare_aws_environment.setenv(f"AWS_{name}", value)
    bare_aws_environment.setattr("data.store.s3._ANSWERED", set())
    store = open_store("s3://bucket")
    with pytest.raises(
        StoreError, match=rf"no S3 server answers at 127\.0\.0\.1:{port}; start it, or correct AWS_ENDPOINT"
    ):
        store.read("x")
    assert store.retries == 0


def test_a_server_that_was_there_is_waited_for(bucket: str, s3_environment: LocalS3, monkeypatch: pytest.MonkeyPatch):
    """Once a server has answered, a refused connection is a restart: the request is retried until it is back."""
    proxy = FaultProxy(upstream_port=s3_environment.port)
    waits_s: list[float] = []

    def sleep(seconds: float) -> None:
        waits_s.append(seconds)
        if len(waits_s) == 3:
            proxy.__enter__()

    with proxy:
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.setenv(name, proxy.endpoint_url)
        store = open_store(bucket, sleep=sleep)
        store.write("x", b"content")
    assert store.read("x") == b"content"
    assert len(waits_s) == store.retries == 3
    proxy.__exit__()


def test_a_worker_knows_that_the_server_was_there(bucket: str, monkeypatch: pytest.MonkeyPatch):
    """A process that knows which servers have answered waits for them, and so does every store of one process."""
    monkeypatch.setattr("data.store.s3._ANSWERED", set())
    assert answered_hosts() == frozenset()
    assert open_store(bucket).list() == []
    (host,) = answered_hosts()
    assert host == urlsplit(os.environ["AWS_ENDPOINT_URL"]).netloc
    monkeypatch.setattr("data.store.s3._ANSWERED", set())
    remember_hosts([host])
    assert answered_hosts() == {host}


def test_a_pickled_store_works_in_another_process(bucket: str):
    """A pickled store has no client and no credentials, and makes a client in the worker."""
    store = open_store(bucket)
    store.write("x", b"content")
    pickled = pickle.dumps(store)
    assert b"local-secret" not in pickled
    program = f"import pickle, sys; sys.stdout.buffer.write(pickle.loads({pickled!r}).read('x'))"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"content"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gs://bucket/x", "gs:// is not known; use a path, file:// or s3://"),
        ("http://host/x", "http:// is not known"),
        ("s3://", "names no bucket"),
        ("s3://AKIAKEY:hidden-words@bucket/x", "s3:// url carries credentials"),
        ("https://AKIAKEY:hidden-words@host/x", "https:// url carries credentials"),
        ("s3://bucket/x?X-Amz-Credential=AKIAKEY&X-Amz-Signature=hidden-words", "carries credentials"),
    ],
)
def test_locations_that_cannot_be_are_refused(url: str, message: str):
    """Unknown schemes, no bucket and keys in urls are refused before anything is tried; keys are not repeated."""
    with pytest.raises(StoreError, match=message) as caught:
        open_store(url)
    assert "hidden-words" not in str(caught.value)


@pytest.mark.parametrize("read", ["read", "download"])
def test_a_body_that_trickles_is_ended(read: str, faulty_store: S3Store, faulty_s3: FaultProxy, tmp_path: Path):
    """Bytes keep coming, so no silence times out: too few of them in a window are an error."""
    faulty_store.policy = IMPATIENT
    faulty_s3.inject(Fault("throttle", value=2e4))
    if read == "read":
        assert faulty_store.read("shard.tar") == CONTENT
    else:
        faulty_store.download("shard.tar", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == CONTENT
    assert faulty_s3.struck == ["throttle"]
    assert faulty_store.retries >= 1


def test_a_negative_limit_is_refused():
    """An error names the limit of a policy that could never end or start."""
    with pytest.raises(UserError, match=r"deadline_s 0 of the store's retries must be positive"):
        RetryPolicy(deadline_s=0)


def test_retries_are_counted_by_the_thread_that_makes_them(faulty_store: S3Store, faulty_s3: FaultProxy):
    """A reader and its prefetching thread share a store, but each counts only its own retries."""
    faulty_s3.inject(Fault("503", times=2, match="shard.tar"))
    other = threading.Thread(target=faulty_store.read, args=["shard.tar"])
    other.start()
    other.join()
    assert (faulty_store.retries, faulty_store.retries_of_this_thread) == (2, 0)
    faulty_s3.inject(Fault("503", times=1, match="shard.tar"))
    faulty_store.read("shard.tar")
    assert (faulty_store.retries, faulty_store.retries_of_this_thread) == (3, 1)


def test_a_local_cut_file_is_not_read_short(tmp_path: Path):
    """A range beyond the end of a file is an error, not fewer bytes."""
    (tmp_path / "x").write_bytes(b"12345")
    with pytest.raises(StoreError, match="ends before byte 9"):
        LocalStore(str(tmp_path), root=tmp_path).read_range("x", 3, length=6)


def test_an_atomic_file_appears_whole_or_not_at_all(tmp_path: Path):
    """A writer that fails leaves the old content and no temporary file."""
    target = tmp_path / "file"
    with atomic_file(target) as temporary:
        temporary.write_text("old")
        assert not target.exists()
    with pytest.raises(RuntimeError, match="midway"), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("midway")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    longest = tmp_path / ("\u97f3" * 85)  # 255 bytes, so that a temporary name cannot hold them
    with atomic_file(longest) as temporary:
        temporary.write_text("whole")
    assert longest.read_text() == "whole"


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_folder_that_fails_now_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int):
    """A failing disk, a stale handle and too many open files are told; a list without them would look complete."""
    store = open_store(str(tmp_path / "root"))
    assert store.list() == []
    store.write("a/b", b"x")

    def fail(*_):
        raise OSError(code, os.strerror(code), str(tmp_path / "root"))

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", fail)
        with pytest.raises(StoreError, match=rf"root cannot be used now \({os.strerror(code)}, errno {code}\)"):
            store.list()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.raises(StoreError, match=rf"cannot be used now \({os.strerror(code)}, errno {code}\)"):
            store.read("a/b")
    assert store.list() == ["a/b"]


def test_a_folder_of_somebody_else_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A disk's lost+found may be read by nobody; the folder itself must be readable."""
    store = open_store(str(tmp_path))
    store.write("a", b"x")
    store.write("lost+found/b", b"x")
    scan = os.scandir

    def refuse(folder, locked):
        if Path(folder) == locked:
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", lambda folder: refuse(folder, tmp_path / "lost+found"))
    assert store.list() == ["a"]
    monkeypatch.setattr(os, "scandir", lambda folder: refuse(folder, tmp_path))
    with pytest.raises(StoreError, match="cannot be used: Permission denied"):
        store.list()

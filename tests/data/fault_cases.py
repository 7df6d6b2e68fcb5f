"""The faults of the data plane, one case each: what is broken, how, and what a stream that meets it must do.

The tests play every case and hold it to its words; `python -m benchmarks faults` plays them with the policy that a
training has, measures what each costs, and writes the table of docs/faults.md.
"""

import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from data.shards.manifest import Manifest
from data.store.files import RetryPolicy
from data.store.store import open_store
from examples.local_s3 import LocalS3
from tests.data.fault_site import Outcome, Site, environment, fresh_cache, read_stream, through
from tests.data.shardsets import build_shard_set
from tests.faultproxy import ALWAYS, Fault, FaultProxy
from tests.session_gateway import SessionGateway

EXACT = "the exact batches"
SHARD = "shard-000002.tar"


@dataclass(frozen=True)
class Case:
    """One fault.

    Args:
        fault: in words.
        play: breaks things and reads a stream.
        error: regular expression of the sentence that ends the run; "" when the exact batches arrive.
        said: regular expression of what the log says, "" for nothing.
        counter: that moves; "" where none must.
    """

    fault: str
    play: Callable[[Site], Outcome] = field(repr=False)
    error: str = ""
    said: str = ""
    counter: str = ""


def healthy(site: Site) -> Outcome:
    """No fault: the reference of the others."""
    return _through_proxy(site)


def _through_proxy(site: Site, *faults: Fault, for_good: bool = False, without_checksums: bool = False) -> Outcome:
    retries = site.insistent if for_good else site.retries
    if any(fault.kind in ("stall", "throttle") for fault in faults):
        retries = replace(retries, read_timeout_s=site.silence_s)
    with FaultProxy(upstream_port=site.server.port, without_checksums=without_checksums) as proxy:
        with through(proxy.endpoint_url):
            proxy.inject(*map(replace, faults))
            outcome = read_stream(site.url, site.manifest, fresh_cache(site), retries=retries)
        wanted = [fault.kind for fault in faults for _ in range(min(fault.times, 1))]
        assert set(wanted) <= set(proxy.struck), f"{proxy.struck} were struck"
    return outcome


def passing(kind: str, times: int = 2, value: float = 0.0, **options: bool) -> Callable[[Site], Outcome]:
    """Strikes one shard `times` times."""
    return partial(_through_proxy_with, kind, times, value, options)


def for_good(kind: str, value: float = 0.0) -> Callable[[Site], Outcome]:
    """Strikes every request for one shard."""
    return partial(_through_proxy_with, kind, ALWAYS, value, {"for_good": True})


def _through_proxy_with(kind: str, times: int, value: float, options: dict[str, bool], site: Site) -> Outcome:
    return _through_proxy(site, Fault(kind, times=times, match=f"{SHARD}$", value=value), **options)


def _trickling(times: int, site: Site, *, for_good: bool = False) -> Outcome:
    """A shard of 50 kB would be there after some twelve time-outs, whatever they are."""
    fault = Fault("throttle", times=times, match=f"{SHARD}$", value=4e3 / site.silence_s)
    return _through_proxy(site, fault, for_good=for_good)


def _server_killed(site: Site, *, comes_back: bool) -> Outcome:
    """SIGKILL while half of a shard's body is on its way; the next server has another port, the proxy finds it."""
    url, done = "s3://faults/set", threading.Event()
    with (
        LocalS3(site.folder / f"server-{comes_back}", buckets=["faults"]) as server,
        FaultProxy(upstream_port=server.port) as proxy,
        environment(**server.environment()),
        through(proxy.endpoint_url),
    ):
        # 24 MB a shard, because the buffers of sockets hold several
        manifest = build_shard_set(url, (6, 2), num_frames=lambda number: 32_000)
        proxy.inject(Fault("hold", match=f"{manifest.shards[0].name}$"))
        accident = threading.Thread(target=kill_server, args=(server, proxy, comes_back, done))
        accident.start()
        try:
            retries = site.retries if comes_back else site.insistent
            outcome = read_stream(url, manifest, fresh_cache(site), retries=retries)
            if comes_back:
                outcome = replace(
                    outcome, expected=read_stream(url, manifest, fresh_cache(site), retries=site.retries).rows
                )
        finally:
            done.set()
            accident.join()
    return outcome


def kill_server(server: LocalS3, proxy: FaultProxy, comes_back: bool, done: threading.Event) -> None:
    """Kills a server when the proxy holds a body of it, and perhaps starts the next one, which lives until `done`."""
    try:
        assert proxy.holding.wait(120), "the shard was not asked for"
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
    finally:
        proxy.go_on.set()
    if comes_back:
        server.port = 0
        server.start()
        proxy.upstream_port = server.port
        done.wait()  # a server ends with the thread that started it


@dataclass
class _Expiry(SessionGateway):
    """A gateway whose first token expires when SHARD is asked for."""

    on_expiry: Callable[[], object] = lambda: None

    def refusal(self, head: bytes) -> str:
        if SHARD.encode() in head and self.token == "first-token":
            self.token = "second-token"
            self.on_expiry()
        return super().refusal(head)


def _expired(site: Site, *, renewed: bool) -> Outcome:
    """A session token of a profile expires in the middle of a run, and is renewed in the profile or not."""
    profile = site.folder / f"credentials-{renewed}"
    keys = (site.server.access_key, site.server.secret_key)

    def write_token(token: str) -> None:
        lines = ["[default]", "aws_access_key_id=ASIATEMPORARY", "aws_secret_access_key=temporary"]
        profile.write_text("\n".join([*lines, f"aws_session_token={token}", ""]))

    write_token("first-token")
    of_profile = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_SESSION_TOKEN": None}
    with _Expiry(upstream_port=site.server.port, keys=keys) as gateway:
        if renewed:
            gateway.on_expiry = partial(write_token, "second-token")
        with through(gateway.endpoint_url), environment(AWS_SHARED_CREDENTIALS_FILE=str(profile), **of_profile):
            retries = site.retries if renewed else site.insistent
            outcome = read_stream(site.url, site.manifest, fresh_cache(site), retries=retries)
        assert gateway.token == "second-token", "nothing expired"
    return outcome


def _wrong_credentials(site: Site) -> Outcome:
    with environment(AWS_SECRET_ACCESS_KEY="not-the-secret"):
        return read_stream(site.url, site.manifest, fresh_cache(site), retries=site.retries)


def _full_disk(site: Site) -> Outcome:
    """In a process whose files the kernel limits to less than a shard: the writes fail as on a full disk."""
    context = multiprocessing.get_context("forkserver")
    results = context.Queue()
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    arguments = (site.url, site.manifest, fresh_cache(site), site.retries)
    process = context.Process(target=_read_with_small_files, args=(arguments, variables, results))
    process.start()
    try:
        return results.get(timeout=240)
    finally:
        process.kill()
        process.join()


def _read_with_small_files(
    arguments: tuple[str, Manifest, Path, RetryPolicy], variables: dict[str, str], results: Any
) -> None:
    url, manifest, cache, retries = arguments
    os.environ.update(variables)
    limit = min(shard.bytes for shard in manifest.shards) // 2
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    results.put(read_stream(url, manifest, cache, retries=retries))


def _cut_in_store(site: Site) -> Outcome:
    """A fault of the store: the object is shorter than the manifest says."""
    store = open_store(site.url)
    whole = store.read(SHARD)
    store.write(SHARD, whole[:5000])
    try:
        return read_stream(site.url, site.manifest, fresh_cache(site), retries=site.retries)
    finally:
        store.write(SHARD, whole)


_GIVEN_UP = rf"cannot (?:download|read) s3://\S+/{SHARD}(?:\.idx)?: \d+ tries in [\d.]+ s failed, the last with "
_ANY_SHARD = r"shard-\d{6}\.tar"


def _twice(kind: str, words: str, reason: str) -> tuple[Case, Case]:
    """A fault that passes, and the same fault for good."""
    return (
        Case(f"{words}, three times", passing(kind, 3), said=rf"download .*{SHARD}: {reason}", counter="retries"),
        Case(f"{words}, for good", for_good(kind), error=_GIVEN_UP + reason),
    )


CASES: tuple[Case, ...] = (
    *_twice("503", "503 SlowDown", "503 SlowDown"),
    *_twice("500", "500 InternalError", "500 InternalError"),
    *_twice("429", "429 TooManyRequests", "429 TooManyRequests"),
    Case("404, the object is gone", for_good("404"), error=rf"{SHARD} does not exist at .* restore the object"),
    # the pool of connections sends a request again by itself when a kept one turns out to be closed
    *_twice("reset", "connection reset", r"(the connection was lost|no connection) \("),
    Case("latency of 0.4 s before an answer", passing("latency", 3, 0.4)),
    *_twice("truncate", "body cut short", r"the body was cut short \("),
    *_twice("stall", "body that stalls", r"the store fell silent \("),
    *_twice("bitflip", "bit flipped on the way", r"the body came damaged \("),
    Case(
        "bit flipped on the way from a store without checksums",
        passing("bitflip", 1, without_checksums=True),
        said=rf"{SHARD} came damaged \(sample .*: mel.npy is damaged .*\); fetching it again",
        counter="retries",
    ),
    Case("bandwidth limit of 200 kB/s", passing("throttle", 3, 2e5)),
    Case(
        "body that trickles, 4 kB within the time-out of a read, once",
        partial(_trickling, 1),
        said=rf"{SHARD}: the body came too slowly \(",
        counter="retries",
    ),
    Case(
        "body that trickles, 4 kB within the time-out of a read, for good",
        partial(_trickling, ALWAYS, for_good=True),
        error=_GIVEN_UP + r"the body came too slowly \(",
    ),
    Case(
        "server killed in mid-body, comes back",
        partial(_server_killed, comes_back=True),
        said=r"(cut short|connection was lost|no connection|fell silent)",
        counter="retries",
    ),
    Case(
        "server killed in mid-body, stays away",
        partial(_server_killed, comes_back=False),
        error=rf"cannot \w+ s3://faults/set/{_ANY_SHARD}\S*: .* (cut short|connection was lost|no connection)",
    ),
    Case(
        "session token expires, the profile is renewed",
        partial(_expired, renewed=True),
        said="400 ExpiredToken: the credentials have expired",
        counter="retries",
    ),
    Case(
        "session token expires, nobody renews it",
        partial(_expired, renewed=False),
        error=_GIVEN_UP + "400 ExpiredToken: the credentials have expired; renew them",
    ),
    Case(
        "wrong credentials",
        _wrong_credentials,
        error=rf"{_ANY_SHARD}\S*: .* refuses these credentials \(403 SignatureDoesNotMatch\); set AWS_ACCESS_KEY_ID",
    ),
    Case(
        "cache disk full",
        _full_disk,
        error=rf"no room in cache_dir .* for shard {_ANY_SHARD} .*: the disk is full \(.*\); free space there",
    ),
    Case("object cut in the store", _cut_in_store, error=rf"{SHARD} has 5000 bytes .* truncated; restore it"),
)

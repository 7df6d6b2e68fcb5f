"""Fixtures that several rooms share: a real S3 server, and the environment that leads clients to it."""

import os

# Before torch and numpy read it. With a thread per core the order of sums, and so the last bits, would differ from one
# machine to the next, and several ranks would fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from examples.local_s3 import LocalS3
from tests.faultproxy import FaultProxy

# The servers of the tests are on this machine; a proxy that the developer's network needs knows nothing of them.
for _name in ("NO_PROXY", "no_proxy"):
    os.environ[_name] = ",".join(filter(None, [os.environ.get(_name), "127.0.0.1", "localhost"]))

# A suite started by nohup or a shell's `&` ignores these signals, and so would all processes that tests stop by them.
for _signal in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, signal.default_int_handler if _signal == signal.SIGINT else signal.SIG_DFL)

# The same examples each time, and none fails for being slow on a busy machine. HYPOTHESIS_PROFILE=search looks for new
# ones: the place to find a counterexample is a developer's machine, not somebody's first `make test`.
_UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeatable", _UNHURRIED, derandomize=True, database=None)
settings.register_profile("search", _UNHURRIED, max_examples=3000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

TEST_BUCKET = "test-bucket"
_AWS_VARIABLES = (
    "AWS_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
)

# Their tests start several ranks, a Ray or a SLURM, which keep both cores busy: one of them at a time.
_BUSY = ("tests/distributed/test_", "tests/gpu/test_tra", "tests/integration/", "tests/sweeps/")


class _Scheduler(LoadScopeScheduling):
    """Keeps together, where processes share the tests (`make test`), the busy ones, and those of each file.

    A file's fixtures train models that all its tests look at.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "busy" if file.startswith(_BUSY) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Deals the tests out to processes."""
    return _Scheduler(config, log)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    """A running SeaweedFS on free loopback ports: `.endpoint_url`, `.environment()`, `.make_bucket(name)`."""
    with LocalS3(tmp_path_factory.mktemp("s3"), buckets=[TEST_BUCKET]) as server:
        yield server


@pytest.fixture
def bare_aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No AWS settings of the developer's: neither variables nor files nor a metadata service."""
    for name in _AWS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


@pytest.fixture
def s3_environment(s3: LocalS3, bare_aws_environment: pytest.MonkeyPatch) -> LocalS3:
    """The server, with this process's AWS variables pointing at it; child processes inherit them."""
    for name, value in s3.environment().items():
        bare_aws_environment.setenv(name, value)
    return s3


@pytest.fixture
def bucket(s3_environment: LocalS3) -> str:
    """The url of a new, empty place in a bucket, reachable through the environment: `s3://test-bucket/...`."""
    # one bucket for all: the server sets space aside for each
    return f"s3://{TEST_BUCKET}/{random.SystemRandom().randrange(16**10):010x}"


@pytest.fixture
def faulty_s3(s3_environment: LocalS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A fault proxy in front of the server; the environment points at it. `.inject(Fault(...))` breaks things."""
    with FaultProxy(upstream_port=s3_environment.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint_url)
        yield proxy

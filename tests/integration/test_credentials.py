"""Keys of the object store stay where they were: no file, object, log line or wandb record of ours holds them."""

import base64
import json
import logging
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.__main__ import COMMANDS
from data.store.store import RetryPolicy, StoreError, open_store
from examples.local_s3 import LocalS3
from pupujepa.front_door import ROOMS, enter
from tests.data.songs import write_album
from tests.distributed.launch import ROOT, TIMEOUT_S, environment, launch, train_command
from tests.session_gateway import SessionGateway

KEYS = {
    "AWS_ACCESS_KEY_ID": f"ASIA{secrets.token_hex(8).upper()}",
    "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(30),
    "AWS_SESSION_TOKEN": secrets.token_urlsafe(60),
}


@pytest.fixture
def gateway(s3_environment: LocalS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[SessionGateway]:
    """The server behind a gateway that insists on a session token; the environment has the three keys."""
    server_keys = (s3_environment.access_key, s3_environment.secret_key)
    with SessionGateway(upstream_port=s3_environment.port, keys=server_keys) as gateway:
        gateway.token = KEYS["AWS_SESSION_TOKEN"]
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.setenv(name, gateway.endpoint_url)
        for name, value in KEYS.items():
            monkeypatch.setenv(name, value)
        yield gateway


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files of all processes; its path is short, because sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="pj-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def leaks(content: bytes) -> set[str]:
    """The keys that a text holds, as they are or as base64."""
    return {
        name
        for name, value in KEYS.items()
        if value.encode() in content or base64.b64encode(value.encode()).rstrip(b"=") in content
    }


def of_ours(records: list[logging.LogRecord]) -> list[logging.LogRecord]:
    """The log of our rooms; the clients' own is off unless somebody turns it on."""
    return [record for record in records if record.name.partition(".")[0] in ROOMS]


def test_no_trace_of_the_keys(
    gateway: SessionGateway, scratch: Path, bucket: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """A build, a training with wandb offline, and a read that is refused: all that they wrote is searched.

    That the search can find something is shown on what must be there: the url in config.yaml, and the name of a setting
    in wandb's binary record. The metrics of the run hold what the data plane counted.
    """
    write_album(tmp_path / "songs")
    build = [sys.executable, "-m", "data", "build", str(tmp_path / "songs"), bucket, "--part-frames=300"]
    build += ["--min-frames=100", "--shard-mib=0.3", "--workers=1"]
    built = subprocess.run(
        build, check=False, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert built.returncode == 0, built.stderr
    run_dir, url = tmp_path / "run", f"{bucket}/train"
    options = ["train.steps=4", "checkpoint.every=2", "diagnostics.every=0", "telemetry.wandb=offline"]
    options += [f"stream.cache_dir={tmp_path / 'cache'}", "stream.cache_bytes=100000000", "stream.workers=1"]
    trained = launch(train_command(run_dir, url, *options))
    assert trained.returncode == 0, trained.stderr
    gateway.token = "another one"
    with caplog.at_level(logging.DEBUG), pytest.raises(StoreError, match="have expired; renew them") as refused:
        open_store(url, policy=RetryPolicy(deadline_s=0.5)).read("manifest.json")

    said = [text.encode() for run in (built, trained) for text in (run.stdout, run.stderr)]
    said += [str(refused.value).encode(), *(f"{row.msg} {row.args}".encode() for row in of_ours(caplog.records))]
    files = {path: path.read_bytes() for top in (tmp_path, scratch) for path in top.rglob("*") if path.is_file()}
    gateway.token = KEYS["AWS_SESSION_TOKEN"]
    store = open_store(bucket)
    objects = {name: store.read(name) for name in store.list()}
    assert url.encode() in files[run_dir / "config.yaml"]
    (record,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    assert b"peak_lr" in files[record]
    assert "train/manifest.json" in objects
    assert set(gateway.tokens_seen) == {KEYS["AWS_SESSION_TOKEN"]}, "the keys were used"
    found = {str(name): leaks(content) for name, content in [*files.items(), *objects.items(), *enumerate(said)]}
    assert not {name: names for name, names in found.items() if names}
    assert leaks(json.dumps(KEYS).encode()) == set(KEYS), "the search finds what is there"

    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert sum(row["data/bytes_read"] for row in rows) > 100_000
    assert sum(row["data/cache_misses"] for row in rows) > 0
    assert all(row["data/stand_ins"] == row["data/retries"] == 0 for row in rows)
    assert all(row["data/wait_s"] > 0 for row in rows)


@pytest.mark.parametrize("place", ["in", "out"])
def test_keys_in_a_url_are_refused_and_not_repeated(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Whoever writes them into a location is told where they belong, before anything is read or written."""
    url = f"s3://{KEYS['AWS_ACCESS_KEY_ID']}:{KEYS['AWS_SECRET_ACCESS_KEY']}@bucket/songs"
    write_album(tmp_path / "songs")
    words = [url, str(tmp_path / "out")] if place == "in" else [str(tmp_path / "songs"), url]
    assert enter("data", COMMANDS, manual="", argv=["build", *words]) == 2
    said = capsys.readouterr()
    assert "carries credentials" in said.err
    assert not leaks((said.out + said.err).encode())
    assert not (tmp_path / "out").exists()

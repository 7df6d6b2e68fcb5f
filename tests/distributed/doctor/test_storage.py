"""The store, on a real S3 server: what works is said, and each failure is one sentence with its remedy."""

import json
import socket
import sys
import time
from email.utils import formatdate

import pytest

from data.shards.manifest import MANIFEST_NAME
from data.store.store import open_store
from distributed.doctor.findings import ABSENT, FAILED, OK, WARNING
from distributed.doctor.storage import clock_finding, store_findings
from examples.local_s3 import LocalS3
from tests.data.shardsets import build_shard_set
from tests.faultproxy import Fault


def judged(url, **options):
    """Findings by name; every failure has a remedy and fits into one line."""
    found = store_findings(url, **({"write": False} | options))
    for finding in found:
        assert finding.remedy or finding.level == OK, finding
        assert "\n" not in finding.found + finding.remedy
    return {finding.name: finding for finding in found}


@pytest.fixture
def corpus(bucket):
    """A shard set in the store; its url is that of a corpus, with one split in it."""
    build_shard_set(f"{bucket}/train", (4, 4))
    return bucket


class ReadOnlyS3(LocalS3):
    """A server with a second identity, `reader`, that may read and list."""

    def _command(self, weed):
        command = super()._command(weed)
        config = json.loads((self.directory / "s3.json").read_text())
        keys = {"accessKey": "reader", "secretKey": "reader-secret"}
        config["identities"].append({"name": "reader", "credentials": [keys], "actions": ["Read", "List"]})
        (self.directory / "s3.json").write_text(json.dumps(config))
        return command


def test_a_store_that_works(corpus):
    """Reach, clock, list, read and write; the object that was written is gone again."""
    before = open_store(corpus).list()
    found = judged(f"{corpus}/train", write=True)
    assert list(found) == ["store", "clock", "store: list", "store: read", "store: write"]
    assert {finding.level for finding in found.values()} == {OK}
    assert found["store: read"].found.startswith("2 shards, ")
    assert "MB/s" in found["store: read"].found
    assert "MB/s" in found["store: write"].found
    assert open_store(corpus).list() == before


def test_a_split_below_the_url_is_read(corpus):
    """The url of a corpus will do as well; without --write nothing is written."""
    found = judged(corpus)
    assert found["store: read"].level == OK
    assert "store: write" not in found


def test_an_empty_place_is_no_failure(bucket):
    """Before the first build there is nothing to read."""
    found = judged(bucket, write=True)
    assert found["store: read"].level == ABSENT
    assert "build shards" in found["store: read"].remedy
    assert found["store: write"].level == OK
    assert open_store(bucket).list() == []


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("AWS_ACCESS_KEY_ID", "nobody", "403 InvalidAccessKeyId"),
        ("AWS_SECRET_ACCESS_KEY", "not-the-secret", "403 SignatureDoesNotMatch"),
    ],
)
def test_wrong_keys(corpus, monkeypatch, name, value, code):
    """One line for all that they cannot do, without the secret."""
    monkeypatch.setenv(name, value)
    found = judged(corpus, write=True)
    assert found["clock"].level == OK
    failed = found["store: list, read, write"]
    assert failed.level == FAILED
    assert f"refuses these credentials ({code})" in failed.found
    assert failed.remedy.startswith("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to keys")
    assert value not in failed.found + failed.remedy


def test_no_keys(bucket, monkeypatch):
    """Neither variables nor a profile."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (failed,) = judged(bucket, write=True).values()
    assert (failed.level, failed.found) == (FAILED, f"{bucket}: no credentials were found")
    assert failed.remedy == "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"


def test_no_such_bucket(s3_environment):
    """It is named, and its server."""
    failed = judged("s3://no-such-bucket/x", write=True)["store: list, read, write"]
    assert failed.level == FAILED
    assert "bucket 'no-such-bucket' does not exist at 127.0.0.1:" in failed.found
    assert failed.remedy.startswith("create it, or correct the url")


def test_nobody_answers(bare_aws_environment):
    """A port without a server is told at once."""
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
    (failed,) = judged("s3://bucket/x").values()
    assert (failed.level, failed.found) == (FAILED, f"s3://bucket/x: no S3 server answers at 127.0.0.1:{port}")
    assert failed.remedy == "start it, or correct AWS_ENDPOINT_URL"


def test_keys_that_may_only_read(tmp_path, bare_aws_environment):
    """Everything but writing works, and only --write finds out."""
    with ReadOnlyS3(tmp_path / "s3", buckets=["shards"]) as server:
        for name, value in server.environment().items():
            bare_aws_environment.setenv(name, value)
        build_shard_set("s3://shards/train", (4,))
        bare_aws_environment.setenv("AWS_ACCESS_KEY_ID", "reader")
        bare_aws_environment.setenv("AWS_SECRET_ACCESS_KEY", "reader-secret")
        assert {finding.level for finding in judged("s3://shards/train").values()} == {OK}
        found = judged("s3://shards/train", write=True)
    assert {name for name, finding in found.items() if finding.level == FAILED} == {"store: write"}
    assert "refuses these credentials (403 AccessDenied)" in found["store: write"].found
    assert "keys that may use this bucket" in found["store: write"].remedy


def test_a_clock_that_is_wrong(corpus, faulty_s3):
    """An hour off is told from the store's own date, before what the store then refuses."""
    faulty_s3.date = formatdate(time.time() - 3600, usegmt=True)
    faulty_s3.inject(Fault("skewed", times=100))
    found = judged(corpus)
    assert found["clock"].level == FAILED
    assert 3590 <= int(found["clock"].found.split()[0]) <= 4200
    assert "ahead of the store's; S3 refuses signatures from 15 minutes on" in found["clock"].found
    assert "chrony" in found["clock"].remedy
    refused = found["store: list, read"]
    assert "403 RequestTimeTooSkewed" in refused.found
    assert "clock" in refused.remedy


@pytest.mark.parametrize(
    ("store_s", "level", "words"),
    [
        (1000.0, OK, "agrees"),
        (940.0, OK, "60 s ahead of the store's"),
        (1400.0, WARNING, "400 s behind"),
        (100.0, FAILED, "900 s ahead of"),
        (1900.0, FAILED, "900 s behind"),
        (None, WARNING, "sends no date"),
    ],
)
def test_clocks(store_s, level, words):
    """Fifteen minutes are S3's limit, whichever of the two is ahead."""
    found = clock_finding(store_s, 1000.0)
    assert found.level == level
    assert words in found.found


def test_a_manifest_without_its_shards(corpus):
    """The manifest is there, its first shard is not."""
    store = open_store(f"{corpus}/train")
    shard = next(name for name in store.list() if name.endswith(".tar"))
    store.remove(shard)
    failed = judged(corpus)["store: read"]
    assert failed.level == FAILED
    assert f"{shard} does not exist at" in failed.found


def test_a_broken_manifest(bucket):
    """Its error's own remedy is shown."""
    open_store(bucket).write(MANIFEST_NAME, b"{")
    failed = judged(bucket)["store: read"]
    assert failed.level == FAILED
    assert "is not JSON" in failed.found
    assert "build it again with `python -m data build`" in failed.remedy


def test_an_object_that_cannot_be_removed_is_named(bucket, faulty_s3):
    """What the trial leaves behind is somebody's to remove."""
    faulty_s3.inject(Fault("404", times=100, method="DELETE"))
    found = judged(bucket, write=True)
    assert found["store: write"].level == OK
    assert f"{bucket}/doctor-" in found["store: write and remove"].found


def test_a_store_that_fails_for_the_moment_is_outlived(corpus, faulty_s3):
    """One 503 is no finding."""
    faulty_s3.inject(Fault("503", times=1))
    assert {finding.level for finding in judged(corpus).values()} == {OK}
    assert faulty_s3.struck == ["503"]


def test_a_folder_is_a_store_too(tmp_path):
    """Without clock and keys; one that does not exist is not made."""
    build_shard_set(str(tmp_path / "shards" / "train"), (4,))
    found = judged(str(tmp_path / "shards"), write=True)
    assert list(found) == ["store", "store: read", "store: write"]
    assert {finding.level for finding in found.values()} == {OK}
    found = judged((tmp_path / "none" / "here").as_uri(), write=True)
    assert found["store"].level == found["store: read"].level == ABSENT
    assert found["store: write"].level == OK
    assert not (tmp_path / "none").exists()
    assert judged("/proc/1/x", write=True)["store: write"].level == FAILED


@pytest.mark.parametrize(("url", "words"), [("gs://bucket/x", "gs:// is not known"), ("s3://", "names no bucket")])
def test_urls_that_cannot_be(url, words):
    """The store's own sentence."""
    (failed,) = judged(url).values()
    assert failed.level == FAILED
    assert words in failed.found


def test_no_client(bucket, monkeypatch):
    """s3fs is an extra: without it the store cannot be tried, which is no crash."""
    monkeypatch.setitem(sys.modules, "s3fs", None)
    (failed,) = judged(bucket).values()
    assert failed.level == FAILED
    assert "s3fs" in failed.found
    assert failed.remedy == "pip install 'pupujepa[data]'"

"""Every fault of object storage: the exact batches arrive, or the run stops with shard and cause."""

import logging
import random
import re
from pathlib import Path

import pytest

from benchmarks.faults import PAGE, STOPS
from data.shards.manifest import Manifest
from data.store.files import RetryPolicy
from examples.local_s3 import LocalS3
from tests.data.fault_cases import CASES, EXACT, SHARD, Case, for_good
from tests.data.fault_site import SAMPLES_PER_SHARD, STEPS, Row, Site, environment, read_stream
from tests.data.shardsets import build_shard_set

# impatient where a fault must be waited out; patient enough for a machine that is busy with other things
QUICK = RetryPolicy(
    deadline_s=120.0, first_wait_s=0.02, max_wait_s=0.2, read_timeout_s=2.0, min_download_bytes_per_s=2e4
)


@pytest.fixture(scope="module")
def shard_set(s3: LocalS3) -> tuple[str, Manifest]:
    """A shard set in a bucket of the session's server, written once for all cases."""
    url = f"s3://{s3.buckets[0]}/faults-{random.SystemRandom().randrange(16**10):010x}"
    with environment(**s3.environment(), AWS_PROFILE=None, AWS_SESSION_TOKEN=None):
        return url, build_shard_set(url, SAMPLES_PER_SHARD)


@pytest.fixture
def site(shard_set: tuple[str, Manifest], s3_environment: LocalS3, tmp_path: Path) -> Site:
    """The set, and an environment that points to it."""
    return Site(s3_environment, *shard_set, tmp_path, QUICK, deadline_s=1.5, silence_s=1.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """The rows of the same stream over the same shards in a folder: the exact batches."""
    folder = tmp_path_factory.mktemp("whole")
    manifest = build_shard_set(str(folder / "set"), SAMPLES_PER_SHARD)
    outcome = read_stream(str(folder / "set"), manifest, folder / "cache", retries=QUICK)
    assert not outcome.error
    assert len(outcome.rows) == STEPS * 8
    return outcome.rows


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.fault)
def test_a_fault_costs_time_or_ends_the_run_in_one_sentence(
    case: Case, site: Site, whole: list[Row], caplog: pytest.LogCaptureFixture
):
    """The exact batches arrive, or the run stops and names shard and cause; log and counts match the case."""
    with caplog.at_level(logging.WARNING):
        outcome = case.play(site)
    if case.error:
        assert re.search(case.error, outcome.error), outcome.error
        assert "\n" not in outcome.error
        assert outcome.rows == (outcome.expected or whole)[: len(outcome.rows)], "what came before was exact"
    else:
        assert not outcome.error
        assert outcome.rows == (outcome.expected or whole)
        assert outcome.counters["stand_ins"] == 0
    if case.said:
        assert re.search(case.said, caplog.text), caplog.text
    if case.counter:
        assert outcome.counters[case.counter] >= 1


def test_the_deadline_is_not_spent_twice(site: Site, caplog: pytest.LogCaptureFixture):
    """A reader that waits for a failing prefetch fails with it, after one deadline and not two."""
    with caplog.at_level(logging.WARNING):
        outcome = for_good("503")(site)
    tries = [int(number) for number in re.findall(rf"{SHARD}: 503 SlowDown; try (\d+)", caplog.text)]
    assert outcome.error
    assert tries == list(range(2, len(tries) + 2))


def test_the_page_tells_of_every_case():
    """docs/faults.md has a row for each, with its outcome, its counter, and a message that this test accepts too."""
    measured = PAGE.read_text().partition("<!-- end of table -->")[0]
    rows = [line.strip("| ").split(" | ") for line in measured.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == [case.fault for case in CASES]
    for case, (_, outcome, said, counter, seconds) in zip(CASES, rows, strict=True):
        assert outcome == (STOPS if case.error else EXACT)
        assert re.search(case.error or case.said, said), case.fault
        assert counter.partition(" ")[0] == (case.counter or "-")
        assert float(seconds) >= 0

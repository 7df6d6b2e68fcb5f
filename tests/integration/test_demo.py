"""The main job, end to end and small: scores -> shards in S3 -> killed and resumed training -> probes -> page."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.browser import Browser

# whichever test comes first waits for the whole demo
pytestmark = pytest.mark.timeout(2000)

ROOT = Path(__file__).parents[2]
SIZE = ["--pieces", "40", "--takes", "1", "--seconds", "12"]
SMALL = ["train.steps=48", "checkpoint.every=12", "diagnostics.every=24", "telemetry.log_every=4", "model.width=64"]
SMALL += ["model.depth=2", "objective.target_layers=2", "diagnostics.clips=4", "diagnostics.crops_per_clip=2"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The output folder of a finished demo, and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "run"
    command = [sys.executable, "examples/demo.py", "--out", str(out), *SIZE, "--no-sweep", *SMALL]
    ran = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    return out, ran.stdout


def test_the_summary_holds_what_was_measured(demo):
    """summary.json has every promised figure, and they agree with the files that they come from."""
    out, _ = demo
    summary = json.loads((out / "summary.json").read_text())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert summary["ranks"] == 2
    assert summary["zero_stage"] == 2
    assert summary["steps"] == 48
    assert summary["pieces"] == 40
    assert summary["loss_first"] == losses[0] > summary["loss_last"] == losses[-1]
    assert 0 <= summary["data_wait_fraction"] < 1
    assert summary["effective_rank"] > 1
    assert set(summary["seconds"]) >= {"render", "shard", "train", "evaluate", "report"}


def test_all_tasks_have_all_their_encoders(demo):
    """Five tasks, trained and random-init and log-mel in each, chroma for key."""
    out, _ = demo
    probes = json.loads((out / "summary.json").read_text())["probes"]
    assert set(probes) == {"key", "beats", "instruments", "tempo", "collection"}
    for task, row in probes.items():
        assert {"metric", "trained", "random_init", "log_mel", "interval"} <= set(row), task
    assert "chroma" in probes["key"]


def test_it_looked_at_the_machine_first_and_said_how_long_it_takes(demo):
    """The doctor's lines come before the first phase, then the minutes and the precision of this machine."""
    _, printed = demo
    doctor, predicted, rendered = (
        printed.index(words) for words in ("checks:", "minutes at the default", "render ...")
    )
    assert doctor < predicted < rendered
    assert re.search(r"about \d+ minutes at the default sizes, in (bf16|fp32) on this machine: render \d+ s", printed)


def test_it_was_killed_and_resumed_on_purpose(demo):
    """All ranks died by SIGKILL past a checkpoint, the same command continued, and the demo says so."""
    out, printed = demo
    assert "killed all 2 ranks with SIGKILL, on purpose" in printed
    resumed = json.loads((out / "facts.json").read_text())["resumed"]
    assert [session["step"] > 0 for session in resumed] == [True]


def test_the_shards_were_streamed_from_the_store(demo):
    """Training read s3://, and no credentials are in anything that was written."""
    out, _ = demo
    assert json.loads((out / "facts.json").read_text())["store"].startswith("s3://")
    secret = json.loads((out / "store" / "s3.json").read_text())["identities"][0]["credentials"][0]["secretKey"]
    written = [path for path in out.rglob("*") if path.is_file() and out / "store" not in path.parents]
    assert not [path for path in written if secret.encode() in path.read_bytes()]


def test_the_page_opens_in_a_browser(demo):
    """report.html renders in Chromium without an error, and its probe table is there."""
    out, _ = demo
    with Browser() as browser:
        visit = browser.visit((out / "report.html").as_uri(), "document.querySelector('#probes table').innerText")
    assert not visit.errors
    assert "Instruments" in visit.result

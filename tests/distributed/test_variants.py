"""Variants as whole runs: trained on two ranks, diagnosed per band, exported, read back, probed and drawn."""

import math

import pytest
import torch

from distributed.marble.encoders.hidden_states import HowToEncode
from distributed.marble.encoders.pupujepa import load_frozen
from distributed.report.page import build_report
from distributed.run.log import read_metrics
from pupujepa.weights.weights import load
from tests.data.shardsets import build_shard_set
from tests.distributed.launch import losses

RUNS = {
    "line": ("model.structure=frames", "engine.zero_stage=1"),
    "flat": ("model.structure=flat_by_band", "engine.zero_stage=1"),
    "reconstructing": ("objective.kind=mae", "objective.loss=mse", "objective.target_layers=1", "engine.zero_stage=1"),
    # stage 3 last: DeepSpeed then replaces torch's linear function for the rest of the process
    "mixed": (
        "model.position_code=learned",
        "model.qk_norm=true",
        "model.mlp=gelu",
        "objective.target=full_grid",
        "objective.variance_weight=0.1",
        "engine.zero_stage=3",
    ),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory, run_jobs):
    root = tmp_path_factory.mktemp("variants")
    url = str(root / "shards" / "train")
    build_shard_set(url, (16, 16, 16, 16), num_frames=lambda number: 128 + number % 9)
    jobs = [{"run_dir": str(root / name), "url": url, "overrides": overrides} for name, overrides in RUNS.items()]
    run_jobs(root, (2, jobs))
    return root


@pytest.mark.parametrize(("name", "bands"), [("line", 1), ("flat", 8), ("reconstructing", 8), ("mixed", 8)])
def test_a_variant_trains_and_is_diagnosed_per_band(root, name, bands):
    """The loss falls, the teacher follows at a distance, and there is one row of diagnostics for each band."""
    found = losses(root / name)
    assert len(found) == 20
    assert sum(found[-5:]) < sum(found[:5])
    last = read_metrics(root / name / "metrics.jsonl")[-1]
    for kind in ("explained_variance_band_", "effective_rank_band_"):
        values = [value for key, value in last.items() if key.startswith(f"diag/{kind}")]
        assert len(values) == bands
        assert all(math.isfinite(value) for value in values)
    assert last["diag/teacher_moved"] > 0
    assert last["diag/teacher_student_distance"] > 0


@pytest.mark.parametrize(
    ("name", "width", "variant"),
    [
        ("line", 32, ("structure", "frames")),
        ("flat", 256, ("structure", "flat_by_band")),
        ("reconstructing", 256, ("predictor_objective", "mae")),
        ("mixed", 256, ("mlp", "gelu")),
    ],
)
def test_its_export_is_probed_like_any_other(root, name, width, variant):
    """The weights come back with the variant they belong to; teacher and student give frames for the evaluator."""
    config = load(root / name / "export").config
    field, value = variant
    assert getattr(config, field) == value
    features = {}
    for which in ("teacher", "student"):
        encoder = load_frozen(root / name, HowToEncode(which=which, precision="fp32"))
        audio = torch.randn(2, 24_000, generator=torch.Generator().manual_seed(0)) * 0.1
        features[which] = encoder.embed(audio, frame_layers=[config.depth]).pooled_BLD
        assert features[which].shape == (2, config.depth + 1, width)
        assert features[which].isfinite().all()
    assert not torch.equal(features["teacher"], features["student"])


def test_the_page_of_a_line_is_drawn(root):
    """A run with a single band has its page, attention and predictions included, and no number that is none."""
    out = root / "page.html"
    build_report(root / "line", out=out)
    text = out.read_text()
    assert "Share of attention by place" in text
    assert "nan times" not in text

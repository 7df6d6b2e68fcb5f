"""The benchmark of uint8 codes: its errors are right, and its table pairs by seed."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import codes
from data.building.features import FeatureConfig
from pupujepa.errors import UserError

LO, HI = FeatureConfig().lo, FeatureConfig().hi
STEP = (HI - LO) / 255


def test_errors_of_uniform_values_are_those_of_a_quantiser():
    """Largest half a step, rms a step over root twelve, in units of the deviation; float16 by its last bit."""
    rng = np.random.default_rng(0)
    mels = [rng.uniform(LO, HI, (500, 128)).astype(np.float32) for _ in range(3)]
    float16, uint8 = codes.measure(mels, std=2.0)
    assert (float16.dtype, uint8.dtype) == ("float16", "uint8")
    assert uint8.values == 3 * 500 * 128
    assert uint8.largest == pytest.approx(STEP / 2 / 2.0, rel=1e-3)
    assert uint8.rms == pytest.approx(STEP / np.sqrt(12) / 2.0, rel=0.01)
    assert np.allclose(uint8.rms_of_band, uint8.rms, rtol=0.1)
    assert float16.largest == pytest.approx(2**-8 / 2.0, rel=1e-3)
    assert float16.rms < uint8.rms / 5
    assert uint8.above == uint8.below == float16.above == 0


def test_values_beyond_the_range_are_counted_and_their_error_is_in_the_largest():
    """Clipped values show as a share, and as the largest error of their band."""
    mel_TF = np.full((100, 128), -4.0, dtype=np.float32)
    mel_TF[7, 5] = HI + 1.0
    float16, uint8 = codes.measure([mel_TF], std=2.0)
    assert uint8.above == pytest.approx(1 / 12_800)
    assert float16.above == 0
    assert int(np.argmax(uint8.largest_of_band)) == 5
    assert uint8.largest == pytest.approx(0.5)
    assert "0.01%" in codes.error_table([float16, uint8])


def test_the_plan_says_how_long_it_takes():
    """Two seeds of both forms, two at once."""
    args = codes.parse(["--seeds", "0", "1", "--crops", "5000"])
    assert "4 trainings (2 seeds x 2) of 5,000 crops" in codes.plan_text(args)
    assert "trainings" not in codes.plan_text(codes.parse(["--no-probes"]))


def test_a_corpus_that_is_not_there_is_named(monkeypatch, tmp_path):
    """The error is one sentence with the remedy."""
    monkeypatch.setattr("sys.argv", ["benchmarks", "codes", "--corpus", str(tmp_path)])
    with pytest.raises(UserError, match=r"holds no tracks\.jsonl.*python -m data scores"):
        codes.main()


def test_the_sweep_is_written_with_the_shards_of_this_run(monkeypatch, tmp_path):
    """Base float16, axis uint8, seeds and budget as given; --resume, so the same command continues."""
    called = []
    monkeypatch.setattr(codes, "_run", lambda *command: called.append(command))
    args = codes.parse(["--corpus", str(tmp_path), "--out", str(tmp_path), "--seeds", "3", "4", "--crops", "64"])
    assert codes.run_sweep(args) == tmp_path / "sweep"
    sweep = codes.yaml.safe_load((tmp_path / "codes.yaml").read_text())
    assert sweep["axes"]["codes"]["values"] == {"uint8": {"stream.url": str(tmp_path / "uint8" / "train")}}
    assert (sweep["seeds"], sweep["budget"]) == ([3, 4], {"samples": 64})
    assert called[0][:2] == ("sweeps", "run")
    assert str(tmp_path / "float16" / "train") in called[0]
    assert "--resume" in called[0]


def test_differences_are_paired_by_seed(monkeypatch):
    """The mean difference has Student's interval, beside the range over the seeds of the base."""

    def row(axis, seed, value):
        results = {"tempo": {"value": value, "interval": [value - 0.1, value + 0.1]}}
        return {"axis": axis, "value": "", "seed": seed, "differs": {}, "curve": [], "results": results}

    rows = [row("base", 0, 0.30), row("base", 1, 0.36), row("codes", 0, 0.31), row("codes", 1, 0.37)]
    monkeypatch.setattr(codes, "read_plan", lambda out: SimpleNamespace())
    monkeypatch.setattr(codes, "trial_rows", lambda plan, out: rows)
    line = codes.probe_table("sweep").splitlines()[2]
    assert line == "| tempo | 0.330 | 0.340 | +0.010 [+0.010, +0.010] | seeds | 0.060 |"


def test_round_trips_are_measured_once(monkeypatch, tmp_path):
    """Errors on disk for the same corpus are not measured again."""
    (tmp_path / "tracks.jsonl").write_text(json.dumps({"path": "a.wav", "split": "train"}) + "\n")
    mel_TF = np.zeros((10, 128), dtype=np.float32)
    monkeypatch.setattr(codes, "_spectrograms", lambda paths, progress: [mel_TF] * len(paths))
    first = codes.round_trips(tmp_path, tmp_path / "record.json", std=2.0)
    monkeypatch.setattr(codes, "_spectrograms", None)
    assert codes.round_trips(tmp_path, tmp_path / "record.json", std=2.0) == first

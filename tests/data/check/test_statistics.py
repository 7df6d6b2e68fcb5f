"""Statistics of a shard set, against numpy over all its values at once."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data.__main__ import COMMANDS
from data.building.build import Build
from data.building.config import BuildConfig
from data.building.features import FeatureConfig
from data.building.inputs import read_inputs
from data.check.statistics import Moments, measure_set, to_text
from data.reading.reader import ShardReader
from data.shards.manifest import read_manifest
from pupujepa.front_door import enter
from tests.data.shardsets import build_shard_set
from tests.data.songs import write_song


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two songs, one of them half silent."""
    folder = tmp_path_factory.mktemp("stats")
    write_song(folder / "in" / "full.wav", 6.0)
    audio_S, _ = soundfile.read(folder / "in" / "full.wav")
    soundfile.write(folder / "in" / "half.wav", np.concatenate([audio_S[:72_000], np.zeros(72_000)]), 24_000)
    config = BuildConfig(features=FeatureConfig(part_frames=400))
    tracks = read_inputs(folder / "in", seed=0)
    Build(tracks, str(folder / "out"), config=config, work=str(folder / "work"), workers=1).run()
    return folder / "out" / "train"


def all_values(corpus: Path) -> np.ndarray:
    manifest = read_manifest(str(corpus))
    reader = ShardReader(str(corpus), manifest)
    mels = [reader.read(shard, i)[0] for shard, entry in enumerate(manifest.shards) for i in range(entry.samples)]
    reader.close()
    return np.concatenate(mels).astype(np.float64)


def test_they_are_those_of_all_values(corpus: Path):
    """Mean and deviation, overall and by band, are numpy's; they are the manifest's; silence is half of one song."""
    found, values_TF = measure_set(str(corpus)), all_values(corpus)
    np.testing.assert_allclose(found.moments.band_means, values_TF.mean(0), rtol=1e-10)
    np.testing.assert_allclose(found.moments.band_stds, values_TF.std(0), rtol=1e-8)
    assert (found.moments.mean, found.moments.std) == pytest.approx((values_TF.mean(), values_TF.std()), rel=1e-10)
    assert (found.manifest.mean, found.manifest.std) == pytest.approx((values_TF.mean(), values_TF.std()), rel=1e-10)
    # 300 of 1200 frames, but for those that still see the end of the sound
    assert found.silence_share == pytest.approx(0.25, abs=0.005)
    assert found.floor_share == pytest.approx(0.25, abs=0.005)
    assert found.seconds_of_track == pytest.approx({"full": 6.0, "half": 6.0})


def test_moments_do_not_depend_on_the_pieces():
    """Moments over many pieces equal those of the whole."""
    mel_TF = np.random.default_rng(0).normal(-4, 2, (500, 8)).astype(np.float32)
    whole, pieces = Moments(8), Moments(8)
    whole.add(mel_TF)
    for piece_TF in np.array_split(mel_TF, 7):
        pieces.add(piece_TF)
    assert pieces.frames == whole.frames == 500
    np.testing.assert_allclose(pieces.band_stds, whole.band_stds, rtol=1e-12)


def test_the_page_and_the_picture(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The command prints a page with a line for each row of patches, in rising frequency, and draws a PNG."""
    png = tmp_path / "new" / "profile.png"
    assert enter("data", COMMANDS, manual="", argv=["stats", str(corpus), "--png", str(png)]) == 0
    page = capsys.readouterr().out
    assert page == to_text(measure_set(str(corpus)))
    rows = [line for line in page.splitlines() if " Hz " in line]
    centres_hz = [float(row.split("Hz")[0].split()[-1]) for row in rows]
    assert len(rows) == 8
    assert centres_hz == sorted(centres_hz)
    assert 100 < centres_hz[0] < 300
    assert 8000 < centres_hz[-1] < 12_000
    assert "silent frames 25" in page or "silent frames 24" in page
    assert png.read_bytes().startswith(b"\x89PNG")


def test_track_lengths_are_a_histogram(tmp_path: Path):
    """Tracks of different lengths are counted by length, in twelve bars that cover them all."""
    build_shard_set(str(tmp_path / "train"), num_frames=lambda number: 100 + 100 * (number % 6))
    page = to_text(measure_set(str(tmp_path / "train")))
    bars = [line for line in page.splitlines() if re.match(r" +[\d.]+ - +[\d.]+ s +\d+", line)]
    assert "track length: median 3.5 s, 1.0 to 6.0 s" in page
    assert len(bars) == 12
    assert sum(int(bar.split(" s ")[1].split()[0]) for bar in bars) == 24
    longest = max(bars, key=lambda bar: bar.count("#"))
    assert longest.count("#") == 40


def test_a_corpus_is_not_a_split(corpus: Path, capsys: pytest.CaptureFixture[str]):
    """Given the corpus, the command names the split to give: exit code 2."""
    assert enter("data", COMMANDS, manual="", argv=["stats", str(corpus.parent)]) == 2
    assert f"use {corpus}" in capsys.readouterr().err

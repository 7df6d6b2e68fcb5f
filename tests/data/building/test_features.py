"""Features of a track in pieces: the same bytes as at once, in memory that does not grow with the track."""

import io
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import pupujepa.audio.clip
import pupujepa.audio.source
from data.building.features import FeatureConfig, extract
from data.building.spool import spool_unit
from data.building.tracks import AudioPlace, SourceTrack
from data.shards.format import encode_mel, npy_bytes
from pupujepa.audio.log_mel import log_mel
from pupujepa.audio.read import resample
from pupujepa.audio.source import read_audio
from pupujepa.errors import UnreadableError
from tests.data.songs import write_song


@pytest.mark.parametrize(("rate_hz", "suffix"), [(44_100, "flac"), (48_000, "ogg"), (22_050, "wav"), (8_000, "mp3")])
def test_pieces_are_the_bytes_of_the_whole(tmp_path: Path, rate_hz: int, suffix: str, monkeypatch):
    """Decoded twice in blocks of a second, resampled and transformed in pieces: every byte is that of the whole."""
    path = tmp_path / f"song.{suffix}"
    write_song(path, 21.3, rate_hz=rate_hz, channels=2, seed=1)
    config = FeatureConfig(dtype="float16", part_frames=300)
    audio_S, _ = read_audio(path)
    monkeypatch.setattr(pupujepa.audio.source, "BLOCK_S", 1)
    monkeypatch.setattr(pupujepa.audio.clip, "_HELD_SAMPLES", 0)
    into = io.BytesIO()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker of a build
    try:
        facts = extract(path, config, into=into)
        whole_TF = log_mel(torch.from_numpy(resample(audio_S, rate_hz, 24_000))[None])[0].numpy()
    finally:
        torch.set_num_threads(threads)
    assert facts.frames == len(whole_TF)
    expected = [
        npy_bytes(encode_mel(whole_TF[p.start_frame :][: p.frames], "float16", lo=config.lo, hi=config.hi))
        for p in facts.parts
    ]
    assert into.getvalue() == b"".join(expected)


def _peak_bytes(path: Path) -> int:
    """Resident set of a fresh process that made the features; a second of audio is held at most."""
    pupujepa.audio.clip._HELD_SAMPLES = 24_000
    torch.set_num_threads(1)
    with path.with_suffix(".parts").open("wb") as into:
        extract(path, FeatureConfig(), into=into)
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())  # ru_maxrss is inherited from pytest
    assert found
    return int(found[1]) * 1024


def test_memory_does_not_grow_with_the_track(tmp_path: Path):
    """Twelve minutes need hardly more memory than two: held whole, they would need 190 MB more."""
    peaks = []
    for minutes in (2, 12):
        path = tmp_path / f"{minutes}.wav"
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, 60 * 22_050)
        soundfile.write(path, np.tile(noise, minutes), 22_050)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            peaks.append(fresh.submit(_peak_bytes, path).result())
    assert peaks[1] < peaks[0] + (48 << 20)  # what the allocator may keep


def test_a_wrong_length_is_a_note_of_the_track(tmp_path: Path):
    """A cut file is used as far as it goes, and its facts in the spool name both lengths."""
    write_song(tmp_path / "song.wav", 8.0)
    whole = (tmp_path / "song.wav").read_bytes()
    (tmp_path / "song.wav").write_bytes(whole[: len(whole) // 2])
    track = SourceTrack("song", AudioPlace(f"{tmp_path}/song.wav"), "songs", "train")
    [facts] = spool_unit([(track, "s")], spool=f"{tmp_path}/spool", config=FeatureConfig())
    assert 390 < facts.frames < 400
    assert "song.wav: announces 8.00 s but holds 4.00 s" in facts.note


def test_a_track_that_cannot_be_read_now_is_not_rejected():
    """An error of the disk is no reason for rejection, and leaves no facts that a next start would believe."""
    with pytest.raises(UnreadableError, match="/proc/self/mem cannot be read now"):
        extract(Path("/proc/self/mem"), FeatureConfig(), into=io.BytesIO())


def test_values_without_a_spectrum_are_refused(tmp_path: Path):
    """Samples near the largest float overflow in the spectrum; they must not become codes."""
    loud = np.full(4 * 24_000, 1e38, np.float32) * np.sign(np.sin(np.arange(4 * 24_000)))
    soundfile.write(tmp_path / "loud.wav", loud.astype(np.float32), 24_000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"loud\.wav: samples far beyond full scale"):
        extract(tmp_path / "loud.wav", FeatureConfig(), into=io.BytesIO())

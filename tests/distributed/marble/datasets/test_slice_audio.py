from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from distributed.marble.datasets.corpus import LabelledTrack, Slice
from distributed.marble.datasets.slice_audio import load_slice, tell_wrong_lengths
from distributed.marble.tasks.tasks import Clips
from pupujepa.errors import UserError

CLIPS = Clips(seconds=0.5001, max_slices=None)


def stereo_track(
    tmp_path: Path, *, claimed_hz: int = 8_000, claimed_samples: int = 10_000
) -> tuple[LabelledTrack, np.ndarray]:
    """10,000 samples at 8 kHz with different channels, and the facts of its manifest."""
    audio_CS = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 10_000)).astype(np.float32)
    path = tmp_path / "a.wav"
    soundfile.write(path, audio_CS.T, 8_000, subtype="FLOAT")
    track = LabelledTrack(
        "a", path, "train", "a", 1.25, {}, rate_hz=claimed_hz, num_samples=claimed_samples, num_channels=2
    )
    return track, audio_CS


def test_windows_are_cut_at_the_files_own_rate(tmp_path: Path):
    """int(0.5001 s * 8000 Hz) = 4000 samples, so the second window begins at sample 4000 exactly, channels averaged."""
    track, audio_CS = stereo_track(tmp_path)
    np.testing.assert_array_equal(
        load_slice(track, Slice("a", 1), CLIPS, rate_hz=8_000), audio_CS[:, 4000:8000].mean(axis=0)
    )
    assert track.start_s(1, CLIPS.seconds) == 0.5


def test_one_channel_can_be_asked_for(tmp_path: Path):
    """Channel modes first and random hear a single channel, untouched."""
    track, audio_CS = stereo_track(tmp_path)
    for channel in (0, 1):
        window = load_slice(track, Slice("a", 0, str(channel)), CLIPS, rate_hz=8_000)
        np.testing.assert_array_equal(window, audio_CS[channel, :4000])


def test_a_window_is_resampled_after_it_was_cut_and_then_padded(tmp_path: Path):
    """The last, partial window has 2000 samples, resampled as torchaudio's default, with zeros up to 12002."""
    track, audio_CS = stereo_track(tmp_path)
    window = load_slice(track, Slice("a", 2), CLIPS, rate_hz=24_000)
    alone = torchaudio.transforms.Resample(8_000, 24_000)(torch.from_numpy(audio_CS[:, 8000:].mean(axis=0))).numpy()
    assert len(window) == int(0.5001 * 24_000) == 12_002
    np.testing.assert_allclose(window[: len(alone)], alone, atol=1e-6)
    assert not window[len(alone) :].any()
    whole = torchaudio.transforms.Resample(8_000, 24_000)(torch.from_numpy(audio_CS.mean(axis=0))).numpy()[24_000:]
    assert np.abs(window[:100] - whole[:100]).max() > 1e-3  # resampling before cutting is another signal


def test_quirk_a_window_that_the_manifest_promises_and_the_file_lacks_is_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """A window after the end of the file is silent and logged: decoders disagree on the length of mp3."""
    track, _ = stereo_track(tmp_path, claimed_samples=12_000)
    assert not load_slice(track, Slice("a", 3), CLIPS, rate_hz=8_000).any()
    assert "has no audio in window 3, though its manifest counts 12000 samples" in caplog.text


def test_a_manifest_with_another_sample_rate_is_refused(tmp_path: Path):
    track, _ = stereo_track(tmp_path, claimed_hz=16_000)
    with pytest.raises(UserError, match="has 8000 Hz but its manifest says 16000, so every window would be shifted"):
        load_slice(track, Slice("a", 0), CLIPS, rate_hz=8_000)


def test_a_channel_that_the_file_lacks_is_refused(tmp_path: Path):
    track, _ = stereo_track(tmp_path)
    with pytest.raises(UserError, match="has 2 channels but its manifest says"):
        load_slice(track, Slice("a", 0, "2"), CLIPS, rate_hz=8_000)


def test_a_file_that_is_no_audio_is_named(tmp_path: Path):
    track, _ = stereo_track(tmp_path)
    track.path.write_bytes(b"no audio" * 100)
    with pytest.raises(UserError, match=r"a\.wav: cannot be decoded as audio"):
        load_slice(track, Slice("a", 0), CLIPS, rate_hz=8_000)


def test_a_file_of_another_length_is_named_once_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A cut file gives what it holds; both lengths are logged once, and the number of such files at the end."""
    track, audio_CS = stereo_track(tmp_path)
    track.path.write_bytes(track.path.read_bytes()[: -4_000 * 8])  # frames of 8 bytes
    for _ in range(2):
        window = load_slice(track, Slice("a", 1), CLIPS, rate_hz=8_000)
    np.testing.assert_array_equal(window[:1900], audio_CS[:, 4000:5900].mean(axis=0))
    assert not window[2000:].any()
    assert caplog.text.count("a.wav: announces 1.25 s but holds 0.7") == 1
    tell_wrong_lengths()
    assert "audio files have another length than they announce, as named above" in caplog.text

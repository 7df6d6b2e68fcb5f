import tracemalloc

import numpy as np
import pytest
import soundfile
import torch

from pupujepa.audio import AudioError, resample
from pupujepa.encoder import CrossFade, Encoder, window_starts
from pupujepa.errors import UserError
from pupujepa.frontend import log_mel, normalise
from pupujepa.readout import layout
from tests.pupujepa.models import SMALL, random_mel, random_model

STEP_SAMPLES = 960  # 40 ms


def music(seconds: float, rate: int = 24_000) -> np.ndarray:
    """A melody of decaying tones with a little noise."""
    t = np.arange(round(seconds * rate)) / rate
    pitch = 220 * 2 ** (np.floor(t * 4) % 7 / 12)
    noise = np.random.default_rng(0).normal(size=len(t))
    return (0.3 * np.sin(2 * np.pi * pitch * t) * np.exp(-4 * (t % 0.25)) + 0.003 * noise).astype(np.float32)


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(random_model())


def test_one_window_is_the_model_itself(encoder):
    """A clip of one crop gives exactly the model's token features on its normalised log-mel."""
    audio = music(0.64)
    mel = normalise(log_mel(torch.from_numpy(audio)[None]), SMALL.mel_mean, SMALL.mel_std)
    with torch.no_grad():
        states = encoder.model.encode(mel)
    ours = encoder.encode(audio, 24_000, layers=range(SMALL.depth + 1))
    assert ours.values.shape == (SMALL.depth + 1, 16, 8 * SMALL.width)
    assert ours.layers == (0, 1, 2, 3)
    for values, state in zip(ours.values, states, strict=True):
        np.testing.assert_allclose(values, layout(state, bands=8)[0].numpy(), atol=1e-4)


@pytest.mark.parametrize("seconds", [0.04, 0.12, 0.3, 0.64, 0.65, 0.97, 5.0])
def test_any_length_gives_25_frames_a_second(encoder, seconds):
    """Every started 40 ms is one frame of 8 D values, with the time of its centre."""
    embedding = encoder.encode(music(seconds), 24_000)
    frames = int(np.ceil(round(seconds * 24_000) / STEP_SAMPLES))
    assert embedding.values.shape == (frames, 8 * SMALL.width)
    assert embedding.values.dtype == np.float32
    assert np.isfinite(embedding.values).all()
    np.testing.assert_allclose(embedding.times_s, 0.02 + 0.04 * np.arange(frames))


def test_long_audio_is_the_cross_fade_of_its_windows(encoder):
    """Windows of one crop, half overlapping, the last one moved back, blended with triangular weights."""
    steps = 41
    audio = music(steps * 0.04)
    mel = normalise(log_mel(torch.from_numpy(audio)[None]), SMALL.mel_mean, SMALL.mel_std)
    total, weights = np.zeros((steps, 8 * SMALL.width)), np.zeros((steps, 1))
    triangle = np.minimum(np.arange(1, 17), np.arange(16, 0, -1))[:, None]
    for start in (0, 8, 16, 24, 25):
        with torch.no_grad():
            state = encoder.model.encode(mel[:, 4 * start : 4 * (start + 16)], layers=[-1])[0]
        total[start : start + 16] += triangle * layout(state, bands=8)[0].numpy()
        weights[start : start + 16] += triangle
    np.testing.assert_allclose(encoder.encode(audio, 24_000).values, total / weights, atol=2e-4)


def test_result_does_not_depend_on_the_batch_size():
    """Windows encoded one by one or together give the same features."""
    audio = music(4.3)
    one, many = (Encoder(random_model(), batch_size=size).encode(audio, 24_000).values for size in (1, 64))
    np.testing.assert_allclose(one, many, atol=1e-5)


@pytest.mark.parametrize("readout", ["mean", "region:4x2", ("region", 8, 3)])
def test_readouts_pool_the_frames(encoder, readout):
    """mean and region are averages of the cross-faded frames, with the blocks' times."""
    audio = music(2.4)
    frames = encoder.encode(audio, 24_000).values.reshape(60, 8, SMALL.width)
    pooled = encoder.encode(audio, 24_000, readout=readout)
    f, t = {"mean": (1, 1), "region:4x2": (4, 2)}.get(readout, (8, 3))
    expected = frames.reshape(t, 60 // t, f, 8 // f, SMALL.width).mean((1, 3)).transpose(1, 0, 2).ravel()
    np.testing.assert_allclose(pooled.values, expected, atol=1e-5)
    np.testing.assert_allclose(pooled.times_s, (np.arange(t) + 0.5) * 2.4 / t)


def test_files_arrays_and_tensors_agree(encoder, tmp_path):
    """A stereo file at 44.1 kHz, its samples, and its resampled mean have the same features."""
    stereo = np.stack([music(1.5, 44_100), 0.5 * music(1.5, 44_100)])
    soundfile.write(tmp_path / "a.wav", stereo.T, 44_100, subtype="FLOAT")
    expected = encoder.encode(resample(stereo.mean(0), 44_100, 24_000), 24_000).values
    for audio, rate in ((tmp_path / "a.wav", None), (str(tmp_path / "a.wav"), None), (stereo, 44_100)):
        np.testing.assert_allclose(encoder.encode(audio, rate).values, expected, atol=1e-4)
    np.testing.assert_allclose(encoder.encode(torch.from_numpy(stereo), 44_100).values, expected, atol=1e-4)


def test_memory_does_not_grow_with_the_length(encoder, tmp_path, monkeypatch):
    """The mean of a file ten times as long takes no more memory: Python and numpy hold a block, not the file."""
    monkeypatch.setattr("pupujepa.clip._BLOCK_S", 2)
    peaks = []
    for seconds in (20, 200):
        path = tmp_path / f"{seconds}.wav"
        soundfile.write(path, music(seconds), 24_000)
        tracemalloc.start()
        encoder.encode(path, readout="mean")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_shorter_grids_are_not_stretched():
    """Length-exact features of half a window stay nearer to those in the full window than clip-relative ones do."""
    audio = music(0.64)
    gaps = {}
    for mode in ("length_exact", "clip_relative"):
        config = type(SMALL)(**{**SMALL.__dict__, "rope": mode})
        encoder = Encoder(random_model(config))
        whole = encoder.encode(audio, 24_000, layers=[1]).values[0, :8]
        part = encoder.encode(audio[: 8 * STEP_SAMPLES], 24_000, layers=[1]).values[0]
        gaps[mode] = np.abs(whole - part)[:7].mean()
    assert gaps["length_exact"] < gaps["clip_relative"]


def test_encode_mel_is_batched_and_complete(encoder):
    """Normalised spectrograms give all L + 1 layers as [B, steps, bands * D], whatever the batch size."""
    mel = random_mel(11, 40, 128)
    layers = encoder.encode_mel(mel)
    assert [tuple(layer.shape) for layer in layers] == [(11, 10, 8 * SMALL.width)] * (SMALL.depth + 1)
    with torch.no_grad():
        expected = encoder.model.encode(mel, which="student")
    for ours, state in zip(encoder.encode_mel(mel, which="student"), expected, strict=True):
        torch.testing.assert_close(ours, layout(state, bands=8), atol=1e-5, rtol=1e-5)
    assert len(encoder.encode_mel(mel, layers=[-1])) == 1


def test_student_and_teacher_differ(encoder):
    """`which` chooses the encoder."""
    audio = music(0.5)
    teacher, student = (encoder.encode(audio, 24_000, which=which).values for which in ("teacher", "student"))
    assert np.abs(teacher - student).max() > 0.01


def test_bf16_stays_close():
    """bfloat16 features are float32 arrays near the float32 features."""
    audio = music(0.64)
    full = Encoder(random_model()).encode(audio, 24_000).values
    half = Encoder(random_model(), autocast_dtype=torch.bfloat16).encode(audio, 24_000).values
    assert half.dtype == np.float32
    assert 0 < np.abs(full - half).mean() < 0.05


@pytest.mark.parametrize("steps", [16, 17, 24, 31, 32, 33, 100])
def test_windows_reach_every_step(steps):
    """Windows start in order, overlap by at least half, stay inside and end with the clip."""
    starts = window_starts(steps, 16)
    assert starts[0] == 0
    assert starts[-1] == steps - 16
    gaps = np.diff(starts)
    assert ((gaps > 0) & (gaps <= 8)).all()


@pytest.mark.parametrize("steps", [16, 17, 30, 100])
def test_cross_fade_keeps_what_windows_agree_on(steps):
    """Windows cut from one sequence blend back to that sequence, each step given out once and in order."""
    sequence = random_mel(2, steps, 3, 4)
    starts = window_starts(steps, 16)
    fade = CrossFade(starts, 16)
    blended = torch.cat([fade.add(sequence[:, s : s + 16]) for s in starts], dim=1)
    torch.testing.assert_close(blended, sequence)


def test_unusable_audio_is_refused(encoder, tmp_path):
    """Too short, unrated, NaN or empty audio, and impossible readouts, say what to do."""
    with pytest.raises(AudioError, match=r"audio: 20\.0 ms of audio is shorter than one patch \(40 ms\)"):
        encoder.encode(music(0.02), 24_000)
    with pytest.raises(UserError, match="sample_rate_hz is missing"):
        encoder.encode(music(1))
    with pytest.raises(AudioError, match="sample 3 is not finite"):
        encoder.encode(np.array([0, 0, 0, np.inf] * 1000), 24_000)
    with pytest.raises(AudioError, match=r"nothing\.wav: no such audio file"):
        encoder.encode(tmp_path / "nothing.wav")
    with pytest.raises(UserError, match="asks for more blocks in time than the clip's 3 steps"):
        encoder.encode(music(0.12), 24_000, readout="region:1x4")
    with pytest.raises(UserError, match="layer 9 does not exist"):
        encoder.encode(music(1), 24_000, layers=[9])
    with pytest.raises(UserError, match="batch_size=0 must be at least 1"):
        Encoder(random_model(), batch_size=0)

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from pupujepa.audio.clip import Clip
from pupujepa.audio.log_mel import FrontendConfig, log_mel, normalise
from pupujepa.audio.read import AudioError, resample
from pupujepa.embedding.encoder import CrossFade, Encoder, window_starts
from pupujepa.embedding.readout import layout
from pupujepa.errors import UserError
from pupujepa.model.model import PupuJEPA
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


def test_blocks_that_do_not_divide_the_clip_have_their_own_centres(encoder):
    """7 steps in 3 blocks are steps 0-2, 2-4, 4-6, as in adaptive pooling, and times_s are their centres."""
    embedding = encoder.encode(music(0.28), 24_000, readout="region:1x3")
    np.testing.assert_allclose(embedding.times_s, [0.06, 0.14, 0.22])
    np.testing.assert_allclose(encoder.encode(music(0.28), 24_000, readout="mean").times_s, [0.14])


@pytest.mark.parametrize("readout", ["frames", "mean", "region:2x3"])
@pytest.mark.parametrize("layers", [None, [2], [3, 0, -2]])
@pytest.mark.parametrize("which", ["teacher", "student"])
def test_any_layers_of_either_encoder_in_any_readout(encoder, readout, layers, which):
    """Layers come in the requested order, each equal to the same layer among all."""
    audio = music(1.3)
    every = encoder.encode(audio, 24_000, readout=readout, layers=range(SMALL.depth + 1), which=which)
    some = encoder.encode(audio, 24_000, readout=readout, layers=layers, which=which)
    numbers = [3] if layers is None else [layer % 4 for layer in layers]
    assert some.layers == tuple(numbers)
    values = some.values[None] if layers is None else some.values
    assert values.shape == (len(numbers), *every.values.shape[1:])
    np.testing.assert_allclose(values, every.values[numbers], atol=1e-6)


def test_a_stream_is_the_frames_piece_by_piece(encoder):
    """The pieces of a stream are the rows of encode in order, with equal times; none is longer than a window."""
    audio = music(4.3)
    whole = encoder.encode(audio, 24_000, layers=[1, 3])
    pieces = list(encoder.stream(audio, 24_000, layers=[1, 3]))
    assert len(pieces) > 4
    assert max(piece.values.shape[1] for piece in pieces) <= SMALL.grid_steps
    np.testing.assert_array_equal(np.concatenate([piece.values for piece in pieces], axis=1), whole.values)
    np.testing.assert_allclose(np.concatenate([piece.times_s for piece in pieces]), whole.times_s)
    alone = np.concatenate([piece.values for piece in encoder.stream(audio, 24_000)])
    np.testing.assert_allclose(alone, whole.values[1], atol=1e-6)


def test_the_encoder_stays_where_the_model_is():
    """Without a device the model is not moved; with one it is."""
    with torch.device("meta"):
        model = PupuJEPA(SMALL)
    assert Encoder(model).device == torch.device("meta")
    assert Encoder(random_model(), device="cpu").device == torch.device("cpu")


def test_files_arrays_and_tensors_agree(encoder, tmp_path):
    """A stereo file at 44.1 kHz, its samples, and its resampled mean have the same features."""
    stereo = np.stack([music(1.5, 44_100), 0.5 * music(1.5, 44_100)])
    soundfile.write(tmp_path / "a.wav", stereo.T, 44_100, subtype="FLOAT")
    expected = encoder.encode(resample(stereo.mean(0), 44_100, 24_000), 24_000).values
    for audio, rate in ((tmp_path / "a.wav", None), (str(tmp_path / "a.wav"), None), (stereo, 44_100)):
        np.testing.assert_allclose(encoder.encode(audio, rate).values, expected, atol=1e-4)
    for tensor in (torch.from_numpy(stereo), torch.from_numpy(stereo).double().requires_grad_()):
        np.testing.assert_allclose(encoder.encode(tensor, 44_100).values, expected, atol=1e-4)
    coarse = torch.from_numpy(stereo).bfloat16()
    np.testing.assert_array_equal(
        encoder.encode(coarse, 44_100).values, encoder.encode(coarse.float().numpy(), 44_100).values
    )


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 24_000, 44_100, 48_000, 96_000])
def test_forty_milliseconds_are_one_frame_at_any_rate(encoder, rate):
    """The shortest clip is one patch, also if 40 ms are not a whole number of samples at either rate."""
    embedding = encoder.encode(music(0.04, rate), rate)
    assert embedding.values.shape == (1, 8 * SMALL.width)
    np.testing.assert_allclose(embedding.times_s, [0.02])


def test_three_hours_have_their_frames_where_they_belong():
    """A click after hours has its time stamp in frames and in a region, without the whole audio in memory.

    A front end of 1.2 kHz and one token a step make hours of it quick; nothing that counts samples or steps differs.
    """
    frontend = FrontendConfig(1200, n_fft=32, hop_samples=12, window_samples=32, mel_bands=4, fmax_hz=600)
    config = replace(SMALL, structure="frames", mel_bands=4, patch_bands=0, crop_frames=1024, width=4, depth=1, heads=1)
    encoder = Encoder(random_model(config, frontend=frontend), batch_size=64)
    hours, click_s, block_s = 3, 2.5 * 3600 + 0.3, 600

    def blocks():
        for start_s in range(0, hours * 3600, block_s):
            block = np.zeros(block_s * 1200, np.float32)
            if start_s <= click_s < start_s + block_s:
                block[round((click_s - start_s) * 1200)] = 1
            yield block

    def clip() -> Clip:
        return Clip(blocks(), hours * 3600 * 1200, origin="three hours")

    frames = encoder.encode(clip(), layers=[0])
    assert frames.values.shape == (1, hours * 3600 * 25, 4)
    np.testing.assert_allclose(frames.times_s[[0, -1]], [0.02, hours * 3600 - 0.02], rtol=1e-12)
    quiet = frames.values[0, 1000]
    heard_s = frames.times_s[np.abs(frames.values[0] - quiet).max(1) > 1e-3]
    assert 0 < len(heard_s) <= 3
    assert np.abs(heard_s - click_s).max() < 0.1
    region = encoder.encode(clip(), readout=("region", 1, 6), layers=[0])
    np.testing.assert_allclose(region.times_s, 1800 * (np.arange(6) + 0.5))
    loudest = np.abs(region.values.reshape(6, 4) - quiet).max(1).argmax()
    assert loudest == 5


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000])
def test_any_rate_gives_the_grid_of_its_seconds(encoder, rate):
    """Two seconds are fifty frames at any rate, and a tone below every Nyquist frequency has the same features."""
    t = np.arange(2 * rate) / rate
    embedding = encoder.encode(
        (0.3 * np.sin(2 * np.pi * 440 * t)).astype(np.float32), rate, readout="region:8x1", layers=[0]
    )
    reference = np.sin(2 * np.pi * 440 * np.arange(48_000) / 24_000) * 0.3
    expected = encoder.encode(reference.astype(np.float32), 24_000, readout="region:8x1", layers=[0])
    # the two lowest of eight bands hold the tone; what resampling leaves above differs by -60 dB and less
    low = slice(0, 2 * SMALL.width)
    assert np.abs(embedding.values[0, low] - expected.values[0, low]).mean() < 0.02
    assert len(encoder.encode(np.zeros(2 * rate, np.float32), rate).times_s) == 50


def test_shorter_grids_are_not_stretched():
    """Length-exact features of half a window are nearer to those of the full window than clip-relative ones."""
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
    """Normalised spectrograms give all L + 1 layers as [B, steps, bands * D], for any batch size."""
    mel = random_mel(11, 40, 128)
    layers = encoder.encode_mel(mel)
    assert [tuple(layer.shape) for layer in layers] == [(11, 10, 8 * SMALL.width)] * (SMALL.depth + 1)
    with torch.no_grad():
        expected = encoder.model.encode(mel, which="student")
    for ours, state in zip(encoder.encode_mel(mel, which="student"), expected, strict=True):
        torch.testing.assert_close(ours, layout(state, bands=8), atol=1e-5, rtol=1e-5)
    assert len(encoder.encode_mel(mel, layers=[-1])) == 1


def test_student_and_teacher_differ(encoder):
    """`which` chooses the encoder; the default is the teacher, in a stream too."""
    audio = music(0.5)
    teacher, student = (encoder.encode(audio, 24_000, which=which).values for which in ("teacher", "student"))
    assert np.abs(teacher - student).max() > 0.01
    np.testing.assert_array_equal(encoder.encode(audio, 24_000).values, teacher)
    np.testing.assert_array_equal(next(encoder.stream(audio, 24_000)).values, teacher)
    np.testing.assert_array_equal(next(encoder.stream(audio, 24_000, which="student")).values, student)


def test_bf16_stays_close():
    """bfloat16 features are float32 arrays near the float32 features."""
    audio = music(0.64)
    full = Encoder(random_model()).encode(audio, 24_000).values
    half = Encoder(random_model(), autocast_dtype=torch.bfloat16).encode(audio, 24_000).values
    assert half.dtype == np.float32
    assert 0 < np.abs(full - half).mean() < 0.05


def test_unusable_audio_is_refused(encoder, tmp_path):
    """Short, empty and NaN audio, missing rates and impossible readouts are errors with a remedy."""
    with pytest.raises(AudioError, match=r"audio: 20\.0 ms of audio is shorter than one patch \(40 ms\)"):
        encoder.encode(music(0.02), 24_000)
    with pytest.raises(UserError, match="sample_rate_hz is missing"):
        encoder.encode(music(1))
    with pytest.raises(AudioError, match="sample 3 is not finite"):
        encoder.encode(np.array([0, 0, 0, np.inf] * 1000), 24_000)
    with pytest.raises(AudioError, match="sample 23999 is not finite"):
        encoder.encode(np.append(music(1)[:-1], np.nan), 24_000)
    with pytest.raises(AudioError, match=r"expected samples \[S\] or \[channels, S\], not an array of shape \(0,\)"):
        encoder.encode(np.zeros(0), 24_000)
    with pytest.raises(AudioError, match=r"shape \(24000, 2\) has more channels than samples; transpose"):
        encoder.encode(np.zeros((24_000, 2)), 24_000)
    with pytest.raises(AudioError, match="positive whole numbers of Hz, not 0"):
        encoder.encode(music(1), 0)
    (tmp_path / "text.wav").write_text("not audio")
    with pytest.raises(AudioError, match=r"text\.wav: cannot be decoded as audio"):
        encoder.encode(tmp_path / "text.wav")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 24_000)
    with pytest.raises(AudioError, match=r"empty\.wav: holds no audio"):
        encoder.encode(tmp_path / "empty.wav")
    with pytest.raises(AudioError, match=r"nothing\.wav: no such audio file"):
        encoder.encode(tmp_path / "nothing.wav")
    with pytest.raises(UserError, match="asks for more blocks in time than the clip's 3 steps"):
        encoder.encode(music(0.12), 24_000, readout="region:1x4")
    with pytest.raises(UserError, match="layer 9 does not exist"):
        encoder.encode(music(1), 24_000, layers=[9])
    with pytest.raises(UserError, match="layers is empty"):
        encoder.encode(music(1), 24_000, layers=[])
    with pytest.raises(UserError, match="which='predictor' is not an encoder"):
        next(encoder.stream(tmp_path / "nothing.wav", which="predictor"))
    with pytest.raises(UserError, match="batch_size=0 must be at least 1"):
        Encoder(random_model(), batch_size=0)


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
    """Windows cut from one sequence blend back to that sequence, with each step once and in order."""
    sequence = random_mel(2, steps, 3, 4)
    starts = window_starts(steps, 16)
    fade = CrossFade(starts, 16)
    blended = torch.cat([fade.add(sequence[:, s : s + 16]) for s in starts], dim=1)
    torch.testing.assert_close(blended, sequence)

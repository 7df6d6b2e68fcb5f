import numpy as np
import pytest
import soundfile

from pupujepa.audio.read import AUDIO_SUFFIXES, AudioError, mono, resample
from pupujepa.audio.source import read_audio


def sine(hz: float, rate: int, seconds: float) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_reads_stereo_as_mean(tmp_path, suffix):
    """Channels are averaged, whatever the container."""
    left, right = sine(440, 22_050, 1), sine(880, 22_050, 1)
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.stack([left, right], 1), 22_050)
    audio, rate = read_audio(path)
    assert rate == 22_050
    assert audio.dtype == np.float32
    np.testing.assert_allclose(audio, (left + right) / 2, atol=0.05 if suffix == "ogg" else 1e-4)


# libsndfile's name of the container and of its coding, where the suffix alone does not say it
CONTAINERS = {".oga": "OGG", ".opus": "OGG", ".aif": "AIFF", ".aifc": "AIFF", ".w64": "W64", ".wave": "WAV"}
CONTAINERS |= {".bwf": "WAV", ".snd": "AU", ".mp2": "MP3", ".mpga": "MP3"}


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
def test_every_suffix_is_decoded(tmp_path, suffix):
    """A tone in each container of AUDIO_SUFFIXES keeps its rate, its length and its pitch."""
    path = tmp_path / f"a{suffix}"
    coding = "OPUS" if suffix == ".opus" else None
    soundfile.write(
        path, sine(1000, 48_000, 1), 48_000, CONTAINERS.get(suffix) and coding, format=CONTAINERS.get(suffix)
    )
    audio, rate = read_audio(path)
    assert rate == 48_000
    assert abs(len(audio) - 48_000) <= 2_500  # mp3 codes whole frames
    middle = audio[12_000:36_000]
    assert np.abs(np.fft.rfft(middle)).argmax() == 500  # bins of 2 Hz
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.08)


def test_reads_a_stretch(tmp_path):
    """start_s and duration_s cut on samples; a stretch past the end is shorter."""
    ramp = np.linspace(-1, 1, 8000, dtype=np.float32)
    soundfile.write(tmp_path / "a.wav", ramp, 8000, subtype="FLOAT")
    audio, _ = read_audio(tmp_path / "a.wav", start_s=0.25, duration_s=0.5)
    np.testing.assert_array_equal(audio, ramp[2000:6000])
    audio, _ = read_audio(tmp_path / "a.wav", start_s=0.75, duration_s=5)
    np.testing.assert_array_equal(audio, ramp[6000:])


@pytest.mark.parametrize(("from_hz", "to_hz"), [(44_100, 24_000), (16_000, 24_000), (22_050, 24_000)])
def test_resampling_keeps_a_tone(from_hz, to_hz):
    """Away from the ends, the resampled tone is the tone sampled at the new rate."""
    ours = resample(sine(1000, from_hz, 1), from_hz, to_hz)
    assert len(ours) == to_hz
    middle = slice(to_hz // 4, 3 * to_hz // 4)
    np.testing.assert_allclose(ours[middle], sine(1000, to_hz, 1)[middle], atol=3e-3)


def test_same_rate_is_untouched():
    """No resampling means the same samples."""
    audio = sine(440, 24_000, 0.1)
    assert resample(audio, 24_000, 24_000) is audio


def test_integers_are_scaled():
    """16-bit samples are read at full scale 1."""
    np.testing.assert_allclose(mono(np.array([-32768, 0, 16384], dtype=np.int16)), [-1, 0, 0.5])


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 7, 8, 11])
def test_channels_are_averaged_as_numpy_does(channels):
    """Bit for bit, interleaved or not, in every precision: corpora that were built before keep their bytes."""
    audio_SC = np.random.default_rng(channels).normal(0, 0.1, (4001, channels))
    for dtype in (np.float16, np.float32, np.float64):
        for audio_CS in (audio_SC.astype(dtype).T, np.ascontiguousarray(audio_SC.astype(dtype).T)):
            np.testing.assert_array_equal(mono(audio_CS), audio_CS.mean(0).astype(np.float32))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not audio at all", "cannot be decoded as audio"),
        (b"", "cannot be decoded as audio"),
    ],
)
def test_unreadable_files_are_named(tmp_path, content, message):
    """A file that is not audio is an error with its path."""
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=f"bad.wav: {message}"):
        read_audio(path)


def test_missing_file_is_named(tmp_path):
    """A wrong path and a folder are errors with a remedy."""
    with pytest.raises(AudioError, match=r"nowhere\.wav: no such audio file"):
        read_audio(tmp_path / "nowhere.wav")
    with pytest.raises(AudioError, match="is a folder and not an audio file; name a file in it"):
        read_audio(tmp_path)


def test_empty_and_not_finite_files_are_refused(tmp_path):
    """No samples, or NaN, are errors here and not features later."""
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 24_000)
    with pytest.raises(AudioError, match="holds no audio; remove it"):
        read_audio(tmp_path / "empty.wav")
    broken = sine(440, 24_000, 0.1)
    broken[7] = np.nan
    soundfile.write(tmp_path / "nan.wav", broken, 24_000, subtype="FLOAT")
    with pytest.raises(AudioError, match="sample 7 is not finite"):
        read_audio(tmp_path / "nan.wav")
    with pytest.raises(AudioError, match="holds no audio from 9 s on"):
        read_audio(tmp_path / "nan.wav", start_s=9)


def test_arrays_that_are_not_audio_are_refused():
    """Errors explain transposed, empty and boolean arrays."""
    with pytest.raises(AudioError, match="more channels than samples"):
        mono(np.zeros((1000, 2), np.float32))
    with pytest.raises(AudioError, match="not an array of shape"):
        mono(np.zeros((0,), np.float32))
    with pytest.raises(AudioError, match="bool"):
        mono(np.zeros(10, bool))
    with pytest.raises(AudioError, match="sample 1 is not finite"):
        mono(np.array([0.0, 1e39]))  # finite in float64, not in float32

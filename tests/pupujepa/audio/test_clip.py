import io

import numpy as np
import pytest
import soundfile
import torch

import pupujepa.audio.clip
from pupujepa.audio.clip import Clip, clip_of, clip_of_file, clip_of_samples, resampled
from pupujepa.audio.read import AudioError, mono, resample, resampling_ratio
from pupujepa.audio.source import read_audio


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    """Blocks of one second, so that short audio has several."""
    monkeypatch.setattr(pupujepa.audio.source, "BLOCK_S", 1)
    monkeypatch.setattr(pupujepa.audio.clip, "BLOCK_S", 1)


def noise(samples: int, *channels: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (samples, *channels)).astype(np.float32)


def read_in_pieces(clip: Clip, size: int) -> np.ndarray:
    starts = range(0, clip.samples, size)
    return torch.cat([clip.read(start, min(start + size, clip.samples)) for start in starts]).numpy()


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 24_000, 24_001, 44_100, 48_000, 192_000])
def test_blocks_are_resampled_as_if_they_were_one(rate):
    """Pieces are those of the resampled whole, at any rate."""
    audio = noise(round(3.3 * rate))
    whole = resample(audio, rate, 24_000)
    clip = clip_of_samples(audio, rate, 24_000)
    assert clip.samples == len(whole)
    np.testing.assert_allclose(read_in_pieces(clip, 7001), whole, atol=2e-6)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_files_are_read_like_the_whole(tmp_path, suffix):
    """A file read forward in blocks equals the file decoded at once, in any container."""
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, 0.5 * noise(3 * 44_100 + 1, 2), 44_100)
    whole, rate = read_audio(path)
    expected = resample(whole, rate, 24_000)
    np.testing.assert_allclose(read_in_pieces(clip_of_file(path, 24_000), 5000), expected, atol=2e-6)


def test_channels_are_mixed_block_by_block():
    """Stereo, a last block of fewer samples than channels, and integers equal mono() of the whole."""
    stereo = noise(2, 72_001)
    clip = clip_of_samples(stereo, 24_000, 24_000)
    np.testing.assert_array_equal(read_in_pieces(clip, 7001), mono(stereo))
    whole_numbers = (stereo * 32_000).astype(np.int16)
    clip = clip_of_samples(whole_numbers, 24_000.0, 24_000)
    np.testing.assert_array_equal(read_in_pieces(clip, 30_000), mono(whole_numbers))


def test_a_sample_that_is_not_finite_is_named_by_its_place():
    """The sample number counts from the start of the audio, also in a later block."""
    broken = noise(60_000)
    broken[50_000] = -np.inf
    clip = clip_of_samples(broken, 24_000, 24_000)
    clip.read(0, 40_000)
    with pytest.raises(AudioError, match="audio: sample 50000 is not finite"):
        clip.read(40_000, 60_000)


def test_overlapping_reads_and_silence_beyond_the_end():
    """Reads may overlap, and run past the end into silence."""
    audio = noise(50_000)
    clip = clip_of_samples(audio, 24_000, 24_000)
    np.testing.assert_array_equal(clip.read(0, 30_000), audio[:30_000])
    np.testing.assert_array_equal(clip.read(15_000, 45_000), audio[15_000:45_000])
    last = clip.read(40_000, 60_000).numpy()
    np.testing.assert_array_equal(last, np.pad(audio[40_000:], (0, 10_000)))


def test_memory_does_not_grow_with_the_clip():
    """A clip holds the last read and a block, but no earlier audio."""
    clip = clip_of_samples(noise(24_000 * 40), 24_000, 24_000)
    for start in range(0, clip.samples - 30_000, 15_000):
        clip.read(start, start + 30_000)
        assert len(clip._held) <= 30_000 + 24_000


def test_a_clip_that_ends_early_is_an_error():
    """A file that was cut while it was read is an error, and is not filled with silence."""
    clip = Clip(iter([np.zeros(100, np.float32)]), 200, origin="a.mp3")
    with pytest.raises(AudioError, match=r"a\.mp3: ends after 100 samples although it had 200"):
        clip.read(0, 150)


def test_unusable_files_are_named(tmp_path):
    """Missing, empty and undecodable files, and NaN in a later block, are errors with the path."""
    with pytest.raises(AudioError, match=r"a\.wav: no such audio file"):
        clip_of_file(tmp_path / "a.wav", 24_000)
    (tmp_path / "b.wav").write_bytes(b"nonsense")
    with pytest.raises(AudioError, match=r"b\.wav: cannot be decoded"):
        clip_of_file(tmp_path / "b.wav", 24_000)
    soundfile.write(tmp_path / "c.wav", noise(0), 24_000)
    with pytest.raises(AudioError, match=r"c\.wav: holds no audio"):
        clip_of_file(tmp_path / "c.wav", 24_000)
    broken = noise(60_000)
    broken[50_000] = np.nan
    soundfile.write(tmp_path / "d.wav", broken, 24_000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"d\.wav: sample 50000 is not finite"):
        clip_of_file(tmp_path / "d.wav", 24_000)


def test_ratios_are_exact_for_rates_in_use():
    """Common rates keep their exact ratio; an odd one stays within an eighth of a per mille."""
    for rate in (8000, 11_025, 16_000, 22_050, 32_000, 44_056, 44_100, 47_952, 48_000, 88_200, 96_000, 192_000):
        old, new = resampling_ratio(rate, 24_000)
        assert old * 24_000 == new * rate
    old, new = resampling_ratio(23_997, 24_000)
    assert abs(old / new / (23_997 / 24_000) - 1) < 1.3e-4
    for rate in (0, -24_000, 44_100.5, float("nan"), float("inf")):
        with pytest.raises(AudioError, match="sample rates must be positive whole numbers of Hz, not"):
            resampling_ratio(rate, 24_000)
        with pytest.raises(AudioError, match="sample rates must be positive whole numbers of Hz, not"):
            clip_of_samples(noise(100), rate, 24_000)


def test_a_file_of_another_rate_than_declared_is_refused(tmp_path):
    """Declaring 24 kHz for a file at 44.1 kHz is an error, not a request to resample."""
    soundfile.write(tmp_path / "a.wav", noise(4410), 44_100)
    assert clip_of_file(tmp_path / "a.wav", 24_000, declared_hz=44_100).samples == 2400
    with pytest.raises(AudioError, match=r"a\.wav: the file is at 44100 Hz, not at 24000 Hz as given"):
        clip_of_file(tmp_path / "a.wav", 24_000, declared_hz=24_000)


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_blocks_have_the_bits_of_the_whole(rate):
    """On one thread, as in a build: corpora keep their bytes, whatever the blocks."""
    audio = noise(round(20.3 * rate))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = resample(audio, rate, 24_000)
        pieces = resampled(iter(np.array_split(audio, 11)), rate, 24_000)
        np.testing.assert_array_equal(np.concatenate(list(pieces)), whole)
    finally:
        torch.set_num_threads(threads)


def test_audio_of_every_kind_is_taken(tmp_path):
    """An open file, a pair in either order, a dict, a list and a tensor are the same clip as path and array."""
    audio = noise(24_000)
    path = tmp_path / "a.wav"
    soundfile.write(path, audio, 24_000, subtype="FLOAT")
    expected = clip_of(path, None, to_hz=24_000).read(0, 24_000)
    for given, rate_hz in (
        (str(path), None),
        (io.BytesIO(path.read_bytes()), None),
        ((audio, 24_000), None),
        ((24_000, audio), None),
        ({"array": audio, "sampling_rate": 24_000, "path": None}, None),
        (audio.tolist(), 24_000),
        (torch.from_numpy(audio), 24_000.0),
    ):
        assert torch.equal(clip_of(given, rate_hz, to_hz=24_000).read(0, 24_000), expected)
    with path.open("rb") as file:
        assert torch.equal(clip_of(file, None, to_hz=24_000).read(0, 24_000), expected)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ("https://example.org/a.mp3", "https://example.org/a.mp3 is a url, and audio is read from local files only"),
        ({"path": "a.wav"}, "a dict of audio needs array and sampling_rate, and has path"),
        ((np.zeros(9), np.zeros(9)), r"a tuple of audio must be a pair \(samples, rate\)"),
        (io.StringIO("a"), "audio: must be an open binary file that can seek"),
        (np.zeros(9), "sample_rate_hz is missing"),
        ((np.zeros(9), 1), "audio: a sample rate of 1 Hz is not audio's"),
    ],
)
def test_audio_that_cannot_be_taken_gets_a_sentence(audio, message):
    """What the caller can mend is said, before anything is decoded."""
    with pytest.raises(AudioError, match=message):
        clip_of(audio, None, to_hz=24_000)


def test_integers_are_scaled_by_the_range_of_their_audio():
    """numpy makes int64 of a list: 16-bit samples keep their loudness there, and so do 24 and 32 bits."""
    samples = np.array([-32_768, 0, 16_384])
    for dtype, factor in ((np.int16, 1), (np.int32, 1), (np.int64, 1), (np.int64, 256), (np.int32, 2**16)):
        np.testing.assert_array_equal(mono((samples * factor).astype(dtype)), [-1, 0, 0.5])
    np.testing.assert_array_equal(mono(samples * 2**16), [-1, 0, 0.5])
    np.testing.assert_array_equal(mono(np.zeros(4, np.int64)), np.zeros(4))

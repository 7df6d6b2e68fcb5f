"""Audio is read to its true end, whatever the header says; all streams are read, wrong lengths are named."""

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pupujepa.audio.clip import clip_of_file
from pupujepa.audio.read import AudioError
from pupujepa.audio.source import measure_audio, open_audio, read_audio
from pupujepa.errors import UnreadableError

RATE_HZ = 44_100
VARIABLE = {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.1}
CONSTANT = {"format": "MP3", "bitrate_mode": "CONSTANT", "compression_level": 0.5}
MP3_FRAME_S = 1152 / RATE_HZ


def music(seconds: float, rate_hz: int = RATE_HZ) -> np.ndarray:
    """A sweep with noise, so that no stretch repeats another."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    noise = np.random.default_rng(0).uniform(-0.05, 0.05, len(time_s))
    return (0.3 * np.sin(2 * np.pi * (200 + 50 * time_s) * time_s) + noise).astype(np.float32)


def encoded(audio: np.ndarray, rate_hz: int = RATE_HZ, **settings) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, rate_hz, **settings)
    return buffer.getvalue()


def without_xing(mp3: bytes) -> bytes:
    """Drops the frame that counts the others, as encoders that write to a pipe do."""
    assert b"Xing" in mp3[:200]
    return mp3[mp3.index(b"\xff\xfb", 4) :]


def of_length(flac: bytes, samples: int) -> bytes:
    """The same flac with another number of samples in its header; 0 is unknown."""
    changed = bytearray(flac)
    changed[21] &= 0xF0
    changed[22:26] = samples.to_bytes(4, "big")
    return bytes(changed)


def decoded(content: bytes) -> tuple[np.ndarray, str]:
    """Returns all samples, mixed, and the note."""
    with open_audio(io.BytesIO(content), origin="song") as source:
        blocks = list(source.blocks())
        return np.concatenate(blocks).mean(1), source.note


@pytest.mark.parametrize(
    ("audio", "announced"),
    [
        (np.concatenate([np.zeros(3 * RATE_HZ, np.float32), music(9)]), "longer"),
        (np.concatenate([music(1), 0.01 * music(11)]), "shorter"),
    ],
    ids=["silent start", "loud start"],
)
def test_an_mp3_without_a_count_of_its_frames_is_read_whole(tmp_path, audio, announced, capfd):
    """libmpg123 guesses 3 or 30 s of 12; all readers give 12 s, to a frame, and name both lengths."""
    path = tmp_path / "song.mp3"
    path.write_bytes(without_xing(encoded(audio, **VARIABLE)))
    guess_s = soundfile.info(path).duration
    assert guess_s > 20 if announced == "longer" else guess_s < 6
    clip = clip_of_file(path, 24_000)
    assert 12 <= clip.samples / 24_000 <= 12 + 2 * MP3_FRAME_S
    assert f"song.mp3: announces {guess_s:.2f} s but holds 12.0" in clip.note
    assert measure_audio(path).samples / RATE_HZ == pytest.approx(clip.samples / 24_000, abs=1e-4)
    stretch_S, _ = read_audio(path, start_s=10, duration_s=1)
    assert len(stretch_S) == RATE_HZ
    assert capfd.readouterr().err == ""


def test_a_download_that_broke_off_is_named_with_both_lengths(capfd):
    """A cut mp3, flac or wav gives what is there, and a note; a cut is not filled up with silence or repetition."""
    for settings, least_s in ((VARIABLE, 5.0), ({"format": "FLAC"}, 4.0), ({"format": "WAV"}, 5.3)):
        whole = encoded(music(12), **settings)
        audio_S, note = decoded(whole[: len(whole) * 45 // 100])
        assert least_s < len(audio_S) / RATE_HZ < 6.5
        assert note == f"song: announces 12.00 s but holds {len(audio_S) / RATE_HZ:.2f} s, which are used"
        full_S, note = decoded(whole)
        assert not note
        np.testing.assert_array_equal(audio_S[:-3000], full_S[: len(audio_S) - 3000])
    assert capfd.readouterr().err == ""


def test_an_mp3_whose_count_is_wrong_is_read_whole():
    """Joined mp3 files are longer than the first one's count; a whole file keeps its exact length and has no note."""
    whole = encoded(music(6), **VARIABLE)
    audio_S, note = decoded(whole)
    assert (len(audio_S), note) == (6 * RATE_HZ, "")
    audio_S, note = decoded(whole + encoded(music(3), **VARIABLE))
    assert 9 <= len(audio_S) / RATE_HZ < 9 + 4 * MP3_FRAME_S
    assert note.startswith("song: announces 6.00 s but holds 9.")


def test_junk_in_an_mp3_is_passed(tmp_path, capfd):
    """Junk before, within or after the frames costs no music: 8 kB of zeros, and a start within a frame."""
    whole = encoded(music(6), **CONSTANT)
    full_S, _ = decoded(whole)
    middle = len(whole) // 2
    for content in (whole[:middle] + bytes(8000) + whole[middle:], whole + b"TAG" + bytes(125)):
        audio_S, _ = decoded(content)
        assert abs(len(audio_S) - len(full_S)) <= 3 * 1152
    path = tmp_path / "song.mp3"
    path.write_bytes(whole[100:])
    assert abs(clip_of_file(path, 24_000).samples / 24_000 - 6) < 3 * MP3_FRAME_S
    assert capfd.readouterr().err == ""


def test_a_flac_of_unknown_or_wrong_length_is_read_whole():
    """An encoder that writes to a pipe leaves the length 0; too short a length and a tag at the end lose nothing."""
    whole = encoded(music(6), format="FLAC")
    full_S, _ = decoded(whole)
    for samples, note in ((0, ""), (2 * RATE_HZ, "song: announces 2.00 s but holds 6.00 s, which are used")):
        for tail in (b"", b"TAG" + bytes(125)):
            audio_S, told = decoded(of_length(whole, samples) + tail)
            np.testing.assert_array_equal(audio_S, full_S)
            assert told == note
    with open_audio(io.BytesIO(of_length(whole, 0))) as source:
        [block_SC] = source.blocks(3 * RATE_HZ, 1000)
    np.testing.assert_array_equal(block_SC[:, 0], full_S[3 * RATE_HZ :][:1000])


@pytest.mark.parametrize("settings", [{"format": "OGG"}, {"format": "OGG", "subtype": "OPUS"}, {"format": "FLAC"}])
def test_all_streams_of_joined_files_are_the_music(settings):
    """Two files joined by cat: both are read, each as it is alone; a chained ogg is valid and has no note."""
    first, second = (encoded(music(seconds, 48_000), 48_000, **settings) for seconds in (2, 3))
    audio_S, note = decoded(first + second)
    np.testing.assert_array_equal(audio_S, np.concatenate([decoded(first)[0], decoded(second)[0]]))
    assert bool(note) == (settings["format"] == "FLAC")


def test_streams_of_several_rates_are_refused():
    """A chain whose second stream has another rate cannot be one track."""
    with pytest.raises(AudioError, match="song: its streams have several rates or channels"):
        decoded(encoded(music(2), format="OGG") + encoded(music(2, 48_000), 48_000, format="OGG"))
    with pytest.raises(AudioError, match="song: its streams have several rates or channels"):
        decoded(encoded(music(2), **VARIABLE) + encoded(music(2, 48_000), 48_000, **VARIABLE))


@pytest.mark.parametrize("rate_hz", [1, 2, 999, 1_000_001, 2_147_483_647])
def test_a_rate_that_no_audio_has_is_refused(rate_hz):
    """Before anything is resampled: 1 Hz would be 24,000 times as long."""
    wav = bytearray(encoded(music(1), format="WAV"))
    wav[24:28] = struct.pack("<I", rate_hz)
    with pytest.raises(AudioError, match=f"song: a sample rate of {rate_hz} Hz is not audio's"):
        decoded(bytes(wav))


def test_a_wav_from_a_pipe_announces_nothing():
    """Lengths of 2^32 - 1 bytes, as programs write that cannot go back, are no announcement."""
    wav = bytearray(encoded(music(3), format="WAV"))
    wav[4:8] = wav[40:44] = b"\xff" * 4
    audio_S, note = decoded(bytes(wav))
    assert (len(audio_S), note) == (3 * RATE_HZ, "")


def test_damage_is_an_error_that_says_where():
    """A flac with flipped bits is refused, and an mp3 without a frame is not said to be missing."""
    flac = bytearray(encoded(music(6), format="FLAC"))
    flac[len(flac) // 2] ^= 0x55
    with pytest.raises(AudioError, match=r"song: cannot be decoded beyond [23]\.\d\d s .*; repair or remove it"):
        decoded(bytes(flac))
    with pytest.raises(AudioError, match=r"song: cannot be decoded as audio \(it is empty\)"):
        decoded(b"")
    with pytest.raises(AudioError, match=r"song: cannot be decoded as audio") as caught:
        decoded(encoded(music(1), **VARIABLE)[:30])
    assert "not exist" not in str(caught.value)


def test_a_file_that_cannot_be_read_now_is_not_damaged(tmp_path):
    """An error of the disk, at the first byte or a later one, names the file and the cause, and is no AudioError."""
    with pytest.raises(UnreadableError, match="/proc/self/mem cannot be read now"):
        read_audio(Path("/proc/self/mem"))

    class FailingDisk(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 200_000:
                raise OSError(116, os.strerror(116))
            return super().read(size)

    with (
        open_audio(FailingDisk(encoded(music(6), format="WAV")), origin="song") as source,
        pytest.raises(UnreadableError, match=r"song cannot be read now \(Stale file handle, errno 116\)"),
    ):
        list(source.blocks())
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(AudioError, match=r"pipe\.wav: is a pipe or a device and not an audio file"):
        read_audio(tmp_path / "pipe.wav")

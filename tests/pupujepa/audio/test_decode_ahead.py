"""Decoding ahead: the same samples in the same order for any number of threads, and no deadlock."""

import threading
from contextlib import closing

import numpy as np
import pytest
import soundfile
import torch

from pupujepa.audio.clip import clip_of_file
from pupujepa.audio.decode_ahead import decode_ahead
from pupujepa.audio.read import AudioError
from tests.pupujepa.tones import tone

RATE_HZ = 24_000


@pytest.fixture
def files(tmp_path):
    """Seven files of different lengths, one of them longer than its queue."""
    paths = []
    for i, seconds in enumerate((0.5, 200.0, 0.3, 31.0, 0.2, 60.0, 1.0)):
        paths.append(tmp_path / f"{i}.wav")
        soundfile.write(paths[-1], tone(seconds, 16_000, hz=200 + 50 * i), 16_000)
    return paths


@pytest.mark.parametrize("threads", [1, 3, 9])
def test_samples_are_those_of_the_file(files, threads):
    """Every clip, read in its own steps, equals the directly decoded one."""
    with closing(decode_ahead(files, RATE_HZ, threads=threads)) as clips:
        for path, pending in zip(files, clips, strict=True):
            clip, expected = pending.open(), clip_of_file(path, RATE_HZ)
            assert clip.samples == expected.samples
            for start in range(0, clip.samples, 7 * RATE_HZ):
                stop = min(start + 7 * RATE_HZ, clip.samples)
                assert torch.equal(clip.read(start, stop), expected.read(start, stop))


def test_no_thread_outlives_its_reader(files):
    """A reader that stops within a long file leaves no thread behind."""
    before = set(threading.enumerate())
    with closing(decode_ahead(files, RATE_HZ, threads=3)) as clips:
        next(clips)
        next(clips).open().read(0, 100)
        assert set(threading.enumerate()) - before
    assert not set(threading.enumerate()) - before


def test_a_file_that_is_passed_over_blocks_no_thread(files):
    """With one thread, skipping the long file does not keep the next one waiting."""
    with closing(decode_ahead(files, RATE_HZ, threads=1)) as clips:
        lengths = [pending.open().samples for i, pending in enumerate(clips) if i != 1]
    assert lengths == [clip_of_file(path, RATE_HZ).samples for i, path in enumerate(files) if i != 1]


def test_errors_arrive_with_their_file(files, tmp_path):
    """An error of decoding is raised when its file is opened, and other files are unaffected."""
    (tmp_path / "bad.wav").write_bytes(b"RIFFnonsense")
    broken = np.zeros(40 * 16_000, np.float32)
    broken[-1] = np.nan
    soundfile.write(tmp_path / "late.wav", broken, 16_000, subtype="FLOAT")
    paths = [files[0], tmp_path / "bad.wav", tmp_path / "late.wav", files[2]]
    with closing(decode_ahead(paths, RATE_HZ, threads=2)) as clips:
        assert next(clips).open().samples == RATE_HZ // 2
        bad = next(clips)
        with pytest.raises(AudioError, match=r"bad\.wav: cannot be decoded"):
            bad.open()
        late = next(clips)
        with pytest.raises(AudioError, match=r"late\.wav: sample 639999 is not finite"):
            late.open()
        assert next(clips).open().samples == round(0.3 * RATE_HZ)

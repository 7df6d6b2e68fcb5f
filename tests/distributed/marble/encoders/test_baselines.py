import librosa
import numpy as np
import torch

from distributed.marble.encoders.resolve import CHROMA_FFT, CHROMA_HOP, Chroma, LogMel, pitch_classes
from pupujepa.audio.log_mel import FrontendConfig, log_mel

RATE_HZ = 24_000


def noise(seconds: float, batch: int = 2) -> torch.Tensor:
    return 0.1 * torch.randn(batch, int(seconds * RATE_HZ), generator=torch.Generator().manual_seed(0))


def test_chroma_is_librosas():
    """Pitch-class energies equal librosa's chroma_stft without tuning, to 1e-4."""
    audio_BS = noise(2.0)
    ours = pitch_classes(audio_BS, RATE_HZ)
    for clip, chroma in zip(audio_BS, ours, strict=True):
        theirs = librosa.feature.chroma_stft(
            y=clip.numpy(), sr=RATE_HZ, n_fft=CHROMA_FFT, hop_length=CHROMA_HOP, tuning=0.0
        )
        np.testing.assert_allclose(chroma.numpy(), theirs, atol=1e-4)


def test_chroma_hears_the_pitch_class():
    """A tone of any octave has its energy in its own class (C is 0), and silence has none."""
    time_s = torch.arange(RATE_HZ) / RATE_HZ
    tones = torch.stack([torch.sin(2 * torch.pi * 440.0 * 2.0 ** ((n - 9) / 12) * time_s) for n in (0, 7, 16)])
    classes = Chroma().embed(tones, frame_layers=()).pooled_BLD[:, 0, :12].argmax(-1)
    assert classes.tolist() == [0, 7, 4]
    assert Chroma().embed(torch.zeros(1, RATE_HZ), frame_layers=()).pooled_BLD.abs().max() == 0


def test_log_mel_statistics_and_frames():
    """Clip features are mean and deviation of each band; frames are four spectrogram frames, 25 a second."""
    encoder, audio_BS = LogMel(FrontendConfig()), noise(1.0)
    mel_BTF = log_mel(audio_BS)
    features = encoder.embed(audio_BS, frame_layers=(0,))
    torch.testing.assert_close(features.pooled_BLD[:, 0, :128], mel_BTF.mean(1))
    torch.testing.assert_close(features.pooled_BLD[:, 0, 128:], mel_BTF.std(1))
    assert encoder.frame_rate_hz == 25.0
    assert features.frames_BMTD is not None
    torch.testing.assert_close(features.frames_BMTD[:, 0, 3], mel_BTF[:, 12:16].flatten(1))
    assert encoder.embed(audio_BS, frame_layers=()).frames_BMTD is None

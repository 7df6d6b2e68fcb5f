"""The front end against librosa's mel spectrogram: seconds for the same 60 s of audio.

  python -m benchmarks frontend

Both compute STFT, mel bands and logarithm of six 10 s clips on one thread; ours as one batch, librosa clip by clip,
the intended use of each.
"""

import librosa
import numpy as np
import torch

from benchmarks.alternate import HEADER, alternate, machine
from pupujepa.audio.log_mel import FrontendConfig, log_mel

PREDICTION = "1.5x: the FFTs are the same work; batching saves Python and librosa's complex128 intermediates."


def main() -> None:
    """Prints the comparison as Markdown."""
    torch.set_num_threads(1)
    config = FrontendConfig()
    rng = np.random.default_rng(0)
    audio_BS = rng.standard_normal((6, 10 * config.sample_rate_hz)).astype(np.float32) * 0.1
    tensor_BS = torch.from_numpy(audio_BS)
    compared = alternate(lambda: log_mel(tensor_BS), lambda: [librosa_log_mel(clip, config) for clip in audio_BS])
    print(f"{machine()}\n\nprediction: {PREDICTION}\n\n{HEADER}\n{compared.row('log-mel of 60 s of audio, librosa')}")


def librosa_log_mel(audio_S: np.ndarray, config: FrontendConfig) -> np.ndarray:
    """Computes the same features with librosa: [T, mel_bands]."""
    padded = np.pad(audio_S, config.padding_samples, mode="reflect")
    spectrum = librosa.stft(padded, n_fft=config.n_fft, hop_length=config.hop_samples, center=False)
    mel = librosa.feature.melspectrogram(
        S=np.sqrt(np.abs(spectrum) ** 2 + config.magnitude_epsilon),
        sr=config.sample_rate_hz,
        n_mels=config.mel_bands,
        fmin=config.fmin_hz,
        fmax=config.fmax_hz,
    )
    return np.log(np.maximum(mel, config.floor)).T

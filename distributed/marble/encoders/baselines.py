"""Baselines without learning, which a trained encoder must beat: spectrogram statistics and chroma.

Legend: B slices, S samples, F bands, C pitch classes, T frames.
"""

from collections.abc import Sequence
from functools import lru_cache

import librosa
import torch
from torch import Tensor

from distributed.marble.encoders.readout import SliceFeatures
from pupujepa.audio.log_mel import FrontendConfig, frontend_digest, log_mel

STACKED_FRAMES = 4
CHROMA_FFT = 8192
CHROMA_HOP = 2048


class LogMel:
    """Mean and standard deviation over time of each mel band.

    Frames are four spectrogram frames side by side.
    """

    name = "log_mel"
    layer_names = ("log_mel",)
    only_tasks: frozenset[str] | None = None

    def __init__(self, config: FrontendConfig):
        self._config = config
        self.front_end = frontend_digest(config)
        self.digest = f"log_mel/1/{self.front_end}"
        self.sample_rate_hz = config.sample_rate_hz
        self.frame_rate_hz = config.sample_rate_hz / config.hop_samples / STACKED_FRAMES

    @torch.no_grad()
    def embed(self, audio_BS: Tensor, *, frame_layers: Sequence[int]) -> SliceFeatures:
        """Returns [B, 1, 2F] and, with `frame_layers`, [B, 1, T // 4, 4F]."""
        mel_BTF = log_mel(audio_BS, self._config)
        pooled_BLD = torch.cat([mel_BTF.mean(dim=1), mel_BTF.std(dim=1)], dim=-1).unsqueeze(1)
        if not frame_layers:
            return SliceFeatures(pooled_BLD)
        steps = mel_BTF.shape[1] // STACKED_FRAMES  # frames after the last whole step are dropped
        stacked = mel_BTF[:, : steps * STACKED_FRAMES].reshape(len(mel_BTF), 1, steps, -1)
        return SliceFeatures(pooled_BLD, stacked)


class Chroma:
    """Mean and standard deviation over time of twelve pitch-class energies, for key.

    It is librosa's `chroma_stft` without the tuning estimate, with frames normalised to a maximum of 1, for a batch at
    once. A constant-Q transform would take longer than all probes together.
    """

    name = "chroma"
    layer_names = ("chroma",)
    only_tasks: frozenset[str] | None = frozenset({"key", "GS", "HookTheoryKey"})
    frame_rate_hz: float | None = None
    sample_rate_hz = 24_000
    front_end = f"stft {CHROMA_FFT}/{CHROMA_HOP} at {sample_rate_hz} Hz"
    digest = f"chroma/1/{CHROMA_FFT}/{CHROMA_HOP}/{sample_rate_hz}"

    @torch.no_grad()
    def embed(self, audio_BS: Tensor, *, frame_layers: Sequence[int]) -> SliceFeatures:
        """Returns [B, 1, 2C]."""
        if frame_layers:
            raise ValueError("chroma has clip-level features only")
        chroma_BCT = pitch_classes(audio_BS, self.sample_rate_hz)
        return SliceFeatures(torch.cat([chroma_BCT.mean(dim=-1), chroma_BCT.std(dim=-1)], dim=-1).unsqueeze(1))


def pitch_classes(audio_BS: Tensor, sample_rate_hz: int) -> Tensor:
    """Returns chroma energies [B, 12, T], with a maximum of 1 in each frame."""
    spectrum = torch.stft(
        audio_BS.float(),
        CHROMA_FFT,
        hop_length=CHROMA_HOP,
        window=torch.hann_window(CHROMA_FFT, device=audio_BS.device),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    energy_BCT = _filter_bank(sample_rate_hz).to(audio_BS.device) @ spectrum.abs().square()
    largest_B1T = energy_BCT.amax(dim=1, keepdim=True)
    # silent frames are divided by 1 and stay silent
    return energy_BCT / torch.where(largest_B1T > torch.finfo(torch.float32).tiny, largest_B1T, 1.0)


@lru_cache(maxsize=2)
def _filter_bank(sample_rate_hz: int) -> Tensor:
    return torch.from_numpy(librosa.filters.chroma(sr=sample_rate_hz, n_fft=CHROMA_FFT, tuning=0.0)).float()

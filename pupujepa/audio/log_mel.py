"""Front end: from audio at 24 kHz to the natural-log mel spectrogram of the released weights.

Shards and caches hold the log-mel *before* mean/std normalisation, because those statistics belong to a corpus or a
model, not to the front end.

Shapes: B batch, S samples of audio, T frames, F mel bands; of the filter bank K frequency bins, E edges of bands.
"""

import hashlib
import json
import logging
import math
from dataclasses import asdict, dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pupujepa.errors import UserError

# Training statistics of the released checkpoints (`preprocess` of the model card's code).
RELEASED_MEAN = -4.089994845986366
RELEASED_STD = 2.0242277159094813
LOG_FLOOR = math.log(1e-5)

# Slaney's mel scale: linear up to 1 kHz, then 27 mel for each factor of 6.4
_HZ_PER_MEL = 200 / 3
_BEND_HZ = 1000.0
_BEND_MEL = _BEND_HZ / _HZ_PER_MEL
_LOG_HZ_PER_MEL = math.log(6.4) / 27

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrontendConfig:
    """Parameters of the log-mel spectrogram; the defaults are `preprocess` of the released args.json.

    floor: smallest mel magnitude, taken before the logarithm.
    magnitude_epsilon: added to re^2 + im^2 under the root.

    Raises:
        UserError: a window, a hop or a mel range that does not fit the other values.
    """

    sample_rate_hz: int = 24_000
    n_fft: int = 1024
    hop_samples: int = 240
    window_samples: int = 1024
    mel_bands: int = 128
    fmin_hz: float = 0.0
    fmax_hz: float = 12_000.0
    floor: float = 1e-5
    magnitude_epsilon: float = 1e-9

    def __post_init__(self) -> None:
        if not 0 < self.hop_samples <= self.n_fft or (self.n_fft - self.hop_samples) % 2:
            raise UserError(
                f"hop_samples={self.hop_samples} must be in 1..n_fft={self.n_fft} and differ from it by an even "
                "number, for equal padding on both sides"
            )
        if not 0 < self.window_samples <= self.n_fft:
            raise UserError(f"window_samples={self.window_samples} must be in 1..n_fft={self.n_fft}")
        if not 0 <= self.fmin_hz < self.fmax_hz <= self.sample_rate_hz / 2:
            raise UserError(
                f"mel range {self.fmin_hz}-{self.fmax_hz} Hz does not fit below {self.sample_rate_hz / 2} Hz, half the "
                "sample rate; lower fmax_hz"
            )

    @property
    def padding_samples(self) -> int:
        """Reflected samples on each side; with them S samples give floor(S / hop) frames."""
        return (self.n_fft - self.hop_samples) // 2

    @property
    def frames_per_s(self) -> float:
        """Frames per second of audio."""
        return self.sample_rate_hz / self.hop_samples


def log_mel(audio_BS: Tensor, config: FrontendConfig = FrontendConfig()) -> Tensor:
    """Computes the float32 log-mel spectrogram [B, floor(S / hop), mel_bands], not normalised.

    Args:
        audio_BS: mono audio at `config.sample_rate_hz`, full scale 1.

    Raises:
        UserError: the audio is shorter than the reflected padding.
    """
    return log_mel_slice(audio_BS, 0, num_frames=audio_BS.shape[-1] // config.hop_samples, config=config)


def log_mel_slice(
    audio_BS: Tensor,
    first_frame: int,
    *,
    num_frames: int,
    config: FrontendConfig = FrontendConfig(),
) -> Tensor:
    """Computes `num_frames` frames of `log_mel(audio_BS)` from `first_frame` on, and no others.

    Returns:
        [B, num_frames, mel_bands], equal to the same slice of the whole spectrogram.

    Raises:
        UserError: audio too short for the reflection, or frames beyond its end.
    """
    samples = audio_BS.shape[-1]
    if samples <= config.padding_samples:
        raise UserError(
            f"audio of {samples} samples is too short for the front end, which reflects {config.padding_samples} "
            f"samples at each end; give at least {config.padding_samples + 1} samples "
            f"({1000 * (config.padding_samples + 1) / config.sample_rate_hz:.1f} ms)"
        )
    if not 0 <= first_frame <= first_frame + num_frames <= samples // config.hop_samples:
        raise UserError(
            f"frames {first_frame}..{first_frame + num_frames} are not within the audio's "
            f"{samples // config.hop_samples} frames"
        )
    start, stop = frame_span(first_frame, num_frames, config)
    return log_mel_of_span(_reflected(audio_BS.float(), start, stop), config)


def frame_span(first_frame: int, num_frames: int, config: FrontendConfig) -> tuple[int, int]:
    """Returns the samples [start, stop) of frames, which may reach beyond the ends of the audio."""
    start = first_frame * config.hop_samples - config.padding_samples
    return start, start + (num_frames - 1) * config.hop_samples + config.n_fft


def log_mel_of_span(padded_BS: Tensor, config: FrontendConfig) -> Tensor:
    """Computes frames [B, T, F] from the samples of their `frame_span`, with the ends already reflected."""
    spectrum = torch.stft(
        padded_BS,
        n_fft=config.n_fft,
        hop_length=config.hop_samples,
        win_length=config.window_samples,
        window=torch.hann_window(config.window_samples, device=padded_BS.device),
        center=False,
        return_complex=True,
    )  # [B, n_fft / 2 + 1, T]
    magnitude = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + config.magnitude_epsilon)
    mel = magnitude.transpose(-1, -2) @ mel_filter_bank(config).to(padded_BS.device)
    return mel.clamp_min(config.floor).log()


def normalise(log_mel_BTF: Tensor, mean: float, std: float) -> Tensor:
    """Maps a log-mel spectrogram [B, T, F] (or any shape) to the model's input."""
    return (log_mel_BTF - mean) / (std + 1e-8)  # the 1e-8 of the released code


def frontend_digest(config: FrontendConfig) -> str:
    """Returns the SHA-256 hex digest that identifies a front end in manifests and feature caches."""
    return hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=8)
def mel_filter_bank(config: FrontendConfig) -> Tensor:
    """Returns the Slaney-normalised mel filter bank [n_fft / 2 + 1, mel_bands]; do not modify it.

    Band m is a triangle over frequency from edge m to edge m + 2 with its peak at edge m + 1. The edges are evenly
    spaced in mel, and the height 2 / (edge m+2 - edge m) gives all bands the same area. Source: M. Slaney, "Auditory
    Toolbox" (1998), as in librosa's default and torchaudio's `slaney`; the bits equal torchaudio's.
    """
    with torch.inference_mode(False):  # a cached inference tensor would break a later training step
        # torchaudio's integer division, half a hertz off at an odd rate
        bin_K = torch.linspace(0, config.sample_rate_hz // 2, config.n_fft // 2 + 1, dtype=torch.float32, device="cpu")
        lowest, highest = _mel_of_hz(config.fmin_hz), _mel_of_hz(config.fmax_hz)
        edge_E = _hz_of_mel(torch.linspace(lowest, highest, config.mel_bands + 2, dtype=torch.float32, device="cpu"))
        width_E = edge_E.diff()
        distance_KE = edge_E - bin_K[:, None]
        rising_KF = -distance_KE[:, :-2] / width_E[:-1]
        falling_KF = distance_KE[:, 2:] / width_E[1:]
        bank_KF = torch.minimum(rising_KF, falling_KF).clamp_min(0) * (2 / (edge_E[2:] - edge_E[:-2]))
    if empty := int((bank_KF.amax(0) == 0).sum()):
        _LOG.warning(
            "%d of %d mel bands contain no bin of n_fft=%d and stay silent; use fewer bands or a larger n_fft",
            empty,
            config.mel_bands,
            config.n_fft,
        )
    return bank_KF


def _mel_of_hz(hz: float) -> float:
    return hz / _HZ_PER_MEL if hz < _BEND_HZ else _BEND_MEL + math.log(hz / _BEND_HZ) / _LOG_HZ_PER_MEL


def _hz_of_mel(mel_E: Tensor) -> Tensor:
    """Returns frequencies [E] of ascending mel values [E]."""
    linear = int((mel_E < _BEND_MEL).sum())
    logarithmic_hz = _BEND_HZ * torch.exp(_LOG_HZ_PER_MEL * (mel_E[linear:] - _BEND_MEL))
    return torch.cat([mel_E[:linear] * _HZ_PER_MEL, logarithmic_hz])


def _reflected(audio_BS: Tensor, start: int, stop: int) -> Tensor:
    """Returns audio[start:stop], mirrored at the first and the last sample."""
    samples = audio_BS.shape[-1]
    if start >= 0 and stop <= samples:
        return audio_BS[..., start:stop]
    index = torch.arange(start, stop, device=audio_BS.device).abs()
    return audio_BS[..., torch.where(index >= samples, 2 * (samples - 1) - index, index)]

"""Regions for `attend`: a crop of a file, a time-frequency box in it, the attention from there.

Shapes: S samples, T frames, F mel bands, L predictor blocks, H heads; a map is [L, H, steps, bands] of patches.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pupujepa.audio.log_mel import FrontendConfig, log_mel, mel_filter_bank, normalise
from pupujepa.audio.read import AudioError, resample
from pupujepa.audio.source import read_audio
from pupujepa.errors import UserError
from pupujepa.model.model import PupuJEPA


@dataclass(frozen=True)
class AudioCrop:
    """A crop of a file, and the physical extent of its patches.

    mel_TF: normalised log-mel, whole patches only.
    start_s: start of the crop in the file.
    band_edges_hz: frequencies between the rows of patches, ascending, [bands + 1].
    """

    name: str
    mel_TF: torch.Tensor
    start_s: float
    step_s: float
    frames_per_step: int
    band_edges_hz: NDArray[np.float64]

    @property
    def steps(self) -> int:
        """Columns of patches."""
        return len(self.mel_TF) // self.frames_per_step

    @property
    def bands(self) -> int:
        """Rows of patches."""
        return len(self.band_edges_hz) - 1

    @property
    def duration_s(self) -> float:
        """Length of the crop."""
        return self.steps * self.step_s


@dataclass(frozen=True)
class Box:
    """A rectangle of patches: `steps` columns from `step` on, `bands` rows from `band` on."""

    step: int
    steps: int
    band: int
    bands: int

    def mask(self, grid: tuple[int, int]) -> NDArray[np.bool_]:
        """Returns the boolean grid [steps, bands] of the box."""
        inside = np.zeros(grid, bool)
        inside[self.step : self.step + self.steps, self.band : self.band + self.bands] = True
        return inside

    def describe(self, crop: AudioCrop) -> str:
        """Returns the box in seconds of the file and hertz."""
        start_s = crop.start_s + self.step * crop.step_s
        low, high = crop.band_edges_hz[self.band], crop.band_edges_hz[self.band + self.bands]
        return f"{start_s:.2f} to {start_s + self.steps * crop.step_s:.2f} s, {low:.0f} to {high:.0f} Hz"


@dataclass(frozen=True)
class Look:
    """Attention from a box: maps [L, H, steps, bands] that sum to one and are zero inside the box."""

    box: Box
    maps_LHTF: NDArray[np.float64]

    def times_even(self) -> NDArray[np.float64]:
        """Returns the maps [L, H, steps, bands] in multiples of an even spread outside the box."""
        return self.maps_LHTF * (self.maps_LHTF.shape[2] * self.maps_LHTF.shape[3] - self.box.steps * self.box.bands)


def read_crop(model: PupuJEPA, path: Path, *, start_s: float) -> AudioCrop:
    """Reads up to one training crop of a file.

    Raises:
        AudioError: unreadable, or shorter than two patches.
    """
    config, frontend = model.config, model.frontend
    audio, rate = read_audio(path, start_s=start_s, duration_s=config.crop_frames / frontend.frames_per_s)
    audio_S = torch.from_numpy(resample(audio, rate, frontend.sample_rate_hz))
    frames = min(len(audio_S) // frontend.hop_samples, config.crop_frames)
    frames -= frames % config.patch_frames  # whole patches only: padding would be attended to
    if frames < 2 * config.patch_frames:
        raise AudioError(f"{path}: less than two patches of audio from {start_s:g} s on; start earlier")
    mel_TF = log_mel(audio_S[None], frontend)[0, :frames]
    return AudioCrop(
        # a name that is not UTF-8 can be neither drawn nor written into a page
        path.name.encode(errors="replace").decode(),
        normalise(mel_TF, config.mel_mean, config.mel_std),
        start_s=start_s,
        step_s=config.patch_frames / frontend.frames_per_s,
        frames_per_step=config.patch_frames,
        band_edges_hz=mel_edges_hz(frontend)[:: config.patch_bands],
    )


def box_in(
    crop: AudioCrop, *, time_s: list[float] | None, frequency_hz: list[float] | None, rows: list[int] | None = None
) -> Box:
    """Returns the box of all patches that a time span and a frequency range touch.

    Args:
        time_s: start and end, seconds in the crop; None means its middle tenth.
        frequency_hz: lowest and highest; None means all.
        rows: first and last row of patches, in place of a frequency range.

    Raises:
        UserError: a span or range that is empty or outside the crop.
    """
    start_s, stop_s = time_s if time_s else (0.45 * crop.duration_s, 0.55 * crop.duration_s)
    # 1e-9 keeps rounding errors from adding a patch at a boundary
    first, last = int(np.floor(start_s / crop.step_s + 1e-9)), int(np.ceil(stop_s / crop.step_s - 1e-9))
    if not 0 <= first < last <= crop.steps:
        raise UserError(
            f"region {start_s:g}-{stop_s:g} s is not within the crop of 0-{crop.duration_s:g} s; count seconds from "
            f"the start of the crop, which is at {crop.start_s:g} s of the file"
        )
    if rows:
        low, high = rows
        if not 0 <= low <= high < crop.bands:
            raise UserError(f"bands {low} to {high} are not within 0 to {crop.bands - 1}")
        return Box(first, last - first, low, high - low + 1)
    edges_hz = crop.band_edges_hz
    low_hz, high_hz = frequency_hz if frequency_hz else (edges_hz[0], edges_hz[-1])
    if not edges_hz[0] <= low_hz < high_hz <= edges_hz[-1]:
        raise UserError(
            f"region {low_hz:g}-{high_hz:g} Hz is not within the spectrogram of {edges_hz[0]:g}-{edges_hz[-1]:g} Hz"
        )
    low = int(np.searchsorted(edges_hz, low_hz, side="right")) - 1
    high = int(np.searchsorted(edges_hz, high_hz, side="left"))
    return Box(first, last - first, low, high - low)


def boxes_over(crop: AudioCrop, columns: int, rows: int) -> list[Box]:
    """Cuts the crop into columns x rows boxes, in columns from low frequencies; the last are larger.

    Raises:
        UserError: more columns or rows than patches.
    """
    # a single box would cover the whole crop, with no patch to attend to
    if not (1 <= columns <= crop.steps and 1 <= rows <= crop.bands) or columns * rows == 1:
        raise UserError(f"--regions {columns}x{rows} does not fit the crop's {crop.steps} x {crop.bands} patches")
    across = np.arange(columns + 1) * (crop.steps // columns)
    up = np.arange(rows + 1) * (crop.bands // rows)
    across[-1], up[-1] = crop.steps, crop.bands  # the last boxes take the remainder of the division
    return [Box(int(t0), int(t1 - t0), int(f0), int(f1 - f0)) for t0, t1 in pairwise(across) for f0, f1 in pairwise(up)]


def mel_edges_hz(frontend: FrontendConfig) -> NDArray[np.float64]:
    """Returns the frequencies between mel bands, [F + 1]: halfway between their filters' centres of mass.

    The first and the last are the ends of the front end's range.
    """
    bank = mel_filter_bank(frontend).double()  # [n_fft / 2 + 1, F]
    frequencies = torch.linspace(0, frontend.sample_rate_hz / 2, len(bank), dtype=torch.float64)
    centres = ((bank * frequencies[:, None]).sum(0) / bank.sum(0).clamp_min(1e-12)).numpy()
    return np.concatenate([[frontend.fmin_hz], (centres[1:] + centres[:-1]) / 2, [frontend.fmax_hz]])

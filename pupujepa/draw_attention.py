"""Draw where the predictor looks when it fills in a masked region: spectrogram, mask and attention as one PNG.

  python -m pupujepa attend runs/demo/export song.flac --out attention.png
  python -m pupujepa attend runs/demo/export song.flac --start 30 --time 1.0 1.4 --bands 0 3 --out bass.png

The region is masked for certain, other patches at random up to the mask ratio of training. Bright patches are those
whose content the predictor uses to fill in the region, averaged over its blocks and heads; hidden patches take part
as mask tokens. Needs matplotlib: pip install 'pupujepa[eval]'.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pupujepa.attention import attention_map, mask_around_region, predictor_attention
from pupujepa.audio import AudioError, read_audio, resample
from pupujepa.errors import UserError
from pupujepa.frontend import log_mel, mel_filter_bank, normalise
from pupujepa.masks import Mask
from pupujepa.model import PupuJEPA
from pupujepa.randomness import generator
from pupujepa.weights import load

_OUTLINE = "deepskyblue"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("weights", help="a folder of weights, or a hub id")
    parser.add_argument("audio", type=Path, help="an audio file")
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write")
    parser.add_argument(
        "--start", type=float, default=0.0, metavar="S", help="where in the file the crop begins, seconds"
    )
    parser.add_argument(
        "--time",
        type=float,
        nargs=2,
        metavar=("FROM", "TO"),
        help="region, seconds in the crop (default: its middle tenth)",
    )
    parser.add_argument(
        "--bands", type=int, nargs=2, metavar=("LOW", "HIGH"), help="region, first and last band (default: all)"
    )
    parser.add_argument("--ratio", type=float, default=0.8, help="share of patches that is masked")
    parser.add_argument("--seed", type=int, default=0, help="of the random part of the mask")


def run(args: argparse.Namespace) -> int:
    """Computes the attention and writes the picture."""
    model = load(args.weights)
    mel_TF = read_crop(model, args.audio, start_s=args.start)
    steps = len(mel_TF) // model.config.patch_frames
    region = region_of(model, steps, time_s=args.time, bands=args.bands)
    mask = mask_around_region(generator(args.seed, "attend"), region, ratio=args.ratio)
    attention = predictor_attention(model, mel_TF, mask, region=region)
    picture = AttentionPicture(model, mel_TF, mask, region, attention_map(attention).numpy())
    picture.save(args.out)
    sys.stderr.write(f"{int(region.sum())} patches looked from; picture written to {args.out}\n")
    return 0


def read_crop(model: PupuJEPA, path: Path, *, start_s: float) -> torch.Tensor:
    """Returns a normalised spectrogram [T, F] of up to one training crop, whole patches only.

    Raises:
        AudioError: unreadable, or shorter than two patches.
    """
    config, frontend = model.config, model.frontend
    audio, rate = read_audio(path, start_s=start_s, duration_s=config.crop_frames / frontend.frames_per_s)
    audio_S = torch.from_numpy(resample(audio, rate, frontend.sample_rate_hz))
    frames = min(len(audio_S) // frontend.hop_samples, config.crop_frames)
    frames -= frames % config.patch_frames
    if frames < 2 * config.patch_frames:
        raise AudioError(f"{path}: less than two patches of audio from {start_s:g} s on; start earlier")
    mel_TF = log_mel(audio_S[None], frontend)[0, :frames]
    return normalise(mel_TF, config.mel_mean, config.mel_std)


def region_of(model: PupuJEPA, steps: int, *, time_s: list[float] | None, bands: list[int] | None) -> NDArray[np.bool_]:
    """Returns the region as boolean [steps, bands]: every patch that the span of time touches, in bands LOW to HIGH.

    Raises:
        UserError: a span that lies outside the crop.
    """
    step_s = model.config.patch_frames / model.frontend.frames_per_s
    start_s, stop_s = time_s if time_s else (0.45 * steps * step_s, 0.55 * steps * step_s)
    low, high = bands if bands else (0, model.config.grid_bands - 1)
    first, last = int(np.floor(start_s / step_s + 1e-9)), int(np.ceil(stop_s / step_s - 1e-9))
    if not 0 <= first < last <= steps:
        raise UserError(f"region {start_s:g}-{stop_s:g} s does not lie in the crop of 0-{steps * step_s:g} s")
    if not 0 <= low <= high < model.config.grid_bands:
        raise UserError(f"bands {low} to {high} do not lie in 0 to {model.config.grid_bands - 1}")
    region = np.zeros((steps, model.config.grid_bands), dtype=bool)
    region[first:last, low : high + 1] = True
    return region


def band_centres_hz(model: PupuJEPA) -> NDArray[np.float64]:
    """Returns the centre frequency of each mel band, as its filter's centre of mass."""
    bank = mel_filter_bank(model.frontend).double()  # [n_fft / 2 + 1, F]
    frequencies = torch.linspace(0, model.frontend.sample_rate_hz / 2, len(bank), dtype=torch.float64)
    return ((bank * frequencies[:, None]).sum(0) / bank.sum(0).clamp_min(1e-12)).numpy()


@dataclass(frozen=True)
class AttentionPicture:
    """Spectrogram, mask and attention of one region, drawn one below the other."""

    model: PupuJEPA
    mel_TF: torch.Tensor
    mask: Mask
    region: NDArray[np.bool_]
    attention: NDArray[np.float32]

    def save(self, path: Path) -> None:
        """Writes the picture; the format follows the suffix.

        Raises:
            UserError: matplotlib is not installed.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise UserError("drawing needs matplotlib, which is not installed: pip install 'pupujepa[eval]'") from error
        figure = Figure(figsize=(11, 8), layout="constrained")
        FigureCanvasAgg(figure)
        top, middle, bottom = figure.subplots(3, 1, sharex=True, sharey=True)
        steps, bands = self.region.shape
        visible = np.zeros(steps * bands, dtype=bool)
        visible[self.mask.context] = True
        mel = self.mel_TF.numpy()
        self._show(top, mel, "log-mel spectrogram; the region is outlined", cmap="magma")
        hidden = np.repeat(
            np.repeat(~visible.reshape(steps, bands), mel.shape[0] // steps, 0), mel.shape[1] // bands, 1
        )
        self._show(middle, np.where(hidden, np.nan, mel), "what the encoder sees", cmap="magma")
        ratio = self.attention * np.isfinite(self.attention).sum()
        image = self._show(bottom, ratio, "attention of the region's mask tokens (1 = uniform)", cmap="viridis")
        figure.colorbar(image, ax=bottom, pad=0.01)
        bottom.set_xlabel("time (s)")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)

    def _show(self, axes: Any, image_TF: NDArray, title: str, *, cmap: str) -> Any:
        """Draws an image over the crop's time and mel bands, with the region's outline."""
        steps, bands = self.region.shape
        step_s = self.model.config.patch_frames / self.model.frontend.frames_per_s
        shown = axes.imshow(
            image_TF.T,
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            cmap=cmap,
            extent=(0, steps * step_s, 0, bands),
        )
        axes.set_facecolor("0.8")
        edged = np.pad(self.region.astype(np.int8), 1)
        step, band = np.nonzero(np.diff(edged, axis=0)[:, 1:-1])
        axes.vlines(step * step_s, band, band + 1, colors=_OUTLINE)
        step, band = np.nonzero(np.diff(edged, axis=1)[1:-1])
        axes.hlines(band, step * step_s, (step + 1) * step_s, colors=_OUTLINE)
        centres = band_centres_hz(self.model).reshape(bands, -1).mean(1)
        axes.set_yticks(np.arange(bands) + 0.5, [f"{hz:.0f} Hz" for hz in centres])
        axes.set_title(title, loc="left", fontsize=10)
        return shown

"""Spectrograms, masks and heat maps as small WebP images inside inline SVG.

The page embeds each crop once, as a symbol, and draws it many times with `<use>`. Axes, veils and beat marks are
vectors over it, so they follow the page's theme and stay sharp.

Shapes: T frames, F mel bands; a grid is [steps, bands] of patches, time first.
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape

import librosa
import matplotlib
import numpy as np
from PIL import Image

from distributed.drawing.wording import EN_DASH, fixed

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 380, 34, 6, 8, 20
PLOT_HEIGHT = 128
HEIGHT = TOP + PLOT_HEIGHT + BOTTOM
PLOT_WIDTH = WIDTH - LEFT - RIGHT


@dataclass(frozen=True)
class Canvas:
    """The ground of a crop's pictures: the symbol's id and the physical extent of the axes."""

    symbol: str
    duration_s: float
    mel_bands: int
    fmin_hz: float
    fmax_hz: float

    def x(self, time_s: float) -> float:
        """Returns the horizontal position of a time."""
        return LEFT + PLOT_WIDTH * time_s / self.duration_s

    def y(self, frequency_hz: float) -> float:
        """Returns the vertical position of a frequency on the mel axis."""
        centres_hz = librosa.mel_frequencies(n_mels=self.mel_bands + 2, fmin=self.fmin_hz, fmax=self.fmax_hz)
        band = float(np.interp(frequency_hz, centres_hz, np.arange(-1, self.mel_bands + 1))) + 0.5
        return TOP + PLOT_HEIGHT * (1 - min(max(band / self.mel_bands, 0), 1))

    def band_edges(self, band: int, count: int, bands: int) -> tuple[float, float]:
        """Returns the lowest and highest frequency of `count` rows of patches out of `bands`, in Hz."""
        edges_hz = librosa.mel_frequencies(n_mels=self.mel_bands + 1, fmin=self.fmin_hz, fmax=self.fmax_hz)
        rows = self.mel_bands // bands
        return float(edges_hz[band * rows]), float(edges_hz[(band + count) * rows])


@cache
def palette(name: str) -> np.ndarray:
    """Returns a colour map of matplotlib as [256, 3] uint8; use perceptually uniform ones."""
    return (matplotlib.colormaps[name](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def colour(values: np.ndarray, lo: float, hi: float, *, name: str = "magma") -> np.ndarray:
    """Returns [T, F] values, clipped to [lo, hi], as [F, T, 3] uint8 with low frequencies at the bottom."""
    codes = np.clip((values - lo) / max(hi - lo, 1e-12) * 255, 0, 255).astype(np.uint8)
    return palette(name)[codes.T[::-1]]


def image_uri(pixels: np.ndarray, *, lossless: bool = False) -> str:
    """Returns [height, width, 3 or 4] uint8 as a WebP data URI."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "WEBP", quality=84, method=6, lossless=lossless)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def symbol(identity: str, uri: str) -> str:
    """Returns the definition of an image that `picture` refers to by its id."""
    return (
        f'<symbol id="{escape(identity, quote=True)}" viewBox="0 0 100 100" preserveAspectRatio="none">'
        f'<image href="{uri}" width="100" height="100" preserveAspectRatio="none"/></symbol>'
    )


def picture(canvas: Canvas, description: str, *, layers: Sequence[str] = (), grey: bool = False) -> str:
    """Draws a crop with time and frequency axes, and `layers` of SVG over it.

    Args:
        description: the alternative text.
        grey: draw the spectrogram in greys, as ground for a heat map.
    """
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description, quote=True)}">'
        f"{_ground(canvas, grey=grey)}{''.join(layers)}{axes(canvas)}</svg>"
    )


def emblem(canvas: Canvas, layers: Sequence[str], *, grey: bool = False, label: str = "") -> str:
    """Draws a crop and its layers small, without axes; screen readers skip it without a label."""
    name = f'role="img" aria-label="{escape(label, quote=True)}"' if label else 'aria-hidden="true"'
    return (
        f'<svg viewBox="{LEFT} {TOP} {PLOT_WIDTH} {PLOT_HEIGHT}" preserveAspectRatio="none" {name}>'
        f"{_ground(canvas, grey=grey)}{''.join(layers)}</svg>"
    )


def axes(canvas: Canvas) -> str:
    """Draws seconds below and kilohertz at the left."""
    seconds = [t for t in _round_seconds(canvas.duration_s) if canvas.x(t) < WIDTH - 26]
    below = (
        "".join(f'<text class="tick middle" x="{canvas.x(t):.1f}" y="{HEIGHT - 5}">{t:g}</text>' for t in seconds)
        + f'<text class="tick end" x="{WIDTH - RIGHT}" y="{HEIGHT - 5}">s</text>'
    )
    left = (
        "".join(
            f'<text class="tick end" x="{LEFT - 5}" y="{canvas.y(f) + 4:.1f}">{f / 1000:g}</text>'
            for f in (500.0, 1000.0, 2000.0, 4000.0, 8000.0)
            if canvas.fmin_hz < f < canvas.fmax_hz
        )
        + f'<text class="tick end" x="{LEFT - 5}" y="{TOP + 6}">kHz</text>'
    )
    return below + left


def veil(targets: np.ndarray) -> str:
    """Draws the hidden patches of a [steps, bands] boolean grid as one translucent path."""
    steps, bands = targets.shape
    width, height = PLOT_WIDTH / steps, PLOT_HEIGHT / bands
    path = []
    for band in range(bands):
        # starts and ends of the runs of hidden patches in this row, in turn
        edges = np.flatnonzero(np.diff(np.concatenate([[0], targets[:, band].astype(np.int8), [0]])))
        top = TOP + PLOT_HEIGHT - (band + 1) * height
        path += [
            f"M{LEFT + a * width:.1f} {top:.1f}h{(b - a) * width:.1f}v{height:.1f}h{-(b - a) * width:.1f}z"
            for a, b in zip(edges[::2], edges[1::2], strict=True)
        ]
    return f'<path class="veil" d="{"".join(path)}"/>'


def outline(region: tuple[int, int, int, int], grid: tuple[int, ...]) -> str:
    """Draws a frame around the region (first step, steps, first band, bands) of a grid (steps, bands)."""
    step, steps, band, bands = region
    width, height = PLOT_WIDTH / grid[0], PLOT_HEIGHT / grid[1]
    return (
        f'<rect class="region" x="{LEFT + step * width:.1f}" y="{TOP + PLOT_HEIGHT - (band + bands) * height:.1f}"'
        f' width="{steps * width:.1f}" height="{bands * height:.1f}"/>'
    )


def heat(grid: np.ndarray) -> str:
    """Draws a [steps, bands] map in [0, 1] as a translucent glow; NaN stays clear."""
    return (
        f'<image class="heat" href="{image_uri(glow(grid), lossless=True)}" x="{LEFT}" y="{TOP}"'
        f' width="{PLOT_WIDTH}" height="{PLOT_HEIGHT}" preserveAspectRatio="none"/>'
    )


def glow(grid: np.ndarray) -> np.ndarray:
    """Returns [bands, steps, 4] uint8: amber with the value as its opacity."""
    alpha = np.nan_to_num(np.clip(grid, 0, 1))
    pixels = np.empty((*grid.shape, 4), np.uint8)
    pixels[..., 0] = 255
    pixels[..., 1] = (150 + 80 * alpha).astype(np.uint8)
    pixels[..., 2] = (20 + 60 * alpha).astype(np.uint8)
    pixels[..., 3] = (235 * alpha).astype(np.uint8)
    return pixels.transpose(1, 0, 2)[::-1]


def packed(values: np.ndarray, scale: int, dtype: type) -> str:
    """Returns `values * scale`, rounded to whole numbers of `dtype`, as base64."""
    return base64.b64encode(np.rint(values * scale).astype(dtype).tobytes()).decode()


def explorer(canvas: Canvas, shown: np.ndarray, region: tuple[int, int, int, int], *, label: str) -> str:
    """Draws a map in [0, 1] over a grey crop, with a region (see `outline`) that the page's script moves."""
    plot = escape(json.dumps({"left": LEFT, "top": TOP, "width": PLOT_WIDTH, "height": PLOT_HEIGHT}), quote=True)
    layers = [heat(shown), outline(region, shown.shape)]
    svg = picture(canvas, f"{label}; arrow keys move it", layers=layers, grey=True)
    # role application: screen readers do not pass arrow keys to a plain image
    interactive = svg.replace('role="img"', 'role="application"', 1)
    return interactive.replace("<svg ", f'<svg tabindex="0" data-plot="{plot}" ', 1)


def playhead() -> str:
    """Draws the line that the page's script moves while the crop plays."""
    span = f'x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{TOP + PLOT_HEIGHT}"'
    return f'<line class="playhead" {span} data-width="{PLOT_WIDTH}"/>'


def beat_marks(canvas: Canvas, beats_s: Sequence[float], downbeats_s: Sequence[float]) -> str:
    """Draws small ticks at beats and longer ones at downbeats, above the picture."""
    marks = [(t, 4) for t in beats_s if 0 <= t < canvas.duration_s]
    marks += [(t, 8) for t in downbeats_s if 0 <= t < canvas.duration_s]
    return "".join(
        f'<line class="beat" x1="{canvas.x(t):.1f}" x2="{canvas.x(t):.1f}" y1="{TOP - length}" y2="{TOP}"/>'
        for t, length in marks
    )


def hertz(frequency_hz: float) -> str:
    """Returns 440 Hz or 2.1 kHz."""
    return f"{frequency_hz:.0f} Hz" if frequency_hz < 1000 else f"{fixed(frequency_hz / 1000, 1)} kHz"


def band_name(canvas: Canvas, band: int, bands: int) -> str:
    """Returns the frequency range of one row of patches."""
    lowest, highest = (hertz(f) for f in canvas.band_edges(band, 1, bands))
    number, unit = lowest.split(" ")
    return f"{number if highest.endswith(f' {unit}') else lowest}{EN_DASH}{highest}"


def _ground(canvas: Canvas, *, grey: bool) -> str:
    return (
        f'<use class="{"ground grey" if grey else "ground"}" href="#{canvas.symbol}" x="{LEFT}" y="{TOP}"'
        f' width="{PLOT_WIDTH}" height="{PLOT_HEIGHT}"/>'
    )


def _round_seconds(duration_s: float) -> list[float]:
    step = next(s for s in (0.25, 0.5, 1, 2, 5, 10, 30) if duration_s / s <= 7)
    return [i * step for i in range(int(duration_s / step) + 1)]

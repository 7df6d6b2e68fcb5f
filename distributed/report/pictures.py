"""Spectrograms, masks and heat maps as small WebP images inside inline SVG.

The page embeds each crop once, as a symbol, and draws it many times with `<use>`. Axes, veils and beat marks are
vectors over it, so they follow the page's theme and stay sharp.

Shapes: T frames, F mel bands; a grid is [steps, bands] of patches, time first.
"""

import base64
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

import librosa
import matplotlib
import numpy as np
from PIL import Image

from distributed.drawing.charts import svg_line, svg_text
from distributed.drawing.wording import EN_DASH, fixed
from pupujepa.attention.picture import glow
from pupujepa.attention.region import Box

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 380, 34, 6, 8, 20
PLOT_HEIGHT = 128
HEIGHT = TOP + PLOT_HEIGHT + BOTTOM
PLOT_WIDTH = WIDTH - LEFT - RIGHT
# each crop has its own colour range, so that quiet music is visible
COLOUR_PERCENTILES = (4.0, 99.7)


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
        return TOP + PLOT_HEIGHT * (1 - min(max(band / self.mel_bands, 0), 1))  # low frequencies at the bottom

    def band_edges(self, band: int, count: int, bands: int) -> tuple[float, float]:
        """Returns the lowest and highest frequency of `count` rows of patches out of `bands`, in Hz."""
        edges_hz = librosa.mel_frequencies(n_mels=self.mel_bands + 1, fmin=self.fmin_hz, fmax=self.fmax_hz)
        rows = self.mel_bands // bands  # mel bands in a row of patches
        return float(edges_hz[band * rows]), float(edges_hz[(band + count) * rows])


def colour(values: np.ndarray, lo: float, hi: float) -> np.ndarray:
    """Returns [T, F] values, clipped to [lo, hi], as [F, T, 3] uint8 with low frequencies at the bottom."""
    codes = np.clip((values - lo) / max(hi - lo, 1e-12) * 255, 0, 255).astype(np.uint8)
    # perceptually uniform: equal steps of a value look equal
    palette = (matplotlib.colormaps["magma"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
    return palette[codes.T[::-1]]  # [T, F] -> [F, T], upside down: images begin at the top


def image_uri(pixels: np.ndarray, *, lossless: bool = False) -> str:
    """Returns [height, width, 3 or 4] uint8 as a WebP data URI."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "WEBP", quality=84, method=6, lossless=lossless)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def crop_image(canvas: Canvas, mel_TF: np.ndarray) -> str:
    """Returns the definition of a crop's image, which its pictures refer to by `Canvas.symbol`."""
    lo, hi = np.percentile(mel_TF, COLOUR_PERCENTILES)
    return (
        f'<symbol id="{escape(canvas.symbol, quote=True)}" viewBox="0 0 100 100" preserveAspectRatio="none">'
        f'<image href="{image_uri(colour(mel_TF, float(lo), float(hi)))}" width="100" height="100"'
        f' preserveAspectRatio="none"/></symbol>'
    )


def picture(canvas: Canvas, description: str, layers: str, *, grey: bool = False) -> str:
    """Draws a crop with time and frequency axes, and `layers` of SVG over it.

    Args:
        description: the alternative text.
        grey: draw the spectrogram in greys, as ground for a heat map.
    """
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description, quote=True)}">'
        f"{_ground(canvas, grey=grey)}{layers}{_axes(canvas)}</svg>"
    )


def emblem(canvas: Canvas, layers: str, *, grey: bool = False) -> str:
    """Draws a crop and its layers small, without axes; screen readers skip it."""
    return (
        f'<svg viewBox="{LEFT} {TOP} {PLOT_WIDTH} {PLOT_HEIGHT}" preserveAspectRatio="none" aria-hidden="true">'
        f"{_ground(canvas, grey=grey)}{layers}</svg>"
    )


def _axes(canvas: Canvas) -> str:
    """Draws seconds below and kilohertz at the left."""
    step_s = next(s for s in (0.25, 0.5, 1, 2, 5, 10, 30) if canvas.duration_s / s <= 7)
    seconds = [i * step_s for i in range(int(canvas.duration_s / step_s) + 1)]
    hertz = [f for f in (500.0, 1000.0, 2000.0, 4000.0, 8000.0) if canvas.fmin_hz < f < canvas.fmax_hz]
    below = [("middle", canvas.x(t), HEIGHT - 5, f"{t:g}") for t in seconds if canvas.x(t) < WIDTH - 26]
    left = [("end", LEFT - 5, canvas.y(f) + 4, f"{f / 1000:g}") for f in hertz]
    units = [("end", WIDTH - RIGHT, HEIGHT - 5, "s"), ("end", LEFT - 5, TOP + 6, "kHz")]
    return "".join(svg_text(f"tick {anchor}", x, y, text) for anchor, x, y, text in (*below, *left, *units))


def veil(targets: np.ndarray) -> str:
    """Draws the hidden patches of a [steps, bands] boolean grid as one translucent path."""
    steps, bands = targets.shape
    width, height = PLOT_WIDTH / steps, PLOT_HEIGHT / bands
    path = []
    for band in range(bands):
        # starts and ends of the runs of hidden patches in this row, in turn
        edges = np.flatnonzero(np.diff(np.concatenate([[0], targets[:, band].astype(np.int8), [0]])))
        top = TOP + PLOT_HEIGHT - (band + 1) * height  # band 0 is the lowest row
        path += [
            f"M{LEFT + a * width:.1f} {top:.1f}h{(b - a) * width:.1f}v{height:.1f}h{-(b - a) * width:.1f}z"
            for a, b in zip(edges[::2], edges[1::2], strict=True)
        ]
    return f'<path class="veil" d="{"".join(path)}"/>'


def outline(box: Box, grid: tuple[int, ...]) -> str:
    """Draws a frame around a box of a grid (steps, bands)."""
    width, height = PLOT_WIDTH / grid[0], PLOT_HEIGHT / grid[1]
    top = TOP + PLOT_HEIGHT - (box.band + box.bands) * height
    return (
        f'<rect class="region" x="{LEFT + box.step * width:.1f}" y="{top:.1f}"'
        f' width="{box.steps * width:.1f}" height="{box.bands * height:.1f}"/>'
    )


def heat(grid: np.ndarray) -> str:
    """Draws a [steps, bands] map in [0, 1] as a translucent glow; NaN stays clear."""
    pixels = np.rint(255 * glow(grid)).astype(np.uint8).transpose(1, 0, 2)[::-1]  # low bands at the bottom
    return (
        f'<image class="heat" href="{image_uri(pixels, lossless=True)}" x="{LEFT}" y="{TOP}"'
        f' width="{PLOT_WIDTH}" height="{PLOT_HEIGHT}" preserveAspectRatio="none"/>'
    )


def explorer(canvas: Canvas, shown: np.ndarray, box: Box, *, label: str) -> str:
    """Draws a map in [0, 1] over a grey crop, with a box that the page's script moves."""
    plot = escape(json.dumps({"left": LEFT, "top": TOP, "width": PLOT_WIDTH, "height": PLOT_HEIGHT}), quote=True)
    svg = picture(canvas, f"{label}; arrow keys move it", heat(shown) + outline(box, shown.shape), grey=True)
    # role application: screen readers do not pass arrow keys to a plain image
    interactive = svg.replace('role="img"', 'role="application"', 1)
    return interactive.replace("<svg ", f'<svg tabindex="0" data-plot="{plot}" ', 1)


def playhead() -> str:
    """Draws the line that the page's script moves while the crop plays."""
    span = f'x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{TOP + PLOT_HEIGHT}"'
    return f'<line class="playhead" {span} data-width="{PLOT_WIDTH}"/>'


def beat_marks(canvas: Canvas, beats_s: Iterable[float], downbeats_s: Iterable[float]) -> str:
    """Draws small ticks at beats and longer ones at downbeats, above the picture."""
    marks = [(t, length) for times_s, length in ((beats_s, 4), (downbeats_s, 8)) for t in times_s]
    inside = [(canvas.x(t), length) for t, length in marks if 0 <= t < canvas.duration_s]
    return "".join(svg_line("beat", (x, x), (TOP - length, TOP)) for x, length in inside)


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

"""Attention drawn: a picture with a panel per chosen block and head, or one interactive HTML page.

The page holds all its data and makes no network request. Maps are coded as bytes: attention = (code / 255)^2 of the
map's maximum, so that weak attention keeps its resolution. The page's script computes the means over blocks and heads.

Shapes: T frames, F mel bands of a spectrogram; L predictor blocks, H heads, and T steps, F bands of patches of a map.
"""

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pupujepa.attention.region import AudioCrop, Look
from pupujepa.durable import atomic_file
from pupujepa.errors import UserError

MEAN, ALL = "mean", "all"
_OUTLINE = "deepskyblue"
_CODES = 255
_BRIGHTEST = 0.995  # quantile of a map that is drawn at full strength
_SMALL_PANELS = 12  # from this number on, panels have no axes


@dataclass(frozen=True)
class Panel:
    """A titled map [steps, bands] in multiples of an even spread."""

    title: str
    times_even: NDArray[np.float64]


def panels_of(look: Look, layer: str, head: str) -> list[list[Panel]]:
    """Returns the chosen maps, a row per layer.

    Args:
        layer, head: a number from 1 on, "mean" or "all".

    Raises:
        UserError: a layer or head that the predictor does not have.
    """
    maps = look.times_even()  # [L, H, steps, bands]
    rows = []
    for layer_name, of_layer in _chosen(maps, layer, "layer"):
        of_heads = _chosen(of_layer, head, "head")
        rows.append([Panel(f"{layer_name}, {name}", grid) for name, grid in of_heads])
    return rows


def save_picture(crop: AudioCrop, look: Look, path: Path, *, layer: str, head: str) -> None:
    """Writes the picture in the format of the suffix.

    Raises:
        UserError: matplotlib is not installed, or the layer or head does not exist.
    """
    rows = panels_of(look, layer, head)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "a picture needs matplotlib, which is not installed: pip install 'pupujepa[eval]', or --out NAME.html"
        ) from error
    columns = len(rows[0])
    small = len(rows) * columns >= _SMALL_PANELS
    width = max(11.0, 1.7 * columns)
    heights = [2.6] + [0.95 if small else 2.6] * len(rows)
    figure = Figure(figsize=(width, sum(heights) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)  # without pyplot, which would choose a backend with windows
    top, bottom = np.asarray(figure.subfigures(2, 1, height_ratios=[heights[0], sum(heights[1:])]))
    _draw(top.subplots(), crop, look, Panel(f"{crop.name}: log-mel; the hidden region is outlined", np.zeros((0, 0))))
    axes = bottom.subplots(len(rows), columns, squeeze=False, sharex=True, sharey=True)
    for row, panels in zip(axes, rows):
        for axis, panel in zip(row, panels):
            _draw(axis, crop, look, panel, bare=small)
    bottom.suptitle("attention from the region, in multiples of an even spread", x=0.01, ha="left", fontsize=10)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format=path.suffix.removeprefix("."))


def write_page(crop: AudioCrop, looks: Sequence[Look], path: Path) -> None:
    """Writes the page, which first shows the first look."""
    layers, heads = looks[0].maps_LHTF.shape[:2]
    coded = [coded_maps(look.times_even()) for look in looks]
    mel = crop.mel_TF.numpy()
    low, high = float(mel.min()), float(mel.max())
    payload = {
        "start_s": crop.start_s,
        "step_s": crop.step_s,
        "grid": [crop.steps, crop.bands],
        "mel_shape": list(mel.shape),
        "mel": _packed(np.rint(_CODES * (mel - low) / max(high - low, 1e-9))),  # silence has high == low
        "band_edges_hz": [round(float(hz), 1) for hz in crop.band_edges_hz],
        "layers": layers,
        "heads": heads,
        "boxes": [[look.box.step, look.box.steps, look.box.band, look.box.bands] for look in looks],
        "labels": [look.box.describe(crop) for look in looks],
        "peaks": [[round(float(peak), 4) for peak in peaks] for _, peaks in coded],
        "maps": _packed(np.stack([codes for codes, _ in coded])),
    }
    page = files("pupujepa.attention").joinpath("page.html").read_text(encoding="utf-8")
    page = page.replace("{{name}}", escape(crop.name))
    page = page.replace("{{payload}}", json.dumps(payload).replace("<", "\\u003c"))  # no `</script>` in the data
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def coded_maps(maps_LHTF: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Returns codes [L * H, steps, bands] and the maximum of each map [L * H]."""
    flat = maps_LHTF.reshape(-1, *maps_LHTF.shape[2:])
    peaks = flat.max((1, 2))
    codes = np.rint(_CODES * np.sqrt(flat / peaks[:, None, None]))  # the root gives weak attention more codes
    return codes.astype(np.uint8), peaks


def _packed(codes: NDArray) -> str:
    return base64.b64encode(zlib.compress(codes.astype(np.uint8).tobytes(), 9)).decode()


def _chosen(maps: NDArray[np.float64], which: str, kind: str) -> list[tuple[str, NDArray[np.float64]]]:
    """Returns the names and maps that `which` selects along the first axis."""
    if which == MEAN:
        return [(f"mean of {len(maps)} {kind}s", maps.mean(0))]
    if which == ALL:
        return [(f"{kind} {i + 1}", grid) for i, grid in enumerate(maps)]
    if not (which.isdigit() and 1 <= int(which) <= len(maps)):
        raise UserError(f"--{kind} {which} does not exist; choose 1 to {len(maps)}, {MEAN} or {ALL}")
    return [(f"{kind} {which}", maps[int(which) - 1])]


def _draw(axes: Any, crop: AudioCrop, look: Look, panel: Panel, *, bare: bool = False) -> None:
    extent = (crop.start_s, crop.start_s + crop.duration_s, 0, crop.bands)
    settings = {"origin": "lower", "aspect": "auto", "interpolation": "nearest", "extent": extent}
    mel = crop.mel_TF.numpy().T
    if panel.times_even.size:
        axes.imshow(mel, cmap="gray", **settings)
        axes.imshow(glow(strength(panel.times_even)).transpose(1, 0, 2), **settings)
    else:
        axes.imshow(mel, cmap="magma", **settings)
    box = look.box
    left, width = crop.start_s + box.step * crop.step_s, box.steps * crop.step_s
    axes.vlines([left, left + width], box.band, box.band + box.bands, colors=_OUTLINE)
    axes.hlines([box.band, box.band + box.bands], left, left + width, colors=_OUTLINE)
    # a name with two dollar signs is no formula
    axes.set_title(panel.title, loc="left", fontsize=6 if bare else 9, pad=2, parse_math=False)
    if bare:
        axes.set_xticks([])
        axes.set_yticks([])
    else:
        axes.set_yticks(np.arange(crop.bands + 1), [f"{hz:.0f} Hz" for hz in crop.band_edges_hz], fontsize=7)
        axes.set_xlabel("time (s)", fontsize=8)


def strength(times_even: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns a map [steps, bands] in [0, 1]: 0 up to an even spread, 1 at the strongest patches."""
    top = max(float(np.quantile(times_even, _BRIGHTEST)), 1 + 1e-6)
    return np.clip((times_even - 1) / (top - 1), 0, 1)


def glow(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns RGBA [steps, bands, 4] of a map in [0, 1]: amber, as opaque as the value; NaN is clear."""
    alpha = np.nan_to_num(np.clip(values, 0, 1))
    return np.stack([np.ones_like(alpha), 0.6 + 0.3 * alpha, 0.1 + 0.2 * alpha, 0.92 * alpha], axis=-1)

"""Interactive attention page: one HTML file with all its data, which makes no network request.

Maps are coded as bytes: attention = (code / 255)^2 of the map's maximum, so that weak attention keeps its resolution.
The page's script draws spectrogram and maps, and computes the means over blocks and heads.

Shapes: T frames, F mel bands of a spectrogram; L predictor blocks, H heads, and T steps, F bands of patches of a map.
"""

import base64
import json
import zlib
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pupujepa.attention.region import AudioCrop, Look
from pupujepa.durable import atomic_file

_CODES = 255


def write_page(crop: AudioCrop, looks: Sequence[Look], path: Path) -> None:
    """Writes the page, which first shows the first look."""
    with atomic_file(path) as temporary:
        temporary.write_text(page(crop, looks), encoding="utf-8")


def page(crop: AudioCrop, looks: Sequence[Look]) -> str:
    """Returns the page as HTML."""
    template = files("pupujepa.attention").joinpath("page.html").read_text(encoding="utf-8")
    payload = json.dumps(_payload(crop, looks)).replace("<", "\\u003c")  # no `</script>` in the data
    return template.replace("{{name}}", escape(crop.name)).replace("{{payload}}", payload)


def _payload(crop: AudioCrop, looks: Sequence[Look]) -> dict:
    layers, heads = looks[0].maps_LHTF.shape[:2]
    coded = [coded_maps(look.times_even()) for look in looks]
    return {
        "start_s": crop.start_s,
        "step_s": crop.step_s,
        "grid": [crop.steps, crop.bands],
        "mel_shape": list(crop.mel_TF.shape),
        "mel": _packed(_mel_codes(crop)),
        "band_edges_hz": [round(float(hz), 1) for hz in crop.band_edges_hz],
        "layers": layers,
        "heads": heads,
        "boxes": [[look.box.step, look.box.steps, look.box.band, look.box.bands] for look in looks],
        "labels": [look.box.describe(crop) for look in looks],
        "peaks": [[round(float(peak), 4) for peak in peaks] for _, peaks in coded],
        "maps": _packed(np.stack([codes for codes, _ in coded])),
    }


def coded_maps(maps_LHTF: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Returns codes [L * H, steps, bands] and the maximum of each map [L * H]."""
    flat = maps_LHTF.reshape(-1, *maps_LHTF.shape[2:])
    peaks = flat.max((1, 2))
    codes = np.rint(_CODES * np.sqrt(flat / peaks[:, None, None]))  # the root gives weak attention more codes
    return codes.astype(np.uint8), peaks


def _mel_codes(crop: AudioCrop) -> NDArray[np.uint8]:
    mel = crop.mel_TF.numpy()
    low, high = float(mel.min()), float(mel.max())
    return np.rint(_CODES * (mel - low) / max(high - low, 1e-9)).astype(np.uint8)  # silence has high == low


def _packed(codes: NDArray[np.uint8]) -> str:
    return base64.b64encode(zlib.compress(codes.tobytes(), 9)).decode()

"""Similarity of patches: the cosine of the teacher's features, without the crop's mean feature.

The page holds the features, reduced to their leading principal components in one byte each, so that a reader can
choose any patch. Shapes: T frames, F mel bands, N patches, D width; a grid is [steps, bands].
"""

import json
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distributed.drawing.wording import fixed, percent
from distributed.report.pictures import Canvas, band_name, explorer, packed
from pupujepa.model.model import PupuJEPA

FEATURE_DIMENSIONS = 32


@dataclass(frozen=True)
class Similarity:
    """The map of feature similarity: the drawing for the first patch, and the features for the others."""

    svg: str
    payload: str
    readout: str


def similarity(model: PupuJEPA, canvas: Canvas, mel_TF: Tensor, *, patch: tuple[int, int]) -> Similarity:
    """Returns the map of cosines to one patch (step, band), and the features for other patches.

    Args:
        mel_TF: normalised log-mel.
    """
    grid = (len(mel_TF) // model.config.patch_frames, model.config.grid_bands)
    with torch.no_grad():
        features_ND = model.encode(mel_TF[None], layers=[-1])[0][0].double().numpy()
    vectors_ND, kept = compressed(features_ND, FEATURE_DIMENSIONS)
    step, band = patch
    values = (vectors_ND @ vectors_ND[step * grid[1] + band]).reshape(grid)
    names = [band_name(canvas, i, grid[1]) for i in range(grid[1])]
    step_s = canvas.duration_s / grid[0]
    payload = {
        "grid": grid,
        "start": (step, band),
        "width": vectors_ND.shape[1],
        "seconds": step_s,
        "bandNames": names,
        "vectors": packed(vectors_ND, 127, np.int8),
    }
    shown = np.clip(values, 0, 1)
    label = "Cosine of teacher features to one chosen patch"
    return Similarity(
        svg=explorer(canvas, shown, (step, 1, band, 1), label=label),
        payload=json.dumps(payload, ensure_ascii=False),
        readout=f"Patch at {fixed(step * step_s, 2)} s, {names[band]}. The page holds {vectors_ND.shape[1]} "
        f"principal components, {percent(kept, 0)} of the features' energy.",
    )


def compressed(features_ND: np.ndarray, dimensions: int) -> tuple[np.ndarray, float]:
    """Returns centred unit features in their leading principal components, and the share of energy kept."""
    centred = features_ND - features_ND.mean(0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    left, scale, _ = np.linalg.svd(unit, full_matrices=False)
    width = min(dimensions, len(scale))
    kept = float((scale[:width] ** 2).sum() / (scale**2).sum())
    return left[:, :width] * scale[:width], kept

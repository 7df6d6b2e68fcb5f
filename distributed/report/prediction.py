"""Explained variance of each hidden patch: of its feature, or of the patch for a model of kind mae.

The measure is strict: a prediction that knows only the band of a patch gets zero. The step is that of training, without
gradients, on held-out crops: student on the visible patches, predictor on the hidden ones, teacher as the truth.
Shapes: D width, M target patches; a grid is [steps, bands].
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distributed.drawing.wording import percent
from distributed.report.inputs import FEATURES, PATCHES
from distributed.report.music import Plate, shown_mask, strategy_name
from distributed.report.pictures import Canvas, emblem, heat, picture
from pupujepa.model.architecture import MAE
from pupujepa.model.model import PupuJEPA
from pupujepa.training.masks import RANDOM, STRATEGIES, MaskConfig
from pupujepa.training.objective import ObjectiveConfig, TrainingStep


@dataclass(frozen=True)
class Filled:
    """A filled mask: predicted and true features [M, D] of the hidden patches, at `target` on the grid."""

    prediction_MD: Tensor
    target_MD: Tensor
    target: np.ndarray
    grid: tuple[int, int]

    @property
    def band(self) -> np.ndarray:
        """The band of each hidden patch, [M]."""
        return self.target % self.grid[1]  # token index = step * bands + band


def prediction_plates(
    model: PupuJEPA,
    canvas: Canvas,
    mels_BTF: Sequence[Tensor],
    *,
    masks: MaskConfig,
    objective: ObjectiveConfig,
) -> dict[str, Any]:
    """Draws a filled mask of the first crop for each strategy; all normalised crops give the variance."""
    step = TrainingStep(model, objective).eval()  # on the CPU in float32, whatever the training used
    # predict every hidden patch, even if training samples a part of them to save time
    masks = replace(masks, target_fraction=1.0)
    mean = (PATCHES if objective.kind == MAE else FEATURES)["mean"]
    plates, heats = [], []
    for strategy in range(len(STRATEGIES)):
        filled = [fill_mask(step, mel_TF, masks, strategy=strategy, crop=i) for i, mel_TF in enumerate(mels_BTF)]
        maps, total = explained(filled)
        name, share = strategy_name(strategy), percent(total)
        sentence = f"{share} of the variance within bands explained, over {len(filled)} crops."
        if total <= 0:
            sentence = f"No better yet than the {mean} of each band ({share}, over {len(filled)} crops)."
        heats.append(heat(maps[0]))
        described = f"How much of each hidden patch is predicted under a {name} mask"
        plates.append(Plate(name, sentence, picture(canvas, described, heats[-1], grey=True)))
    return {"plates": plates, "emblem": emblem(canvas, heats[RANDOM], grey=True)}


@torch.no_grad()
def fill_mask(step: TrainingStep, mel_TF: Tensor, masks: MaskConfig, *, strategy: int, crop: int) -> Filled:
    """Predicts the hidden patches of the mask of crop number `crop`."""
    grid = (len(mel_TF) // step.config.patch_frames, step.config.grid_bands)
    mask = shown_mask(masks, strategy, grid=grid, crop=crop)
    _, aux = step(mel_TF[None], torch.from_numpy(mask.context)[None], torch.from_numpy(mask.target)[None])
    return Filled(aux["prediction_BMD"][0], aux["target_BMD"][0], mask.target, grid)


def explained(filled: Sequence[Filled]) -> tuple[list[np.ndarray], float]:
    """Returns the explained share of each mask's hidden patches [steps, bands], and that of all masks.

    The share of a patch is 1 - (its squared error) / (mean squared distance of its band's features, over all masks, to
    their mean): 1 is perfect, 0 is the mean of the band. Visible patches are NaN.
    """
    target_nD, band_n = torch.cat([f.target_MD for f in filled]), np.concatenate([f.band for f in filled])
    spread = np.zeros(filled[0].grid[1])  # of the features in each band, [bands]
    for band in np.unique(band_n):
        own_nD = target_nD[torch.from_numpy(band_n == band)]
        spread[band] = float((own_nD - own_nD.mean(0)).square().sum(-1).mean())
    maps, errors, spreads = [], 0.0, 0.0
    for f in filled:
        error_M = (f.prediction_MD - f.target_MD).square().sum(-1).numpy()
        shares = np.full(f.grid[0] * f.grid[1], np.nan)  # visible patches have no prediction
        shares[f.target] = 1 - error_M / np.maximum(spread[f.band], 1e-12)  # a band of silence has no spread
        maps.append(shares.reshape(f.grid))
        errors, spreads = errors + float(error_M.sum()), spreads + float(spread[f.band].sum())
    return maps, 1 - errors / spreads

"""How well the gaps are filled: the share of each hidden patch's feature that the predictor gets right.

The same step as in training is run on held-out crops, without gradient: student on the visible patches, predictor on
the hidden ones, teacher as the truth. Shapes: D width, M target patches; a grid is [steps, bands].
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from distributed.report.music import Plate, strategy_name
from distributed.report.pictures import Canvas, emblem, heat, picture
from distributed.report.wording import percent
from pupujepa.diagnostics import explained_variance
from pupujepa.masks import RANDOM, STRATEGIES, MaskConfig, draw_mask
from pupujepa.model import PupuJEPA
from pupujepa.objective import ObjectiveConfig, TrainingStep
from pupujepa.randomness import generator

DRAWS_PER_CROP = 4


@dataclass(frozen=True)
class Filled:
    """One mask, filled in: the share of each hidden patch's variance that is explained, NaN where it is visible."""

    explained: np.ndarray
    prediction_MD: Tensor
    target_MD: Tensor


@dataclass(frozen=True)
class Predictions:
    """One plate for each strategy, and the first of them small."""

    plates: tuple[Plate, ...]
    emblem: str


def prediction_plates(
    model: PupuJEPA,
    canvas: Canvas,
    mels_BTF: Sequence[Tensor],
    *,
    masks: MaskConfig,
    objective: ObjectiveConfig,
    seed: int = 0,
) -> Predictions:
    """Draws one filled mask of the first crop for each strategy, with the explained variance over all crops.

    Args:
        mels_BTF: normalised log-mel of each crop.
    """
    step = TrainingStep(model, objective).eval()
    # every hidden patch is asked for, also when training samples a part of them to save time
    masks = replace(masks, target_fraction=1.0)
    plates, emblems = [], []
    for strategy in range(len(STRATEGIES)):
        filled = [
            fill(step, mel_TF, masks, strategy=strategy, key=(seed, number, draw))
            for number, mel_TF in enumerate(mels_BTF)
            for draw in range(DRAWS_PER_CROP)
        ]
        prediction_BMD = torch.stack([f.prediction_MD for f in filled])
        total = float(explained_variance(prediction_BMD, torch.stack([f.target_MD for f in filled])))
        plates.append(_plate(canvas, filled[0].explained, strategy, total=total, count=len(filled)))
        emblems.append(emblem(canvas, [heat(filled[0].explained)], grey=True))
    return Predictions(tuple(plates), emblems[RANDOM])


@torch.no_grad()
def fill(step: TrainingStep, mel_TF: Tensor, masks: MaskConfig, *, strategy: int, key: tuple[int, int, int]) -> Filled:
    """Draws a mask, predicts its hidden patches and compares them with the teacher's features."""
    config = step.config
    grid = (len(mel_TF) // config.patch_frames, config.grid_bands)
    rng = generator(key[0], "report", "mask", strategy, *key[1:])
    mask = draw_mask(rng, masks, steps=grid[0], bands=grid[1], progress=1.0, strategy=strategy)
    _, aux = step(mel_TF[None], torch.from_numpy(mask.context)[None], torch.from_numpy(mask.target)[None])
    prediction_MD, target_MD = aux["prediction_BMD"][0], aux["target_BMD"][0]
    error_M = (prediction_MD - target_MD).square().sum(-1)
    spread_M = (target_MD - target_MD.mean(0)).square().sum(-1)
    explained = np.full(grid[0] * grid[1], np.nan)
    explained[mask.target] = (1 - error_M / spread_M.clamp_min(1e-12)).numpy()
    return Filled(explained.reshape(grid), prediction_MD, target_MD)


def _plate(canvas: Canvas, explained: np.ndarray, strategy: int, *, total: float, count: int) -> Plate:
    name = strategy_name(strategy)
    described = f"How much of each hidden patch is predicted under a {name} mask; {percent(total)} in all"
    svg = picture(canvas, described, layers=[heat(explained)], grey=True)
    sentence = f"{percent(total)} of the variance explained, over {count} masks of these crops."
    return Plate(name, sentence, svg)

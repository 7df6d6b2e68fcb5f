"""Every variant of model and objective at a tiny size, by name, for tests that must hold for all of them."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from pupujepa.model.architecture import ModelConfig
from pupujepa.model.model import PupuJEPA
from pupujepa.randomness import generator
from pupujepa.training.masks import MaskConfig, draw_mask
from pupujepa.training.objective import ObjectiveConfig, TrainingStep
from tests.pupujepa.models import SMALL, random_mel

LINE = replace(SMALL, structure="frames", patch_bands=0)
MAE = replace(SMALL, predictor_objective="mae")


@dataclass(frozen=True)
class Variant:
    """Model, objective and masks of a variant."""

    model: ModelConfig = SMALL
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)

    def step(self, autocast_dtype=None, *, activation_checkpointing=False) -> TrainingStep:
        model = PupuJEPA(self.model)
        return TrainingStep(model, self.objective, autocast_dtype, activation_checkpointing=activation_checkpointing)

    def batch(self, size: int = 3, *, seed: int = 0):
        """Returns a spectrogram batch with one mask per sample."""
        shape = {"steps": self.model.grid_steps, "bands": self.model.grid_bands}
        drawn = [draw_mask(generator(seed, i), self.masks, progress=1.0, **shape) for i in range(size)]
        context, target = (torch.from_numpy(np.stack(part)) for part in list(zip(*drawn))[:2])
        return random_mel(size, self.model.crop_frames, self.model.mel_bands, seed=seed), context, target


VARIANTS = {
    "released": Variant(),
    "frames": Variant(LINE),
    "flat": Variant(replace(SMALL, structure="flat"), masks=MaskConfig(structure="flat")),
    "flat by band": Variant(replace(SMALL, structure="flat_by_band"), masks=MaskConfig(structure="flat_by_band")),
    "frames, 10 ms tokens": Variant(replace(LINE, patch_frames=1)),
    "frames, learned positions": Variant(replace(LINE, position_code="learned")),
    "frames, sincos positions": Variant(replace(LINE, position_code="sincos")),
    "frames, mae": Variant(replace(LINE, predictor_objective="mae"), ObjectiveConfig(kind="mae", loss="mse")),
    "full grid": Variant(SMALL, ObjectiveConfig(target="full_grid")),
    "full grid, two layers": Variant(SMALL, ObjectiveConfig(target="full_grid", target_layers=2)),
    "two layers": Variant(SMALL, ObjectiveConfig(target_layers=2)),
    "mae": Variant(MAE, ObjectiveConfig(kind="mae", loss="mse")),
    "mae of raw values": Variant(MAE, ObjectiveConfig(kind="mae", loss="mse", standardise=False)),
    "mse": Variant(SMALL, ObjectiveConfig(loss="mse")),
    "l1": Variant(SMALL, ObjectiveConfig(loss="l1")),
    "cosine": Variant(SMALL, ObjectiveConfig(loss="cosine")),
    "norm_mse": Variant(SMALL, ObjectiveConfig(loss="norm_mse")),
    "raw targets": Variant(SMALL, ObjectiveConfig(standardise=False)),
    "variance of the student": Variant(SMALL, ObjectiveConfig(variance_weight=1.0)),
    "variance of the prediction": Variant(SMALL, ObjectiveConfig(variance_weight=1.0, variance_of="prediction")),
    "learned positions": Variant(replace(SMALL, position_code="learned")),
    "sincos positions": Variant(replace(SMALL, position_code="sincos")),
    "no positions": Variant(replace(SMALL, position_code="none")),
    "clip-relative positions": Variant(replace(SMALL, rope="clip_relative")),
    "gelu": Variant(replace(SMALL, mlp="gelu")),
    "qk-norm": Variant(replace(SMALL, qk_norm=True)),
    "large patches": Variant(replace(SMALL, patch_frames=8, patch_bands=32)),
    "large predictor": Variant(replace(SMALL, predictor_width=48, predictor_depth=3, predictor_heads=4)),
    "few targets": Variant(SMALL, masks=MaskConfig(target_fraction=0.25)),
    "all at once": Variant(
        replace(LINE, mlp="gelu", qk_norm=True, position_code="learned"),
        ObjectiveConfig(target="full_grid", target_layers=3, loss="l1", variance_weight=0.1),
        MaskConfig(ratio=0.6, target_fraction=0.5),
    ),
}

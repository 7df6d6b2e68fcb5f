"""Fixed crops: a few seeded crops with masks for the diagnostics, equal at all steps and ranks.

The first crop of each clip is masked, for prediction; the others show the variation within a clip, which LiDAR
discounts. Masks cycle through the strategies at the end of the curriculum, so each curve has as many crops. Strategies
of weight 0 are left out.

Shapes: B crops, C clips, Q crops of a clip, T frames, F mel bands, K context patches, M target patches.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.stream.corpora import Corpora, divided
from data.stream.fixed_crops import draw_fixed_crops
from pupujepa.audio.log_mel import normalise
from pupujepa.errors import UserError
from pupujepa.model.model import ModelConfig
from pupujepa.randomness import generator
from pupujepa.training.masks import STRATEGIES, MaskConfig, draw_mask


@dataclass(frozen=True)
class FixedCrops:
    """Crops of some samples; the crops of a clip are adjacent.

    Attributes:
        mel_BTF: normalised, float32, B = clips * crops_per_clip.
        context_CK, target_CM: token indices in the first crop of each clip.
        strategy_C: indices into STRATEGIES.
    """

    mel_BTF: Tensor
    context_CK: Tensor
    target_CM: Tensor
    strategy_C: Tensor
    crops_per_clip: int

    @property
    def masked_crops(self) -> Tensor:
        """The masked crops, the first of each clip: [C, T, F]."""
        return self.mel_BTF[:: self.crops_per_clip]

    @property
    def other_crops(self) -> Tensor:
        """The crops without masks, clip by clip: [C * (Q - 1), T, F]."""
        return self.mel_BTF.unflatten(0, (-1, self.crops_per_clip))[:, 1:].flatten(0, 1)

    def to(self, device: torch.device) -> "FixedCrops":
        """Returns the crops on a device."""
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)


def read_fixed_crops(
    corpora: Corpora, *, seed: int, model: ModelConfig, masks: MaskConfig, shape: tuple[int, int]
) -> FixedCrops:
    """Reads the fixed crops of a stream's corpora; a pure function of its arguments and the shards.

    Args:
        corpora: contribute clips in proportion to their shares of the training.
        seed: of the stream.
        shape: clips, and crops of each. Crops overlap if a sample is too short. Small corpora give fewer clips; short
            samples give fewer crops, so that at least an eighth of each is its own.

    Raises:
        UserError: no two samples can be read.
    """
    clips, crops_per_clip = shape
    frames = min(manifest.frames // manifest.samples for manifest in corpora.manifests)
    free = max(frames - model.crop_frames, 0)
    crops_per_clip = min(crops_per_clip, 1 + 8 * free // model.crop_frames)
    apart = min(model.crop_frames, free // max(crops_per_clip - 1, 1))  # less than a crop: they overlap
    starts = [number * apart for number in range(crops_per_clip)]  # first frames of the crops of a clip
    span_frames = starts[-1] + model.crop_frames
    mel_CTF = np.concatenate(
        [
            draw_fixed_crops(corpus.url, count, crop_frames=span_frames, seed=seed, manifest=corpus.manifest)[0]
            for corpus, count in zip(corpora.members, divided(clips, corpora.parts))
        ]
    )
    if len(mel_CTF) < 2:
        raise UserError(
            f"{' and '.join(corpora.urls)}: {len(mel_CTF)} readable samples are too few for diagnostics; run "
            f"`python -m data verify` on them"
        )
    mel_CQTF = torch.stack([torch.from_numpy(mel_CTF)[:, s : s + model.crop_frames] for s in starts], dim=1)
    used = [s for s, weight in enumerate((masks.random, masks.block, masks.time_frequency)) if weight > 0]
    assert used and max(used) < len(STRATEGIES)
    drawn = [
        draw_mask(
            generator("probe mask", seed, row),
            masks,
            steps=model.grid_steps,
            bands=model.grid_bands,
            progress=1.0,
            strategy=used[row % len(used)],
        )
        for row in range(len(mel_CTF))
    ]
    return FixedCrops(
        normalise(mel_CQTF.flatten(0, 1), model.mel_mean, model.mel_std).float(),
        torch.stack([torch.from_numpy(mask.context) for mask in drawn]),
        torch.stack([torch.from_numpy(mask.target) for mask in drawn]),
        torch.tensor([mask.strategy for mask in drawn]),
        len(starts),
    )

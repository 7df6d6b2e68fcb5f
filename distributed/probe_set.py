"""The probe set: a fixed, seeded handful of crops on which the diagnostics look at the model, the same on all ranks.

Always the same crops and masks, so that a curve moves because the model did. Masks go in turn through the strategies
that the training ends with, as many of each whatever their weights, so that each strategy's curve is as sure. A
strategy of weight 0 is left out, also where the curriculum begins with it: it is not what the model is trained for.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from data.corpora import Corpora, divided
from data.probes import probe_crops
from pupujepa.errors import UserError
from pupujepa.frontend import normalise
from pupujepa.masks import STRATEGIES, MaskConfig, draw_mask
from pupujepa.model import ModelConfig
from pupujepa.randomness import generator


@dataclass(frozen=True)
class ProbeSet:
    """Crops of some samples, the consecutive crops of each beside each other.

    Attributes:
        mel_BTF: normalised, float32, B = clips * crops_per_clip.
        context_BK, target_BM: token indices.
        strategy_B: indices into STRATEGIES.
    """

    mel_BTF: Tensor
    context_BK: Tensor
    target_BM: Tensor
    strategy_B: Tensor
    crops_per_clip: int

    def to(self, device: torch.device) -> "ProbeSet":
        """Returns the probe set on a device."""
        return replace(
            self,
            mel_BTF=self.mel_BTF.to(device),
            context_BK=self.context_BK.to(device),
            target_BM=self.target_BM.to(device),
            strategy_B=self.strategy_B.to(device),
        )


def read_probe_set(
    corpora: Corpora, *, seed: int, model: ModelConfig, masks: MaskConfig, shape: tuple[int, int]
) -> ProbeSet:
    """Reads the probe set of a stream's corpora; a pure function of its arguments and the shards.

    Args:
        corpora: give clips in proportion to their shares of the training.
        seed: of the stream.
        shape: clips, and crops of each; fewer of both where the samples are fewer or shorter.

    Raises:
        UserError: no two samples can be read.
    """
    clips, crops_per_clip = shape
    fitting = min(manifest.frames // manifest.samples for manifest in corpora.manifests) // model.crop_frames
    crops_per_clip = max(1, min(crops_per_clip, fitting))
    crop_frames = crops_per_clip * model.crop_frames
    mel_CTF = np.concatenate(
        [
            probe_crops(corpus.url, count, crop_frames=crop_frames, seed=seed, manifest=corpus.manifest)[0]
            for corpus, count in zip(corpora.members, divided(clips, corpora.parts))
        ]
    )
    if len(mel_CTF) < 2:
        raise UserError(
            f"{' and '.join(corpora.urls)}: {len(mel_CTF)} readable samples, too few to look at a model with; run "
            f"`python -m data verify` on them"
        )
    mel_BTF = torch.from_numpy(mel_CTF).unflatten(1, (crops_per_clip, model.crop_frames)).flatten(0, 1)
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
        for row in range(len(mel_BTF))
    ]
    return ProbeSet(
        normalise(mel_BTF, model.mel_mean, model.mel_std).float(),
        torch.stack([torch.from_numpy(mask.context) for mask in drawn]),
        torch.stack([torch.from_numpy(mask.target) for mask in drawn]),
        torch.tensor([mask.strategy for mask in drawn]),
        crops_per_clip,
    )

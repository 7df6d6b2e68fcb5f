"""Stages from raw samples to batches in a `webdataset` pipeline: crop, mask, stack.

Crops keep their stored codes, a quarter of the float32 bytes, through processes and the bus. `Batch.mel` decodes and
normalises them on the device.

Crop and mask of a draw are pure functions of (seed, epoch, uid, draw), and masks of the global step too. They do not
depend on rank, worker or micro-batch.

A sample is a dict. The source gives `stored` [T, F], `uid` and `place`. `CropStage` adds `codes` [crop_frames, F],
`scale`, `offset` and `crop_start`; `MaskStage` adds `context`, `target` and `strategy`.
Shape legend: B batch, T frames, F mel bands, K context patches, M target patches.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.reading.fetching import Tally
from data.shards.format import decode, encode_mel, scale_and_offset
from pupujepa.audio.log_mel import LOG_FLOOR
from pupujepa.randomness import generator
from pupujepa.training.masks import MaskConfig, draw_mask, draw_strategy

SampleDict = dict[str, Any]


@dataclass(frozen=True)
class SamplePlace:
    """Row `row` of micro-batch `micro` of global batch `step`, and the draw that fills it.

    step counts from the start of training. A stand-in has the place of the sample it replaces, but its own draw. epoch
    is that of the sample's corpus, for crop and mask: a small corpus of a mix has several epochs per epoch of the run.
    """

    epoch: int
    step: int
    micro: int
    row: int
    draw: int
    corpus: int = 0
    epoch_of_run: int = 0


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Args:
        step: global step, from the start of training.
        epoch: of the run; in a mix, an epoch draws as many samples as all corpora have.
        micro: index of the micro-batch in this rank's part of the step.
        uids: of the samples; in a mix `corpus/uid`.
        codes: [B, T, F] as stored: uint8, or float16 if any row is stored so (float16 holds uint8 codes exactly).
        scale, offset: [B] float32, which turn the codes of a row into normalised log-mel values.
        context, target: [B, K] and [B, M] int64 token indices; [B, 0] without masks.
        strategy: [B] int64, index into `pupujepa.training.masks.STRATEGIES`; -1 without masks.
        draws: [B] int64, index of each row among the draws of its sample.
        crop_starts: [B] int64, first frame of each crop within its sample.
    """

    step: int
    epoch: int
    micro: int
    uids: list[str]
    codes: Tensor
    scale: Tensor
    offset: Tensor
    context: Tensor
    target: Tensor
    strategy: Tensor
    draws: Tensor
    crop_starts: Tensor

    def __len__(self) -> int:
        return len(self.uids)

    def mel(self) -> Tensor:
        """Returns the normalised log-mel spectrograms, float32 [B, T, F], on the device of the batch."""
        return decode(self.codes, self.scale, self.offset)

    def pin_memory(self) -> "Batch":
        """Returns the batch in page-locked memory."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device | str) -> "Batch":
        """Returns the batch on a device, without waiting for copies from page-locked memory."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def tensors(self) -> dict[str, Tensor]:
        """Returns the fields that are tensors, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def __getstate__(self) -> dict[str, Any]:
        # a tensor between processes costs a file in shared memory and a connection, so small ones go as arrays
        small = {name: tensor.numpy() for name, tensor in self.tensors().items() if name != "codes"}
        return vars(self) | small

    def __setstate__(self, state: dict[str, Any]) -> None:
        arrays = {name: torch.from_numpy(value) for name, value in state.items() if isinstance(value, np.ndarray)}
        vars(self).update(state | arrays)

    def _mapped(self, function: Any) -> "Batch":
        return replace(self, **{name: function(tensor) for name, tensor in self.tensors().items()})


@dataclass(frozen=True)
class CropStage:
    """The crop of a sample as stored, with the scale and offset that decode and normalise it.

    A sample shorter than the crop is padded at its end with the log floor (silence), and counted.

    Args:
        ranges: (lo, hi) of the uint8 codes of each corpus.
        mean, std: of the log-mel values of all corpora.
    """

    seed: int
    crop_frames: int
    ranges: tuple[tuple[float, float], ...]
    mean: float
    std: float

    def __call__(self, sample: SampleDict, *, tally: Tally) -> SampleDict:
        """Adds `codes`, `scale`, `offset` and `crop_start`."""
        place, uid, stored_TF = sample["place"], sample["uid"], sample["stored"]
        start = crop_start(len(stored_TF), self.crop_frames, key=(self.seed, place.epoch, uid, place.draw))
        crop_TF = stored_TF[start : start + self.crop_frames]
        lo, hi = self.ranges[place.corpus]
        if missing := self.crop_frames - len(crop_TF):
            silence = encode_mel(np.array(LOG_FLOOR), str(stored_TF.dtype), lo=lo, hi=hi)
            crop_TF = np.pad(crop_TF, ((0, missing), (0, 0)), constant_values=silence)
            tally.add("padded")
        scale, offset = scale_and_offset(stored_TF.dtype, lo=lo, hi=hi)
        deviation = self.std + 1e-8  # as in pupujepa.audio.log_mel.normalise
        decoding = {"scale": scale / deviation, "offset": (offset - self.mean) / deviation}
        return {**sample, "codes": crop_TF, **decoding, "crop_start": start}


def crop_start(num_frames: int, crop_frames: int, *, key: tuple[int | str, ...]) -> int:
    """Returns the first frame of the crop of `key`, uniform over all that fit; 0 in a short sample."""
    return int(generator(*key, "crop").integers(0, max(num_frames - crop_frames, 0), endpoint=True))


@dataclass(frozen=True)
class MaskStage:
    """Context and target patches on a grid of steps x bands; total_steps scales the warm-up."""

    seed: int
    masks: MaskConfig
    steps: int
    bands: int
    total_steps: int

    def __call__(self, sample: SampleDict) -> SampleDict:
        """Adds `context`, `target` and `strategy`."""
        place = sample["place"]
        progress = min(place.step / self.total_steps, 1.0)
        strategy = None
        if not self.masks.per_sample:
            # one per step, on all ranks
            strategy = draw_strategy(generator(self.seed, place.step, "strategy"), self.masks, progress=progress)
        rng = generator(self.seed, place.epoch, sample["uid"], place.draw, "mask")  # separate from the crop's
        mask = draw_mask(rng, self.masks, steps=self.steps, bands=self.bands, progress=progress, strategy=strategy)
        return {**sample, "context": mask.context, "target": mask.target, "strategy": mask.strategy}


def stack_batches(samples: Iterable[SampleDict], micro_batch: int) -> Iterator[Batch]:
    """Yields batches of `micro_batch` successive samples."""
    rows: list[SampleDict] = []
    for sample in samples:
        # a lost sample would shift all rows
        assert sample["place"].row == len(rows), f"row {len(rows)} of a batch came as {sample['place']}"
        rows.append(sample)
        if len(rows) == micro_batch:
            yield stack(rows)
            rows = []


def stack(rows: list[SampleDict]) -> Batch:
    """Returns the batch of the rows of one micro-batch."""
    place = rows[0]["place"]
    nothing = np.empty(0, dtype=np.int64)
    return Batch(
        step=place.step,
        epoch=place.epoch_of_run,
        micro=place.micro,
        uids=[row["uid"] for row in rows],
        # float16 holds uint8 codes exactly, so numpy's common dtype loses nothing
        codes=torch.from_numpy(np.stack([row["codes"] for row in rows])),
        scale=torch.tensor([row["scale"] for row in rows]),
        offset=torch.tensor([row["offset"] for row in rows]),
        context=torch.from_numpy(np.stack([row.get("context", nothing) for row in rows])),
        target=torch.from_numpy(np.stack([row.get("target", nothing) for row in rows])),
        strategy=torch.tensor([row.get("strategy", -1) for row in rows]),
        draws=torch.tensor([row["place"].draw for row in rows]),
        crop_starts=torch.tensor([row["crop_start"] for row in rows]),
    )

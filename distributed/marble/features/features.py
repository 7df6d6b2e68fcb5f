"""Frozen features in a store: computed once by all ranks together, gathered by (uid, slice).

The position of a slice in the plan alone decides its batch and its part; a part is one file and has one rank. So every
batch is the same for any number of ranks, and 1 rank writes the same bytes as N. A part appears under its name only
when it is complete, and is then not computed again. The plan gives the position of each slice, as one number; each part
lists its slices, and readers compare them.

Legend: L layers, M layers kept as frames, N slices, T frames, D width.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import torch
from safetensors import safe_open
from torch import Tensor

from data.store.files import Location
from distributed.marble.datasets.corpus import LabelledCorpus, LabelledTrack, Slice
from distributed.marble.datasets.slice_audio import load_slice, tell_wrong_lengths
from distributed.marble.encoders.hidden_states import FRAME_DTYPE, SliceFeatures, spread_layers
from distributed.marble.encoders.resolve import FrozenEncoder
from distributed.marble.features.store import PartStore
from distributed.marble.tasks.tasks import Clips
from distributed.processes.topology import Topology
from pupujepa.errors import UserError

# version of the code between an audio file and a stored feature, which no digest covers: raise it with each change
CHAIN_VERSION = 2
SLICES_PER_BATCH = 8
BATCHES_PER_PART = 4
MAX_PARTS = 4096
_BATCHES_AHEAD = 2

FeatureKind = Literal["pooled", "frames"]


@dataclass(frozen=True)
class FeaturePlan:
    """Slices of one feature pass, for all tasks that cut tracks alike."""

    clips: Clips
    slices: tuple[Slice, ...]  # all slices; those with frames come first
    with_frames: int  # number of slices with frames
    frame_layers: int | None  # maximum number of layers kept as frames; None for all

    @property
    def slices_per_part(self) -> int:
        """Slices of a part: a whole number of batches, larger for very long plans."""
        batches = -(-len(self.slices) // SLICES_PER_BATCH)  # rounded up
        return SLICES_PER_BATCH * max(BATCHES_PER_PART, -(-batches // MAX_PARTS))

    @property
    def num_parts(self) -> int:
        """Number of part files."""
        return -(-len(self.slices) // self.slices_per_part)

    def part(self, number: int) -> tuple[Slice, ...]:
        """Returns the slices of a part file."""
        size = self.slices_per_part
        return self.slices[number * size : (number + 1) * size]


@dataclass(frozen=True)
class FeatureSet:
    """Part files of one encoder and plan, and the position of each slice in the plan."""

    store: PartStore
    plan: FeaturePlan
    place: dict[Slice, int] = field(repr=False)

    def shape(self, kind: FeatureKind) -> tuple[int, int, int]:
        """Returns layers, frames (1 for time means) and width of every slice."""
        # slices with frames come first
        with safe_open(self._path(0), framework="pt") as file:
            _, layers, *frames, width = file.get_slice(kind).get_shape()
        return layers, *(frames or [1]), width

    def read(self, slices: Sequence[Slice], kind: FeatureKind, *, layers: range | None = None) -> Tensor:
        """Returns time means [L, N, 1, D] or frames [M, N, T, D] of slices, for a range of layers or all."""
        wanted: dict[int, list[tuple[int, int]]] = {}  # part -> (row of the result, row of the part)
        for position, wanted_slice in enumerate(slices):
            part, row = divmod(self.place[wanted_slice], self.plan.slices_per_part)
            wanted.setdefault(part, []).append((position, row))
        own = slice(None) if layers is None else slice(layers.start, layers.stop)
        out: Tensor | None = None
        for part, rows in sorted(wanted.items()):
            with safe_open(self._path(part), framework="pt") as file:
                # a view of the mapped file: only the rows copied below are read from disk
                values = file.get_tensor(kind)[:, own]
            # the first part gives dtype and shape
            if out is None:
                out = values.new_empty(len(slices), *values.shape[1:])
            positions, sources = zip(*rows, strict=True)
            out[list(positions)] = values[list(sources)]
        if out is None:
            raise ValueError("no slices were asked for")
        by_layer = out.transpose(0, 1)
        return by_layer.unsqueeze(2) if kind == "pooled" else by_layer

    def _path(self, part: int) -> Path:
        return self.store.path(part, self.plan.part(part))


def plan_features(
    clips: Clips, slices: Sequence[Slice], *, with_frames: Sequence[Slice], frame_layers: int | None
) -> FeaturePlan:
    """Returns the plan: slices sorted, those that need frames first."""
    framed = sorted(set(with_frames))
    rest = sorted(set(slices) - set(framed))
    return FeaturePlan(clips, (*framed, *rest), len(framed), frame_layers)


def feature_key(encoder: FrozenEncoder, corpus: LabelledCorpus, plan: FeaturePlan, *, digest: str | None = None) -> str:
    """Returns the name of the stored features, a digest of everything that could change them."""
    fields = _key_fields(digest or encoder.digest, encoder, corpus, plan)  # the digest that ranks agreed on, if any
    return sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]


def compute_features(
    encoder: FrozenEncoder,
    corpus: LabelledCorpus,
    plan: FeaturePlan,
    *,
    cache: Location | Path,
    topology: Topology,
    digest: str | None = None,
    on_slices: Callable[[int, bool], None] = lambda count, computed: None,
) -> PartStore:
    """Computes this rank's missing parts and returns the store; a barrier of all ranks must follow."""
    digest = digest or encoder.digest
    store = PartStore(cache, feature_key(encoder, corpus, plan, digest=digest))
    if topology.is_first:
        store.describe(_key_fields(digest, encoder, corpus, plan))
    tracks = {t.uid: t for t in corpus.tracks}
    there = store.numbers()
    with ThreadPoolExecutor(max_workers=2) as readers:  # decoding overlaps with the encoder
        for number in range(topology.rank, plan.num_parts, topology.world_size):
            slices = plan.part(number)
            computed = number not in there or not store.is_whole(number, slices)
            if computed:
                store.save(number, _part(encoder, plan, number, tracks, readers), slices)
            on_slices(len(slices), computed)  # `computed`: now, not by an earlier evaluation
    tell_wrong_lengths()
    return store


def gather_features(store: PartStore, plan: FeaturePlan) -> FeatureSet:
    """Returns the features of all parts, indexed by (uid, slice).

    Raises:
        UserError: a part is missing, or is not in the plan.
    """
    there, wanted = store.numbers(), set(range(plan.num_parts))
    if strangers := sorted(there - wanted):
        raise UserError(
            f"part {strangers[0]} in {store.location} belongs to no task here, so slices could count twice; "
            f"delete {store.location} and run again"
        )
    if holes := sorted(wanted - there):
        missing = sum(len(plan.part(number)) for number in holes)
        raise UserError(
            f"{missing} of {len(plan.slices)} slices have no features in {store.location} (first: "
            f"{plan.part(holes[0])[0]}), so nothing can be scored; choose a folder that all ranks share with --cache"
        )
    return FeatureSet(store, plan, {s: position for position, s in enumerate(plan.slices)})


def _part(
    encoder: FrozenEncoder,
    plan: FeaturePlan,
    number: int,
    tracks: Mapping[str, LabelledTrack],
    readers: ThreadPoolExecutor,
) -> dict[str, Tensor]:
    """Returns the tensors of one part file; readers load audio a few batches ahead of the encoder."""

    def load(batch: Sequence[Slice]) -> list[Future[np.ndarray]]:
        rate_hz = encoder.sample_rate_hz
        return [readers.submit(load_slice, tracks[s.uid], s, plan.clips, rate_hz=rate_hz) for s in batch]

    layers = spread_layers(len(encoder.layer_names), plan.frame_layers)
    slices = plan.part(number)
    batches = [slices[i : i + SLICES_PER_BATCH] for i in range(0, len(slices), SLICES_PER_BATCH)]
    loads = [load(batch) for batch in batches[:_BATCHES_AHEAD]]
    # slices with frames come first in the plan: count those left for this part
    framed_left = max(0, plan.with_frames - number * plan.slices_per_part)
    pooled: list[Tensor] = []
    frames: list[Tensor] = []
    for position, batch in enumerate(batches):
        audio_BS = torch.from_numpy(np.stack([audio.result() for audio in loads.pop(0)]))
        loads += [load(b) for b in batches[position + _BATCHES_AHEAD :][:1]]
        num_framed = min(framed_left, len(batch))
        framed_left -= num_framed
        features = encoder.embed(audio_BS, frame_layers=layers if num_framed else ())
        _refuse_overflow(encoder, features, batch)
        pooled.append(features.pooled_BLD.float().cpu())
        if num_framed and features.frames_BMTD is not None:
            frames.append(features.frames_BMTD[:num_framed].to(FRAME_DTYPE).cpu())
    return {"pooled": torch.cat(pooled)} | ({"frames": torch.cat(frames)} if frames else {})


def _refuse_overflow(encoder: FrozenEncoder, features: SliceFeatures, batch: Sequence[Slice]) -> None:
    limit = torch.finfo(FRAME_DTYPE).max
    values = [features.pooled_BLD] + ([] if features.frames_BMTD is None else [features.frames_BMTD])
    if not all(bool(v.isfinite().all()) and float(v.abs().max()) < limit for v in values):
        raise UserError(
            f"encoder {encoder.name!r} gives values that are not finite or beyond {limit:g} for one of {list(batch)}, "
            "so no probe can be trained; check the weights and the audio"
        )


def _key_fields(digest: str, encoder: FrozenEncoder, corpus: LabelledCorpus, plan: FeaturePlan) -> dict[str, object]:
    names = json.dumps([s.name for s in plan.slices])
    return {
        "encoder": digest,
        "front_end": encoder.front_end,
        "corpus": corpus.digest,
        # the list of slices covers the other fields of clips
        "clips": {name: getattr(plan.clips, name) for name in ("seconds", "max_slices", "min_ratio")},
        "slices": sha256(names.encode()).hexdigest(),
        "with_frames": plan.with_frames,
        "readout": f"time mean; frames of {'all' if plan.frame_layers is None else plan.frame_layers} layers",
        "dtype": f"pooled float32, frames {FRAME_DTYPE}",
        "batch": SLICES_PER_BATCH,
        "chain": f"{CHAIN_VERSION}, decoded by libsndfile {soundfile.__libsndfile_version__}",
    }

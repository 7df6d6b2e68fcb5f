"""Frozen features on disk: computed once, spread over the ranks, gathered by (uid, slice).

The slices of a plan are cut into batches and the batches into parts, by their place in the plan and nothing else; a
part is one file and belongs to one rank. So every slice is encoded in the same company whatever the number of ranks,
and 1 rank gives the same bytes as N. A part that is there is not computed again; it appears under its name only when it
is whole.

Legend: L layers, M layers kept as frames, N slices, T frames, D width.
"""

import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from distributed.marble.corpus import Corpus, Slice, Track
from distributed.marble.encoders import FrozenEncoder
from distributed.marble.readout import FRAME_DTYPE, SliceFeatures, spread_layers
from distributed.marble.slice_audio import load_slice
from distributed.marble.tasks import Clips
from distributed.run_directory import write_atomically
from distributed.topology import Topology
from pupujepa.durable import atomic_file
from pupujepa.errors import UserError

log = logging.getLogger(__name__)

SLICES_PER_BATCH = 8
BATCHES_PER_PART = 4
MAX_PARTS = 4096


@dataclass(frozen=True)
class Plan:
    """The slices that one feature pass has to deliver, for all tasks that share a way of cutting.

    Attributes:
        slices: those with frames first.
        with_frames: how many of them need frames.
        frame_layers: most layers kept as frames.
    """

    clips: Clips
    slices: tuple[Slice, ...]
    with_frames: int
    frame_layers: int

    @property
    def slices_per_part(self) -> int:
        """A whole number of batches, larger for very long plans."""
        batches = -(-len(self.slices) // SLICES_PER_BATCH)
        return SLICES_PER_BATCH * max(BATCHES_PER_PART, -(-batches // MAX_PARTS))

    @property
    def parts(self) -> tuple[tuple[Slice, ...], ...]:
        """The slices of each part file."""
        size = self.slices_per_part
        return tuple(self.slices[i : i + size] for i in range(0, len(self.slices), size))


@dataclass(frozen=True)
class FeatureSet:
    """The part files of one encoder and plan, and where each slice lies in them."""

    folder: Path
    key: str
    place: dict[Slice, tuple[int, int]]

    def pooled(self, slices: Sequence[Slice]) -> Tensor:
        """Returns [L, N, 1, D]."""
        return self._gather(slices, "pooled").transpose(0, 1).unsqueeze(2)

    def frames(self, slices: Sequence[Slice]) -> Tensor:
        """Returns [M, N, T, D]."""
        return self._gather(slices, "frames").transpose(0, 1)

    def _gather(self, slices: Sequence[Slice], name: str) -> Tensor:
        wanted: dict[int, list[tuple[int, int]]] = {}
        for position, wanted_slice in enumerate(slices):
            part, row = self.place[wanted_slice]
            wanted.setdefault(part, []).append((position, row))
        out: Tensor | None = None
        for part, rows in sorted(wanted.items()):
            with safe_open(_part_path(self.folder, part), framework="pt") as file:
                values = file.get_tensor(name)
            if out is None:
                out = values.new_empty(len(slices), *values.shape[1:])
            positions, sources = zip(*rows, strict=True)
            out[list(positions)] = values[list(sources)]
        if out is None:
            raise ValueError("no slices were asked for")
        return out


def make_plan(clips: Clips, slices: Sequence[Slice], *, with_frames: Sequence[Slice], frame_layers: int) -> Plan:
    """Orders the slices: sorted, those that need frames first."""
    framed = sorted(set(with_frames))
    rest = sorted(set(slices) - set(framed))
    return Plan(clips, (*framed, *rest), len(framed), frame_layers)


def feature_key(encoder: FrozenEncoder, corpus: Corpus, plan: Plan) -> str:
    """Returns the name under which features are kept: everything that could change them is in it."""
    return sha256(json.dumps(_key_fields(encoder, corpus, plan), sort_keys=True).encode()).hexdigest()[:32]


def compute_features(
    encoder: FrozenEncoder,
    corpus: Corpus,
    plan: Plan,
    *,
    cache: Path,
    topology: Topology,
    on_slices: Callable[[int], None] = lambda count: None,
) -> Path:
    """Computes this rank's parts that are not there yet and returns the folder. The ranks must meet afterwards.

    Args:
        on_slices: told how many slices of this rank are ready, part by part.
    """
    folder = cache / feature_key(encoder, corpus, plan)
    folder.mkdir(parents=True, exist_ok=True)
    if topology.is_first:
        write_atomically(folder / "key.json", json.dumps(_key_fields(encoder, corpus, plan), indent=2))
    feature_pass = _FeaturePass(encoder, plan, {t.uid: t for t in corpus.tracks})
    with ThreadPoolExecutor(max_workers=2) as readers:
        for number, slices in enumerate(plan.parts):
            if number % topology.world_size != topology.rank:
                continue
            path = _part_path(folder, number)
            if _slices_of_part(path) != slices:
                _save(path, feature_pass.part(slices, readers), slices)
            on_slices(len(slices))
    return folder


def gather_features(folder: Path, plan: Plan) -> FeatureSet:
    """Indexes all parts by (uid, slice).

    Raises:
        UserError: a slice of the plan is in no part (a hole) or in two (a duplicate), or a part holds a stranger.
    """
    place: dict[Slice, tuple[int, int]] = {}
    wanted = set(plan.slices)
    for path in sorted(folder.glob("part-*.safetensors")):
        part = int(path.stem.removeprefix("part-"))
        for row, found in enumerate(_slices_of_part(path) or ()):
            if found in place:
                raise UserError(
                    f"{path}: slice {found} is also in part {place[found][0]}, so it would count twice; delete {folder}"
                )
            if found not in wanted:
                raise UserError(f"{path}: slice {found} belongs to no task of this evaluation; delete {folder}")
            place[found] = (part, row)
    missing = [s for s in plan.slices if s not in place]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(plan.slices)} slices have no features in {folder} (first: {missing[0]}), so "
            "scores would be those of another test set; all ranks need one shared folder: choose it with --cache"
        )
    return FeatureSet(folder, folder.name, place)


@dataclass(frozen=True)
class _FeaturePass:
    encoder: FrozenEncoder
    plan: Plan
    tracks: dict[str, Track]

    def part(self, slices: Sequence[Slice], readers: ThreadPoolExecutor) -> dict[str, Tensor]:
        """Returns the tensors of one part file; the readers load audio ahead of the encoder."""
        framed = set(self.plan.slices[: self.plan.with_frames])
        layers = spread_layers(len(self.encoder.layer_names), self.plan.frame_layers)
        batches = [slices[i : i + SLICES_PER_BATCH] for i in range(0, len(slices), SLICES_PER_BATCH)]
        loads = [[readers.submit(self._load, s) for s in batch] for batch in batches]
        pooled: list[Tensor] = []
        frames: list[Tensor] = []
        for batch, waiting in zip(batches, loads, strict=True):
            num_framed = sum(s in framed for s in batch)
            audio_BS = torch.from_numpy(np.stack([w.result() for w in waiting]))
            features = self.encoder.embed(audio_BS, frame_layers=layers if num_framed else ())
            _refuse_overflow(self.encoder, features, batch)
            pooled.append(features.pooled_BLD.float().cpu())
            if num_framed and features.frames_BMTD is not None:
                frames.append(features.frames_BMTD[:num_framed].to(FRAME_DTYPE).cpu())
        return {"pooled": torch.cat(pooled)} | ({"frames": torch.cat(frames)} if frames else {})

    def _load(self, which: Slice) -> np.ndarray:
        return load_slice(self.tracks[which.uid], which, self.plan.clips, rate_hz=self.encoder.sample_rate_hz)


def _refuse_overflow(encoder: FrozenEncoder, features: SliceFeatures, batch: Sequence[Slice]) -> None:
    limit = torch.finfo(FRAME_DTYPE).max
    values = [features.pooled_BLD] + ([] if features.frames_BMTD is None else [features.frames_BMTD])
    if not all(bool(v.isfinite().all()) and float(v.abs().max()) < limit for v in values):
        raise UserError(
            f"encoder {encoder.name!r} gives values that are not finite or beyond {limit:g} for one of {list(batch)}; "
            "no probe can be trained on them: look at the weights and at the audio"
        )


def _slices_of_part(path: Path) -> tuple[Slice, ...] | None:
    """Returns the slices that a part holds; None when it is not there or cannot be read."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            names = json.loads(file.metadata()["slices"])
    except SafetensorError as error:
        log.warning("%s cannot be read (%s); its slices are computed again", path, error)
        return None
    return tuple(Slice(*name) for name in names)


def _save(path: Path, tensors: dict[str, Tensor], slices: Sequence[Slice]) -> None:
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata={"slices": json.dumps([s.name for s in slices])})


def _part_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.safetensors"


def _key_fields(encoder: FrozenEncoder, corpus: Corpus, plan: Plan) -> dict[str, object]:
    names = json.dumps([s.name for s in plan.slices])
    return {
        "encoder": encoder.digest,
        "front_end": encoder.front_end,
        "corpus": corpus.digest,
        # what else the clips say is in the slices
        "clips": {
            "seconds": plan.clips.seconds,
            "max_slices": plan.clips.max_slices,
            "min_ratio": plan.clips.min_ratio,
        },
        "slices": sha256(names.encode()).hexdigest(),
        "with_frames": plan.with_frames,
        "readout": f"time mean; frames of {plan.frame_layers} layers",
        "dtype": f"pooled float32, frames {FRAME_DTYPE}",
        "batch": SLICES_PER_BATCH,
    }

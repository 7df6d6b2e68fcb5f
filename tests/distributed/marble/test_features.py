import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distributed.marble.corpus import Corpus, Slice, read_corpus
from distributed.marble.features import FeatureSet, Plan, compute_features, gather_features, make_plan
from distributed.marble.readout import SliceFeatures
from distributed.marble.tasks import Clips
from distributed.topology import Topology
from pupujepa.errors import UserError
from tests.distributed.marble.corpora import Recipe, make_corpus

CLIPS = Clips(seconds=0.1, max_slices=None)


@dataclass
class Fingerprint:
    """An encoder whose features tell which audio they come from, and that counts its work."""

    name: str = "fingerprint"
    digest: str = "fingerprint/1"
    front_end: str = "none"
    sample_rate_hz: int = 24_000
    layer_names: tuple[str, ...] = ("a", "b", "c")
    frame_rate_hz: float | None = 40.0
    only_tasks: frozenset[str] | None = None
    batches: list[int] = field(default_factory=list)

    def embed(self, audio_BS: Tensor, *, frame_layers: Sequence[int]) -> SliceFeatures:
        self.batches.append(len(audio_BS))
        frames_BTD = audio_BS.reshape(len(audio_BS), 4, -1)[..., :6]
        states = [frames_BTD * (layer + 1) for layer in range(3)]
        pooled = torch.stack([s.mean(1) for s in states], dim=1)
        return SliceFeatures(pooled, torch.stack([states[i] for i in frame_layers], dim=1) if frame_layers else None)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """27 tracks of 0.51 s: five slices each, 135 in all, which no batch, part or world size divides."""
    return read_corpus(make_corpus(tmp_path_factory.mktemp("c") / "c", Recipe(pieces=27, duration_s=0.51)))


def plan_of(corpus: Corpus) -> Plan:
    slices = [Slice(t.uid, i) for t in corpus.tracks for i in range(5)]
    return make_plan(CLIPS, slices, with_frames=slices[:37], frame_layers=2)


def computed(corpus: Corpus, cache: Path, world_size: int, encoder: Fingerprint | None = None) -> Path:
    """Runs the ranks one after the other."""
    for rank in reversed(range(world_size)):
        folder = compute_features(
            encoder or Fingerprint(),
            corpus,
            plan_of(corpus),
            cache=cache,
            topology=Topology(rank, world_size, rank),
        )
    return folder


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_any_number_of_ranks_writes_the_same_bytes(corpus: Corpus, tmp_path: Path, world_size: int):
    """1 rank == N ranks exactly, though neither batches nor parts divide evenly."""
    assert bytes_of(computed(corpus, tmp_path / "one", 1)) == bytes_of(computed(corpus, tmp_path / "many", world_size))


def test_features_come_back_by_slice_in_any_order(corpus: Corpus, tmp_path: Path):
    """Reading by (uid, slice) gives each slice its own audio's features, pooled for all and frames where planned."""
    plan = plan_of(corpus)
    features = gather_features(computed(corpus, tmp_path, 2), plan)
    asked = [plan.slices[i] for i in (100, 3, 36, 77, 3)]
    pooled = features.pooled(asked)
    assert pooled.shape == (3, 5, 1, 6)
    alone = torch.cat([features.pooled([s]) for s in asked], dim=1)
    assert torch.equal(pooled, alone)
    assert torch.equal(pooled[:, 1], pooled[:, 4])
    assert not torch.equal(pooled[:, 0], pooled[:, 1])
    frames = features.frames([plan.slices[36], plan.slices[0]])
    assert frames.shape == (2, 2, 4, 6)
    torch.testing.assert_close(
        frames[1].float().mean(1), features.pooled([plan.slices[36], plan.slices[0]])[2, :, 0], atol=1e-3, rtol=1e-2
    )


def test_what_is_there_is_not_computed_again(corpus: Corpus, tmp_path: Path):
    """After a kill only the missing part is made, and the result is that of an unbroken run."""
    folder = computed(corpus, tmp_path, 1)
    whole = bytes_of(folder)
    (folder / "part-00002.safetensors").unlink()
    (folder / ".part-00002.safetensors.123").write_bytes(b"half a part")
    encoder = Fingerprint()
    computed(corpus, tmp_path, 1, encoder)
    assert encoder.batches == [8, 8, 8, 8]
    (folder / ".part-00002.safetensors.123").unlink()
    assert bytes_of(folder) == whole


def test_a_damaged_part_is_made_again(corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A truncated file is noticed, named and replaced."""
    folder = computed(corpus, tmp_path, 1)
    whole = bytes_of(folder)
    part = folder / "part-00001.safetensors"
    part.write_bytes(part.read_bytes()[:40])
    computed(corpus, tmp_path, 1)
    assert bytes_of(folder) == whole
    assert "part-00001.safetensors cannot be read" in caplog.text


def test_another_encoder_corpus_or_plan_has_another_key(corpus: Corpus, tmp_path: Path):
    """Nothing that could change a feature is missing from the key."""
    plan = plan_of(corpus)
    other_corpus = Corpus(corpus.tracks, "other")
    shorter = make_plan(CLIPS, plan.slices[:-1], with_frames=plan.slices[:37], frame_layers=2)
    folders = {
        compute_features(e, c, p, cache=tmp_path, topology=Topology())
        for e, c, p in (
            (Fingerprint(), corpus, plan),
            (Fingerprint(digest="fingerprint/2"), corpus, plan),
            (Fingerprint(front_end="other"), corpus, plan),
            (Fingerprint(), other_corpus, plan),
            (Fingerprint(), corpus, shorter),
        )
    }
    assert len(folders) == 5


def test_holes_and_duplicates_are_refused(corpus: Corpus, tmp_path: Path):
    """A missing part, a part that is there twice and a part of another plan are errors that say what to do."""
    plan = plan_of(corpus)
    folder = computed(corpus, tmp_path, 1)
    part = folder / "part-00003.safetensors"
    shutil.copy(part, folder / "part-00009.safetensors")
    with pytest.raises(UserError, match="is also in part 3, so it would count twice"):
        gather_features(folder, plan)
    (folder / "part-00009.safetensors").unlink()
    part.unlink()
    with pytest.raises(UserError, match=r"32 of 135 slices have no features.*--cache"):
        gather_features(folder, plan)
    smaller = make_plan(CLIPS, plan.slices[:40], with_frames=plan.slices[:37], frame_layers=2)
    with pytest.raises(UserError, match="belongs to no task"):
        gather_features(folder, smaller)


def test_a_partial_last_window_is_padded_with_silence(tmp_path: Path):
    """Windows are cut first and resampled then; a last one of 80 % or more is filled up."""
    corpus = read_corpus(make_corpus(tmp_path / "c", Recipe(pieces=1, duration_s=0.19)))
    uid = corpus.tracks[0].uid
    plan = make_plan(CLIPS, [Slice(uid, 0), Slice(uid, 1)], with_frames=[Slice(uid, 1)], frame_layers=1)
    encoder = Fingerprint(sample_rate_hz=16_000)
    folder = compute_features(encoder, corpus, plan, cache=tmp_path / "f", topology=Topology())
    features: FeatureSet = gather_features(folder, plan)
    assert features.pooled(plan.slices).isfinite().all()


def test_features_that_overflow_are_refused(corpus: Corpus, tmp_path: Path):
    """Values that float16 cannot hold would become infinite and silently ruin a probe."""

    class Loud(Fingerprint):
        def embed(self, audio_BS: Tensor, *, frame_layers: Sequence[int]) -> SliceFeatures:
            features = super().embed(audio_BS, frame_layers=frame_layers)
            return SliceFeatures(features.pooled_BLD + 1e6, features.frames_BMTD)

    with pytest.raises(UserError, match="'fingerprint' gives values that are not finite or beyond 65504"):
        computed(corpus, tmp_path, 1, Loud())

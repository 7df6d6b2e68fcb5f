import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distributed.marble.datasets.audio_digests import with_audio_digests
from distributed.marble.datasets.corpus import LabelledCorpus, Slice, read_labelled_corpus
from distributed.marble.encoders.hidden_states import HowToEncode, SliceFeatures
from distributed.marble.encoders.pupujepa import load_frozen
from distributed.marble.features.features import (
    FeaturePlan,
    FeatureSet,
    compute_features,
    gather_features,
    plan_features,
)
from distributed.marble.features.store import PartStore
from distributed.marble.tasks.tasks import Clips
from distributed.processes.topology import Topology
from pupujepa.errors import UserError
from pupujepa.model.model import PupuJEPA
from pupujepa.weights.weights import load, save_release
from tests.distributed.marble.corpora import Recipe, make_corpus, read_rows, write_rows
from tests.processes import members, wait_until_gone

ROOT = Path(__file__).parents[4]
CLIPS = Clips(seconds=0.1, max_slices=None)


@dataclass
class Fingerprint:
    """An encoder with features that identify their audio; it counts its work."""

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
def corpus(tmp_path_factory: pytest.TempPathFactory) -> LabelledCorpus:
    """27 tracks of 0.51 s with five slices each; batch, part and world size do not divide the 135 slices."""
    return read_labelled_corpus(make_corpus(tmp_path_factory.mktemp("c") / "c", Recipe(pieces=27, duration_s=0.51)))


def plan_of(corpus: LabelledCorpus) -> FeaturePlan:
    slices = [Slice(t.uid, i) for t in corpus.tracks for i in range(5)]
    return plan_features(CLIPS, slices, with_frames=slices[:37], frame_layers=2)


def run_ranks(
    corpus: LabelledCorpus,
    cache: Path | str,
    world_size: int,
    encoder: Fingerprint | None = None,
    plan: FeaturePlan | None = None,
) -> PartStore:
    """Runs the ranks one after the other."""
    for rank in reversed(range(world_size)):
        store = compute_features(
            encoder or Fingerprint(),
            corpus,
            plan or plan_of(corpus),
            cache=cache,
            topology=Topology(rank, world_size, rank),
        )
    return store


def computed(corpus: LabelledCorpus, cache: Path, world_size: int, encoder: Fingerprint | None = None) -> Path:
    """Returns the folder of the parts."""
    return Path(run_ranks(corpus, cache, world_size, encoder).location)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_any_number_of_ranks_writes_the_same_bytes(corpus: LabelledCorpus, tmp_path: Path, world_size: int):
    """1 rank == N ranks exactly, though neither batches nor parts divide evenly."""
    assert bytes_of(computed(corpus, tmp_path / "one", 1)) == bytes_of(computed(corpus, tmp_path / "many", world_size))


def test_features_come_back_by_slice_in_any_order(corpus: LabelledCorpus, tmp_path: Path):
    """Reading by (uid, slice) returns the features of that slice's audio, pooled and frames."""
    plan = plan_of(corpus)
    features = gather_features(run_ranks(corpus, tmp_path, 2), plan)
    asked = [plan.slices[i] for i in (100, 3, 36, 77, 3)]
    pooled = features.read(asked, "pooled")
    assert pooled.shape == (3, 5, 1, 6)
    alone = torch.cat([features.read([s], "pooled") for s in asked], dim=1)
    assert torch.equal(pooled, alone)
    assert torch.equal(pooled[:, 1], pooled[:, 4])
    assert not torch.equal(pooled[:, 0], pooled[:, 1])
    frames = features.read([plan.slices[36], plan.slices[0]], "frames")
    assert frames.shape == (2, 2, 4, 6)
    torch.testing.assert_close(
        frames[1].float().mean(1),
        features.read([plan.slices[36], plan.slices[0]], "pooled")[2, :, 0],
        atol=1e-3,
        rtol=1e-2,
    )


def test_what_is_there_is_not_computed_again(corpus: LabelledCorpus, tmp_path: Path):
    """After a kill only the missing part is computed, and the result equals that of an uninterrupted run."""
    folder = computed(corpus, tmp_path, 1)
    whole = bytes_of(folder)
    (folder / "part-00002.safetensors").unlink()
    (folder / ".part-00002.safetensors.123").write_bytes(b"half a part")
    encoder = Fingerprint()
    computed(corpus, tmp_path, 1, encoder)
    assert encoder.batches == [8, 8, 8, 8]
    (folder / ".part-00002.safetensors.123").unlink()
    assert bytes_of(folder) == whole


def test_a_damaged_part_is_made_again(corpus: LabelledCorpus, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A truncated file is detected, named and replaced."""
    folder = computed(corpus, tmp_path, 1)
    whole = bytes_of(folder)
    part = folder / "part-00001.safetensors"
    part.write_bytes(part.read_bytes()[:40])
    computed(corpus, tmp_path, 1)
    assert bytes_of(folder) == whole
    assert "part-00001.safetensors cannot be read" in caplog.text


def test_another_encoder_corpus_or_plan_has_another_key(corpus: LabelledCorpus, tmp_path: Path):
    """The key depends on everything that could change a feature."""
    plan = plan_of(corpus)
    other_corpus = LabelledCorpus(corpus.tracks, "other")
    shorter = plan_features(CLIPS, plan.slices[:-1], with_frames=plan.slices[:37], frame_layers=2)
    folders = {
        compute_features(e, c, p, cache=tmp_path, topology=Topology()).location
        for e, c, p in (
            (Fingerprint(), corpus, plan),
            (Fingerprint(digest="fingerprint/2"), corpus, plan),
            (Fingerprint(front_end="other"), corpus, plan),
            (Fingerprint(), other_corpus, plan),
            (Fingerprint(), corpus, shorter),
        )
    }
    assert len(folders) == 5


def test_holes_and_duplicates_are_refused(corpus: LabelledCorpus, tmp_path: Path):
    """A missing part, a surplus part and a part of another plan are errors with a remedy."""
    plan = plan_of(corpus)
    store = run_ranks(corpus, tmp_path, 1)
    folder = Path(store.location)
    part = folder / "part-00003.safetensors"
    shutil.copy(part, folder / "part-00009.safetensors")
    with pytest.raises(UserError, match=r"part 9 .* belongs to no task .*, so slices could count twice"):
        gather_features(store, plan)
    (folder / "part-00009.safetensors").unlink()
    shutil.copy(part, folder / "part-00002.safetensors")
    with pytest.raises(UserError, match=r"part-00002.safetensors has other slices than its number implies"):
        gather_features(store, plan).read(plan.slices, "pooled")
    part.unlink()
    with pytest.raises(UserError, match=r"32 of 135 slices have no features.*--cache"):
        gather_features(store, plan)


def test_a_partial_last_window_is_padded_with_silence(tmp_path: Path):
    """Windows are cut before resampling; a last one of 80 % or more is padded."""
    corpus = read_labelled_corpus(make_corpus(tmp_path / "c", Recipe(pieces=1, duration_s=0.19)))
    uid = corpus.tracks[0].uid
    plan = plan_features(CLIPS, [Slice(uid, 0), Slice(uid, 1)], with_frames=[Slice(uid, 1)], frame_layers=1)
    encoder = Fingerprint(sample_rate_hz=16_000)
    store = compute_features(encoder, corpus, plan, cache=tmp_path / "f", topology=Topology())
    features: FeatureSet = gather_features(store, plan)
    assert features.read(plan.slices, "pooled").isfinite().all()


def test_features_that_overflow_are_refused(corpus: LabelledCorpus, tmp_path: Path):
    """Values beyond float16 are refused: as infinities they would silently ruin a probe."""

    class Loud(Fingerprint):
        def embed(self, audio_BS: Tensor, *, frame_layers: Sequence[int]) -> SliceFeatures:
            features = super().embed(audio_BS, frame_layers=frame_layers)
            return SliceFeatures(features.pooled_BLD + 1e6, features.frames_BMTD)

    with pytest.raises(UserError, match="'fingerprint' gives values that are not finite or beyond 65504"):
        computed(corpus, tmp_path, 1, Loud())


@pytest.mark.parametrize("slices", [1, 7, 31, 32, 33, 65])
def test_awkward_counts_are_gathered_alike_from_one_two_and_three_ranks(
    corpus: LabelledCorpus, tmp_path: Path, slices: int
):
    """Features are exactly equal with fewer slices than ranks or a batch, and around a full part."""
    every = plan_of(corpus).slices[:slices]
    plan = plan_features(CLIPS, every, with_frames=every[: slices // 2], frame_layers=None)
    read = []
    for world_size in (1, 2, 3):
        features = gather_features(run_ranks(corpus, tmp_path / str(world_size), world_size, plan=plan), plan)
        framed = features.read(plan.slices[: plan.with_frames], "frames") if plan.with_frames else torch.zeros(0)
        read.append((features.read(plan.slices[::-1], "pooled"), framed))
    for pooled, frames in read[1:]:
        assert torch.equal(pooled, read[0][0])
        assert torch.equal(frames, read[0][1])


KILLED = """
import os, sys, time
from pathlib import Path
from distributed.marble.datasets.corpus import read_labelled_corpus
from distributed.marble.features.features import compute_features
from distributed.processes.topology import Topology
from tests.distributed.marble.features import test_features

class Stuck(test_features.Fingerprint):
    def embed(self, audio_BS, *, frame_layers):
        if len(self.batches) == 6:
            os.write(1, b"stuck\\n")  # in one piece, also where PYTHONUNBUFFERED is set: two ranks share the pipe
            time.sleep(3600)
        return super().embed(audio_BS, frame_layers=frame_layers)

corpus = read_labelled_corpus(Path(sys.argv[1]))
rank = 0 if os.fork() else 1
compute_features(Stuck(), corpus, test_features.plan_of(corpus), cache=sys.argv[2], topology=Topology(rank, 2, rank))
"""


def test_after_a_kill_only_the_parts_that_were_not_whole_are_computed(corpus: LabelledCorpus, tmp_path: Path):
    """Two ranks are killed (-9) in their second parts: the two complete parts stay, three are computed."""
    folder = corpus.tracks[0].path.parents[1]
    command = [sys.executable, "-c", KILLED, str(folder), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ranks = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True)
    try:
        assert ranks.stdout is not None
        assert [ranks.stdout.readline() for _ in range(2)] == [b"stuck\n"] * 2
        pids = members(ranks.pid)
        assert len(pids) == 2
    finally:
        os.killpg(ranks.pid, signal.SIGKILL)
        ranks.communicate()
    wait_until_gone(pids)
    encoder = Fingerprint()
    store = run_ranks(corpus, tmp_path, 1, encoder)
    assert sum(encoder.batches) == 135 - 2 * 32
    whole = gather_features(run_ranks(corpus, tmp_path / "unbroken", 1), plan_of(corpus))
    resumed = gather_features(store, plan_of(corpus))
    assert torch.equal(resumed.read(plan_of(corpus).slices, "pooled"), whole.read(plan_of(corpus).slices, "pooled"))


def test_a_weight_a_line_or_a_byte_of_audio_makes_features_new(run_folder: Path, tmp_path: Path):
    """Stored features are reused if nothing changed, and never if a weight, the list or the audio did.

    The byte is in the middle of a file, whose length and time of change stay what they were.
    """
    folder = make_corpus(tmp_path / "c", Recipe(pieces=3, duration_s=8.0))
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)

    def count_of_new_parts() -> int:
        corpus = with_audio_digests(read_labelled_corpus(folder), cache=tmp_path / "f", topology=Topology())
        encoder = load_frozen(run, HowToEncode())
        plan = plan_features(
            CLIPS, [Slice(t.uid, i) for t in corpus.tracks for i in (0, 40)], with_frames=[], frame_layers=0
        )
        new: list[bool] = []
        compute_features(
            encoder,
            corpus,
            plan,
            cache=tmp_path / "f",
            topology=Topology(),
            on_slices=lambda count, computed: new.append(computed),
        )
        return sum(new)

    assert [count_of_new_parts(), count_of_new_parts()] == [1, 0]
    model: PupuJEPA = load(run / "export")
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    save_release(model, model.config, run / "export")
    assert [count_of_new_parts(), count_of_new_parts()] == [1, 0]
    rows = read_rows(folder)
    write_rows(folder, [rows[0] | {"duration_s": 7.9}, *rows[1:]])
    assert [count_of_new_parts(), count_of_new_parts()] == [1, 0]
    path = folder / rows[1]["path"]
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert [count_of_new_parts(), count_of_new_parts()] == [1, 0]

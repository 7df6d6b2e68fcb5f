"""The stream: equal global batches for every world, each sample once, and resume at any step by any world."""

import multiprocessing
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from data.order.layout import OrderError
from data.reading.reader import ShardReader
from data.shards.format import index_name, read_index
from data.shards.manifest import Manifest
from data.stream.batches import Batch
from data.stream.fixed_crops import draw_fixed_crops
from data.stream.stream import Stream, StreamConfig, StreamError, StreamState
from pupujepa.audio.log_mel import LOG_FLOOR, normalise
from pupujepa.training.masks import MaskConfig
from tests.data.shardsets import build_shard_set, make_mel

# torch's advice to users of few cores; here processes are started to see that their number does not matter
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

MASKS = MaskConfig(warmup_start=0.0, warmup_end=0.2)
STEPS_PER_EPOCH = 4
TOTAL_STEPS = 10

# one row of a batch as it can be compared: which draw of which sample, its crop, its mask, and the numbers themselves
Row = tuple[str, int, int, int, bytes, bytes]


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Manifest]:
    """34 samples in 6 shards of different sizes."""
    url = str(tmp_path_factory.mktemp("shards"))
    return url, build_shard_set(url, (7, 5, 6, 4, 9, 3))


def make_stream(
    shard_set: tuple[str, Manifest], world: tuple[int, int] = (0, 1), micro_batch: int = 2, **changes
) -> Stream:
    """A stream of rank, world = `world` over global batches of 8 from 4 lanes, with `changes` to config or options."""
    url, manifest = shard_set
    of_config = {name: changes.pop(name) for name in list(changes) if name in StreamConfig.__dataclass_fields__}
    base = StreamConfig(url=url, seed=3, crop_frames=32, global_batch=8, lanes=4, window_shards=2, workers=0)
    options = {"masks": MASKS, "total_steps": TOTAL_STEPS, **changes}
    config = replace(base, **of_config)
    return Stream(config, manifest=manifest, rank=world[0], world_size=world[1], micro_batch=micro_batch, **options)


def rows_of(batch: Batch) -> list[Row]:
    mask = torch.cat([batch.context, batch.target], dim=1).numpy()
    columns = (batch.uids, batch.draws.tolist(), batch.crop_starts.tolist(), batch.strategy.tolist())
    return [
        (*row, context_and_target.tobytes(), mel_TF.tobytes())
        for *row, context_and_target, mel_TF in zip(*columns, mask, batch.mel().numpy(), strict=True)
    ]


def global_batches(streams: Sequence[Stream], num_steps: int) -> list[Counter[Row]]:
    """The rows of each global batch, over all ranks and micro-batches."""
    batches: list[Counter[Row]] = [Counter() for _ in range(num_steps)]
    for stream in streams:
        first = stream.state().step
        for batch in islice(stream, num_steps * stream.micro_batches_per_step):
            batches[batch.step - first].update(rows_of(batch))
    return batches


@pytest.mark.parametrize(
    "world_size, workers, micro_batch",
    [(1, 0, 8), (2, 0, 1), (2, 0, 8), (4, 0, 4), (8, 0, 1), (8, 0, 2), (1, 1, 16), (1, 2, 4), (2, 2, 1), (4, 1, 2)],
)
def test_global_batches_are_the_same_for_any_world_workers_and_micro_batch(shard_set, world_size, workers, micro_batch):
    """Same samples, draws, crops, masks and values in global batch t, over an epoch's end;
    tests/data/order/test_epoch.py has every combination in integers.
    """
    of_lanes = {"lanes": 8, "global_batch": 16}
    expected = global_batches([make_stream(shard_set, **of_lanes)], num_steps=3)
    changes = {**of_lanes, "workers": workers}
    streams = [make_stream(shard_set, (rank, world_size), micro_batch, **changes) for rank in range(world_size)]
    assert global_batches(streams, num_steps=3) == expected


def test_the_order_within_a_rank_does_not_depend_on_workers(shard_set):
    """Batches come in the same order from 0 or 3 processes, so a run is the same bit for bit."""
    alone = [rows_of(batch) for batch in make_stream(shard_set)]
    with_workers = [rows_of(batch) for batch in make_stream(shard_set, workers=3)]
    assert len(alone) == TOTAL_STEPS * 4
    assert with_workers == alone


def test_every_sample_is_read_once_an_epoch_over_kills_and_changes_of_world(shard_set):
    """A ledger over two epochs that are left in the middle and taken up by other worlds: no sample twice, none lost
    but the counted rest.
    """
    ledger: list[Counter[str]] = [Counter(), Counter()]
    state = make_stream(shard_set).state()
    for world_size, num_steps in ((2, 3), (4, 2), (1, 1), (4, 2)):
        streams = [make_stream(shard_set, (rank, world_size), 1) for rank in range(world_size)]
        for stream in streams:
            stream.seek(state)
        for batch, step in zip(
            global_batches(streams, num_steps), range(state.step, state.step + num_steps), strict=True
        ):
            ledger[step // STEPS_PER_EPOCH].update(uid for uid, *_ in batch.elements())
        states = {stream.state() for stream in streams}
        assert len(states) == 1, "the state is the same on all ranks"
        state = states.pop()
    assert state.step == 8 and state.epoch == 2
    for epoch in ledger:
        assert set(epoch.values()) == {1}
        assert epoch.total() == 32
    assert ledger[0] != ledger[1], "another rest is left out"
    assert streams[0].counters()["left_out"] == 2 * 2


@pytest.mark.parametrize("workers", [0, 2])
def test_seeking_is_the_same_as_reading_up_to_there(shard_set, workers):
    """A stream after a seek to step t gives the batches of a straight one from t, with the masks' progress."""
    straight = [rows_of(batch) for batch in make_stream(shard_set) if batch.step >= 5]
    state = StreamState(shard_set[1].digest, seed=3, epoch=1, step=5)
    sought = make_stream(shard_set, workers=workers)
    sought.seek(state)
    assert [rows_of(batch) for batch in sought] == straight


def test_resume_reads_only_what_its_first_batch_needs(shard_set):
    """Nothing is replayed: after a seek, a micro-batch reads only its own samples and the indices of their shards."""
    url, manifest = shard_set
    stream = make_stream(shard_set)
    stream.seek(StreamState(manifest.digest, seed=3, epoch=1, step=6))
    batch = next(iter(stream))
    reader = ShardReader(url, manifest)
    places = {
        reader.uid(shard, i): (shard, i) for shard, entry in enumerate(manifest.shards) for i in range(entry.samples)
    }
    paths = [Path(url) / index_name(entry.name) for entry in manifest.shards]
    index_of, read = [read_index(path) for path in paths], [places[uid] for uid in batch.uids]
    payload = sum(index_of[shard].mel_bytes[i] + index_of[shard].json_bytes[i] for shard, i in read)
    padding = 2 * 512 * len(read)
    indices = sum(paths[shard].stat().st_size for shard in {shard for shard, _ in read})
    assert payload + indices <= stream.counters()["bytes_read"] <= payload + indices + padding
    reader.close()


def test_a_step_counts_once_all_its_micro_batches_were_handed_out(shard_set):
    """`state` stays at step t until its last micro-batch, and a half-read step is restarted."""
    stream = make_stream(shard_set, micro_batch=2)
    steps = [(batch.step, batch.micro, stream.state().step) for batch in islice(stream, 6)]
    assert steps == [(0, 0, 0), (0, 1, 0), (0, 2, 0), (0, 3, 1), (1, 0, 1), (1, 1, 1)]
    again = next(iter(stream))
    assert (again.step, again.micro) == (1, 0)


def test_all_ranks_have_the_same_number_of_steps(shard_set):
    """Ranks with lanes of different lengths make equally many batches, so no rank waits in a collective for ever."""
    lengths = [sum(1 for _ in make_stream(shard_set, (rank, 4), 2)) for rank in range(4)]
    assert lengths == [TOTAL_STEPS] * 4
    assert make_stream(shard_set).steps_per_epoch == 34 // 8 == STEPS_PER_EPOCH


def test_crops_are_cut_normalised_and_placed_as_they_say(shard_set):
    """A batch's values are the normalised frames [start, start + 32) of the sample with its uid."""
    _, manifest = shard_set
    batch = next(iter(make_stream(shard_set, micro_batch=8)))
    assert batch.codes.dtype == torch.uint8
    assert batch.mel().dtype == torch.float32 and batch.mel().shape == (8, 32, 128)
    for uid, start, mel_TF in zip(batch.uids, batch.crop_starts.tolist(), batch.mel()):
        number = int(uid.removeprefix("track").removesuffix("-0000"))
        whole_TF = torch.from_numpy(make_mel(number, 40 + number % 9))
        expected_TF = normalise(whole_TF[start : start + 32], manifest.mean, manifest.std)
        torch.testing.assert_close(mel_TF, expected_TF, atol=1e-5, rtol=0)
    assert len(set(batch.crop_starts.tolist())) > 2


def test_epochs_cut_other_crops_and_masks(shard_set):
    """The same sample has another crop and another mask in another epoch."""
    seen: dict[str, set] = {}
    for batch in make_stream(shard_set):
        for uid, _, start, _, mask, _ in rows_of(batch):
            seen.setdefault(uid, set()).add((start, mask))
    repeated = [crops for crops in seen.values() if len(crops) > 1]
    assert len(repeated) > 25


def test_masks_have_constant_counts_and_cover_the_grid(shard_set):
    """Context and targets are 13 and 51 of 64 patches in every row, disjoint; strategies differ between samples."""
    strategies: Counter[int] = Counter()
    for batch in make_stream(shard_set, micro_batch=4):
        assert batch.context.shape == (4, 13) and batch.target.shape == (4, 51)
        assert batch.context.dtype == batch.target.dtype == batch.strategy.dtype == torch.int64
        both = torch.cat([batch.context, batch.target], dim=1).sort(dim=1).values
        assert torch.equal(both, torch.arange(64).expand(4, 64))
        strategies.update(batch.strategy.tolist())
    assert set(strategies) == {0, 1, 2}


def test_one_strategy_for_each_global_batch_when_asked_for(shard_set):
    """With per_sample=False all ranks and micro-batches of a step draw one strategy."""
    masks = replace(MASKS, per_sample=False)
    strategies = [set() for _ in range(TOTAL_STEPS)]
    for rank in (0, 1):
        for batch in make_stream(shard_set, (rank, 2), 1, masks=masks):
            strategies[batch.step] |= set(batch.strategy.tolist())
    assert all(len(of_step) == 1 for of_step in strategies)
    assert len(set.union(*strategies)) > 1


def test_several_crops_of_a_sample_differ_and_are_all_drawn(shard_set):
    """crops_per_sample=3 gives each sample three draws per epoch, each with its own crop and mask."""
    stream = make_stream(shard_set, crops_per_sample=3, total_steps=12)
    assert stream.steps_per_epoch == 34 * 3 // 8 == 12
    rows = [row for batch in stream for row in rows_of(batch)]
    assert len({row[:2] for row in rows}) == len(rows) == 96
    assert {draw for _, draw, *_ in rows} == {0, 1, 2}
    assert len({mask for *_, mask, _ in rows}) > 90


def test_short_samples_are_padded_with_silence_and_counted(tmp_path):
    """A sample shorter than the crop ends in the normalised log floor."""
    manifest = build_shard_set(str(tmp_path), (8,), num_frames=lambda number: 20 if number < 3 else 50)
    stream = make_stream((str(tmp_path), manifest), micro_batch=8, total_steps=1, lanes=1)
    batch = next(iter(stream))
    silence = (LOG_FLOOR - manifest.mean) / (manifest.std + 1e-8)
    padded = [mel_TF for mel_TF in batch.mel() if bool((mel_TF[20:] - silence).abs().max() < 1e-5)]
    assert len(padded) == stream.counters()["padded"] == 3
    assert all(mel_TF[19].std() > 0.1 for mel_TF in padded)


def test_float16_shards_without_masks(tmp_path):
    """Crops of float16 shards stay float16."""
    manifest = build_shard_set(str(tmp_path), (8,), dtype="float16", moments=(1.0, 4.0))
    stream = make_stream((str(tmp_path), manifest), micro_batch=8, lanes=1, masks=None)
    batch = next(iter(stream))
    number = int(batch.uids[0].removeprefix("track").removesuffix("-0000"))
    start = int(batch.crop_starts[0])
    expected_TF = (make_mel(number, 40 + number % 9)[start : start + 32] - 1.0) / 4.0
    assert batch.codes.dtype == torch.float16
    np.testing.assert_allclose(batch.mel()[0].numpy(), expected_TF, atol=2e-3)
    assert batch.context.shape == batch.target.shape == (8, 0) and batch.strategy.tolist() == [-1] * 8


def test_workers_are_no_forks_of_training(shard_set):
    """A clean server forks each worker: S3 clients do not survive a fork."""
    before = {process.pid for process in multiprocessing.active_children()}
    batches = iter(make_stream(shard_set, workers=2))
    next(batches)
    workers = [process for process in multiprocessing.active_children() if process.pid not in before]
    [server] = {psutil.Process(worker.pid).ppid() for worker in workers}
    assert len(workers) == 2
    assert psutil.Process(server).ppid() == os.getpid()
    batches.close()


def test_a_stream_can_be_left_and_sought_again(shard_set):
    """Seeking during an iteration ends it with an error instead of mixing two positions."""
    stream = make_stream(shard_set)
    start = stream.state()
    iterator = iter(stream)
    first = next(iterator)
    stream.seek(start)
    with pytest.raises(StreamError, match="begin a new iteration"):
        next(iterator)
    assert rows_of(next(iter(stream))) == rows_of(first)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"manifest_digest": "0" * 64}, r"shard set \(manifest digest\) 0000.* use the same data"),
        ({"seed": 4}, r"made with seed 4, this stream has 3"),
        ({"epoch": 2}, r"epoch at step 5 2, this stream has 1"),
        ({"layout": "lanes=2"}, r"layout lanes=2, this stream has lanes=4 global_batch=8"),
    ],
)
def test_a_state_of_other_data_or_settings_is_refused(shard_set, changes, message):
    """Resuming would repeat some samples and lose others."""
    stream = make_stream(shard_set)
    state = replace(StreamState(shard_set[1].digest, seed=3, epoch=1, step=5), **changes)
    with pytest.raises(StreamError, match=message):
        stream.seek(state)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"world": (0, 3)}, OrderError, "lanes 4 is not a multiple of the world size 3"),
        ({"micro_batch": 3}, OrderError, "which micro_batch 3 does not divide"),
        ({"global_batch": 64}, OrderError, "fewer than one global batch of 64"),
        ({"crop_frames": 30}, StreamError, "30 frames .* use crop_frames 28"),
        ({"total_steps": None}, StreamError, "total_steps is not set, but masks"),
        ({"workers": -1}, StreamError, "workers -1"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_before_anything_starts(shard_set, changes, error, message):
    """Each error has the number and a remedy."""
    with pytest.raises(error, match=message):
        make_stream(shard_set, **changes)


def test_random_access_reads_what_was_written(shard_set):
    """`ShardReader.read` returns the log-mel spectrogram before normalisation, and the sample's JSON."""
    reader = ShardReader(*shard_set)
    mel_TF, info = reader.read(1, 2)
    assert info["uid"] == reader.uid(1, 2) == "track9-0000"
    assert mel_TF.dtype == np.float32
    np.testing.assert_allclose(mel_TF, make_mel(9, 40), atol=1e-5)
    reader.close()


def test_draw_fixed_crops_are_fixed_by_their_seed(shard_set):
    """The same crops of distinct samples every time, not normalised; another seed gives others."""
    url, _ = shard_set
    mel_NTF, uids = draw_fixed_crops(url, 10, crop_frames=32, seed=1)
    again_NTF, again = draw_fixed_crops(url, 10, crop_frames=32, seed=1)
    assert mel_NTF.shape == (10, 32, 128) and len(set(uids)) == 10
    assert uids == again and np.array_equal(mel_NTF, again_NTF)
    assert draw_fixed_crops(url, 10, crop_frames=32, seed=2)[1] != uids
    assert mel_NTF.min() >= LOG_FLOOR

"""A stream over damaged shards and stores: a named error or a logged stand-in, never a silent loss."""

import errno
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from data.reading.cache import ShardCache
from data.reading.fetching import Tally
from data.reading.reader import ShardReader
from data.reading.room import CacheConfig, fetch_lock
from data.shards.format import ShardError, index_name, read_index, write_index, write_shard
from data.shards.manifest import Manifest, read_manifest, write_manifest
from data.store.files import MissingObjectError, StoreError
from data.store.store import open_store
from data.stream.batches import CropStage
from data.stream.corpora import StreamCorpus
from data.stream.open_corpora import node_cache
from data.stream.stream import Stream, StreamConfig, StreamError
from data.stream.workers import WorkerLostError, _whole_deliveries
from pupujepa.errors import UserError
from pupujepa.training.masks import MaskConfig
from tests.data.shardsets import build_shard_set, make_entry
from tests.faultproxy import Fault

# torch's advice to users of few cores; here processes are started to see that their number does not matter
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

STEPS = 8  # two epochs of four


def make_stream(url: str, manifest: Manifest, world: tuple[int, int] = (0, 1), **changes) -> Stream:
    """A stream over global batches of 8 from 4 lanes, two epochs long, that tolerates damage."""
    config = StreamConfig(url=url, seed=3, crop_frames=32, global_batch=8, lanes=4, window_shards=2, workers=0)
    config = replace(config, **{"max_bad_fraction": 0.2, **changes})
    options = {"micro_batch": 2, "masks": MaskConfig(), "total_steps": STEPS}
    return Stream(config, manifest=manifest, rank=world[0], world_size=world[1], **options)


def rows_of_steps(*streams: Stream) -> list[Counter]:
    """(uid, draw, crop, mask, values) of each row of each global batch."""
    steps: list[Counter] = [Counter() for _ in range(STEPS)]
    for stream in streams:
        for batch in stream:
            columns = zip(batch.uids, batch.draws.tolist(), batch.crop_starts.tolist(), batch.target, batch.mel())
            steps[batch.step].update(
                (*row, mask.numpy().tobytes(), mel.numpy().tobytes()) for *row, mask, mel in columns
            )
    return steps


@pytest.fixture
def local_set(tmp_path: Path) -> tuple[str, Manifest]:
    """34 samples in 6 shards, in a folder named by a file:// url."""
    url = (tmp_path / "shards").as_uri()
    return url, build_shard_set(url, (7, 5, 6, 4, 9, 3))


@pytest.fixture
def s3_set(bucket: str, tmp_path: Path) -> tuple[str, Manifest, dict]:
    """The same set in a bucket, and the settings of a node-local cache under tmp_path."""
    manifest = build_shard_set(bucket, (7, 5, 6, 4, 9, 3))
    return bucket, manifest, {"cache_dir": str(tmp_path / "cache"), "cache_bytes": 10**8}


def shard_file(url: str, name: str) -> Path:
    path = open_store(url).local_path(name)
    assert path is not None
    return path


def flip_bit_of(url: str, manifest: Manifest, shard: int, sample: int) -> str:
    """Flips a bit in the middle of a sample's array, in the store, and returns the sample's uid."""
    store, name = open_store(url), manifest.shards[shard].name
    index = read_index(store.read(index_name(name)))
    content = bytearray(store.read(name))
    content[index.mel_offset[sample] + index.mel_bytes[sample] // 2] ^= 1
    store.write(name, bytes(content))
    return index.uid[sample]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_local_shard_is_a_named_error(local_set, workers):
    """The error reaches the training process as one sentence: shard, cause, remedy. It is not the end of data."""
    url, manifest = local_set
    os.truncate(shard_file(url, manifest.shards[2].name), 10_000)
    with pytest.raises(ShardError) as caught:
        rows_of_steps(make_stream(url, manifest, workers=workers))
    assert re.search(r"shard .*shard-000002.tar has 10000 bytes .* truncated; restore it", str(caught.value))
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("suffix", ["", ".idx"])
def test_a_missing_local_shard_or_index_is_a_named_error(local_set, workers, suffix):
    """A missing index is an error like a missing shard."""
    url, manifest = local_set
    shard_file(url, manifest.shards[1].name + suffix).unlink()
    with pytest.raises(MissingObjectError, match=rf"shard-000001.tar{suffix}.* does not exist.*restore"):
        rows_of_steps(make_stream(url, manifest, workers=workers))


def test_an_index_of_other_samples_is_a_named_error(local_set):
    """An index that is not the manifest's would send reads to the wrong bytes."""
    url, manifest = local_set
    path = shard_file(url, index_name(manifest.shards[0].name))
    path.write_bytes(path.read_bytes().replace(b"track0", b"track9"))
    with pytest.raises(ShardError, match=r"shard-000000.tar.idx is not the index that the manifest names"):
        rows_of_steps(make_stream(url, manifest))


def test_an_index_with_too_few_samples_is_a_named_error(local_set):
    """A manifest that counts more samples than the index lists would lose them."""
    url, manifest = local_set
    entries = [replace(manifest.shards[0], samples=8), *manifest.shards[1:]]
    with pytest.raises(ShardError, match="lists 7 samples and the manifest 8"):
        rows_of_steps(make_stream(url, replace(manifest, shards=tuple(entries))))


def test_a_shard_cut_while_it_is_read_is_a_named_error(local_set):
    """A file that shrinks under the reader is cut, not a damaged sample."""
    url, manifest = local_set
    reader = ShardReader(url, manifest)
    reader.read(0, 0)
    os.truncate(shard_file(url, manifest.shards[0].name), 6000)
    with pytest.raises(ShardError, match="truncated"):
        reader.read(0, 6)
    reader.close()


@pytest.mark.parametrize("world_size, workers", [(1, 0), (1, 2), (2, 0)])
def test_a_flipped_bit_costs_one_sample_that_is_named_and_replaced(local_set, caplog, world_size, workers):
    """All other rows are unchanged; the stand-in is the same for any world and worker count, and is counted."""
    url, manifest = local_set
    whole = rows_of_steps(make_stream(url, manifest))
    uid = flip_bit_of(url, manifest, shard=4, sample=3)
    streams = [make_stream(url, manifest, (rank, world_size), workers=workers) for rank in range(world_size)]
    damaged = rows_of_steps(*streams)
    alone = rows_of_steps(make_stream(url, manifest))
    assert damaged == alone
    draws = sum(row[0] == uid for step in whole for row in step)
    assert draws > 0
    assert sum(stream.counters()["stand_ins"] for stream in streams) == draws
    for before, after in zip(whole, damaged, strict=True):
        lost, gained = before - after, after - before
        assert {row[0] for row in lost} <= {uid}
        assert lost.total() == gained.total() and uid not in {row[0] for row in after}
    if workers == 0:
        assert re.search(rf"skipping sample {uid}: .* is damaged: .*crc32 differs.* stands in for it", caplog.text)


def test_a_stand_in_comes_from_the_same_lane_with_a_crop_of_its_own(local_set):
    """So the stand-in's own row, with its own crop, is not doubled."""
    url, manifest = local_set
    whole = rows_of_steps(make_stream(url, manifest))
    flip_bit_of(url, manifest, shard=0, sample=0)
    damaged = rows_of_steps(make_stream(url, manifest))
    gained = [row for before, after in zip(whole, damaged) for row in (after - before)]
    assert gained and all(draw >= 1 for _, draw, *_ in gained)
    assert max(Counter(row for step in damaged for row in step).values()) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_damaged_samples_stop_the_run_with_the_list(local_set, workers):
    """Above max_bad_fraction the error names the samples and the command to run."""
    url, manifest = local_set
    uids = {flip_bit_of(url, manifest, shard=4, sample=sample) for sample in range(9)}
    with pytest.raises(StreamError) as caught:
        rows_of_steps(make_stream(url, manifest, workers=workers, max_bad_fraction=0.1))
    found = re.fullmatch(
        r"4 of the 32 samples of rank 0 in epoch 0 are damaged, more than max_bad_fraction 0.1: (.*); "
        r"run `python -m data verify .*`, then restore the shards or build them again",
        str(caught.value),
    )
    assert found and set(found[1].split()) < uids and len(found[1].split()) == 4


def test_a_lane_without_a_good_sample_is_a_named_error(tmp_path):
    """Without a stand-in, the run stops and names the shard."""
    manifest = build_shard_set(str(tmp_path), (4, 4, 4, 4))
    for sample in range(4):
        flip_bit_of(str(tmp_path), manifest, shard=1, sample=sample)
    stream = make_stream(str(tmp_path), manifest, window_shards=1, lanes=4, max_bad_fraction=1.0)
    with pytest.raises(ShardError, match=r"all samples of lane \d are damaged, shard-000001.tar the last"):
        rows_of_steps(stream)


def test_a_sample_that_cannot_be_decoded_is_replaced_too(local_set, caplog):
    """A wrongly written member has the right crc32; parsing finds it."""
    url, manifest = local_set
    index = read_index(open_store(url).read(index_name(manifest.shards[0].name)))
    webdataset_samples = [
        {"info": {"uid": uid, "frames": 40}, "mel": np.zeros((40, 128), np.float64 if i == 2 else np.uint8)}
        for i, uid in enumerate(index.uid)
    ]
    stream = io.BytesIO()
    written = write_shard(stream, webdataset_samples)
    sidecar = write_index(written.index)
    name = manifest.shards[0].name
    open_store(url).write(name, stream.getvalue())
    open_store(url).write(index_name(name), sidecar)
    entry = make_entry(name, stream.getvalue(), sidecar, samples=7, frames=280)
    changed = replace(manifest, shards=(entry, *manifest.shards[1:]))
    write_manifest(url, changed)
    counters = make_stream(url, read_manifest(url))
    uids = {row[0] for step in rows_of_steps(counters) for row in step}
    assert index.uid[2] not in uids and set(index.uid) - {index.uid[2]} <= uids
    assert counters.counters()["stand_ins"] > 0
    assert "its array is float64 [40, 128], not uint8 or float16 [T, F]" in caplog.text


def test_damage_that_passes_is_read_again_and_costs_nothing(local_set, monkeypatch):
    """A sample that is intact on the second read is used: no stand-in, one retry."""
    url, manifest = local_set
    whole = rows_of_steps(make_stream(url, manifest))
    preadv, reads = os.preadv, Counter()

    def preadv_badly_once(file: int, buffers: list[memoryview], offset: int) -> int:
        reads["all"] += 1
        length = preadv(file, buffers, offset)
        if reads["all"] == 5:
            buffers[0][length - 600 : length] = bytes(600)
        return length

    monkeypatch.setattr(os, "preadv", preadv_badly_once)
    stream = make_stream(url, manifest)
    assert rows_of_steps(stream) == whole
    assert (stream.counters()["stand_ins"], stream.counters()["retries"]) == (0, 1)


class Dying(CropStage):
    def __call__(self, sample: dict, *, tally: Tally) -> dict:
        if sample["place"].step == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(sample, tally=tally)


class Stumbling(CropStage):
    def __call__(self, sample: dict, *, tally: Tally) -> dict:
        raise KeyError("a bug in a stage")


def with_crop_stage(stream: Stream, stage: type[CropStage]) -> Stream:
    """The stream, whose workers crop by another class."""
    stream._recipe = replace(stream._recipe, crop=stage(**vars(stream._recipe.crop)))
    return stream


def test_a_killed_worker_is_an_error_not_a_hang(local_set):
    """The out-of-memory killer kills workers; the training process raises an error."""
    url, manifest = local_set
    config = StreamConfig(url=url, crop_frames=32, global_batch=8, lanes=4, workers=1)
    stream = Stream(config, manifest=manifest, rank=0, world_size=1, micro_batch=8)
    with pytest.raises(
        WorkerLostError, match=r"data worker 0 \(process \d+\) was killed by SIGKILL, so no batch"
    ) as lost:
        list(islice(with_crop_stage(stream, Dying), 20))
    assert lost.value.exit_code == 86, "slurm/requeue.sh starts the job again"


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset by peer"), EOFError(), FileNotFoundError("socket")])
def test_a_worker_killed_while_it_hands_over_a_batch_is_the_same_error(error):
    """The training process only sees a broken connection, which would explain nothing."""

    def broken():
        yield "first"
        raise error

    deliveries = _whole_deliveries(broken())
    assert next(deliveries) == "first"
    with pytest.raises(WorkerLostError, match=r"a data worker ended, so no batch follows.*kernel's log"):
        next(deliveries)


def test_a_workers_own_error_stays_what_it_is():
    """torch raises it with its own type, with the worker's traceback as the message."""

    def failing():
        yield from ()
        raise FileNotFoundError("Caught FileNotFoundError in DataLoader worker process 0.\nOriginal Traceback ...")

    with pytest.raises(FileNotFoundError, match="Original Traceback"):
        next(_whole_deliveries(failing()))


_SIGNALLED = """
import os, signal, sys
from data.shards.manifest import read_manifest
from data.stream.stream import Stream, StreamConfig

if __name__ == "__main__":
    received = []
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda number, frame: received.append(number))
    config = StreamConfig(url=sys.argv[1], crop_frames=32, global_batch=8, lanes=4, workers=2)
    stream = Stream(config, manifest=read_manifest(sys.argv[1]), rank=0, world_size=1, micro_batch=8, total_steps=30)
    for batch in stream:
        if batch.step in (2, 15):
            os.killpg(0, signal.SIGUSR2 if batch.step == 2 else signal.SIGTERM)
    print(batch.step, *map(int, received))
"""


def test_signals_to_the_whole_job_step_reach_the_training_process_alone(local_set, tmp_path):
    """SLURM signals every process of a step; if workers died of it, the run would end before it is saved."""
    url, _ = local_set
    script = tmp_path / "signalled.py"
    script.write_text(_SIGNALLED)
    root = Path(__file__).parents[2]
    command = [sys.executable, str(script), url]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    run = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=root, env=environment, start_new_session=True
    )
    assert run.stdout.split() == ["29", str(int(signal.SIGUSR2)), str(int(signal.SIGTERM))], run.stderr


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_in_a_stage_is_raised_as_it_is(local_set, workers):
    """Errors that are not the user's data keep their type and traceback."""
    url, manifest = local_set
    config = StreamConfig(url=url, crop_frames=32, global_batch=8, lanes=4, workers=workers)
    stream = Stream(config, manifest=manifest, rank=0, world_size=1, micro_batch=8)
    with pytest.raises(KeyError, match="a bug in a stage"):
        next(iter(with_crop_stage(stream, Stumbling)))


def test_s3_gives_the_same_batches_as_a_folder(local_set, s3_set):
    """The location of the shards changes nothing, for one rank or two, with and without workers."""
    url, manifest = local_set
    bucket, s3_manifest, cache = s3_set
    assert s3_manifest.digest == manifest.digest
    whole = rows_of_steps(make_stream(url, manifest))
    assert rows_of_steps(make_stream(bucket, s3_manifest, **cache)) == whole
    ranks = [make_stream(bucket, s3_manifest, (rank, 2), workers=2 * rank, **cache) for rank in range(2)]
    assert rows_of_steps(*ranks) == whole
    assert ranks[1].counters()["cache_hits"] > 0


def test_each_shard_crosses_the_network_once_for_all_ranks_and_epochs(faulty_s3, bucket, tmp_path):
    """Two ranks of one node read two epochs; the server gets one request for each shard and one for its index."""
    manifest = build_shard_set(bucket, (7, 5, 6, 4, 9, 3))
    faulty_s3.inject()
    cache = {"cache_dir": str(tmp_path / "cache"), "cache_bytes": 10**8}
    ranks = [make_stream(bucket, manifest, (rank, 2), **cache) for rank in range(2)]
    rows_of_steps(*ranks)
    gets = Counter(path.partition("?")[0].rpartition("/")[2] for method, path in faulty_s3.requests if method == "GET")
    assert gets == {name: 1 for entry in manifest.shards for name in (entry.name, index_name(entry.name))}
    sizes = [path.stat().st_size for path in (tmp_path / "cache").glob("*/*.tar*")]
    assert sum(rank.counters()["bytes_read"] for rank in ranks) == sum(sizes)


@pytest.mark.parametrize("kind", ["429", "bitflip"])
def test_faults_on_the_way_of_an_index_change_nothing(local_set, bucket, faulty_s3, tmp_path, kind):
    """Indices are retried and compared with their digests, like shards (see test_faults)."""
    whole = rows_of_steps(make_stream(*local_set))
    manifest = build_shard_set(bucket, (7, 5, 6, 4, 9, 3))
    faulty_s3.inject(Fault(kind, match=".idx"))
    stream = make_stream(bucket, manifest, cache_dir=str(tmp_path / "cache"), cache_bytes=10**8)
    assert rows_of_steps(stream) == whole
    assert faulty_s3.struck == [kind]
    counters = stream.counters()
    assert counters["retries"] >= 1 and counters["stand_ins"] == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_object_is_a_named_error(s3_set, workers):
    """An object that is shorter in the store than in the manifest."""
    bucket, manifest, cache = s3_set
    store, name = open_store(bucket), manifest.shards[3].name
    store.write(name, store.read(name)[:5000])
    with pytest.raises(ShardError, match=rf"shard {bucket}/{name} has 5000 bytes .* truncated; restore it"):
        rows_of_steps(make_stream(bucket, manifest, workers=workers, **cache))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_object_is_a_named_error(s3_set, workers):
    """An object that is in the manifest but not in the store."""
    bucket, manifest, cache = s3_set
    open_store(bucket).remove(manifest.shards[5].name)
    with pytest.raises(MissingObjectError, match=rf"{bucket}/{manifest.shards[5].name} does not exist .* restore"):
        rows_of_steps(make_stream(bucket, manifest, workers=workers, **cache))


def test_a_bit_flipped_in_the_store_costs_one_sample(local_set, s3_set, caplog):
    """The shard is fetched again in vain, the damage is logged, and one sample is named and replaced."""
    bucket, manifest, cache = s3_set
    uid = flip_bit_of(bucket, manifest, shard=4, sample=3)
    flip_bit_of(local_set[0], manifest, shard=4, sample=3)
    stream = make_stream(bucket, manifest, **cache)
    assert rows_of_steps(stream) == rows_of_steps(make_stream(*local_set))
    assert stream.counters()["stand_ins"] > 0
    assert f"{bucket}/{manifest.shards[4].name} is damaged in the store (sample {uid}: mel.npy" in caplog.text
    assert f"skipping sample {uid}" in caplog.text


def test_a_bit_flipped_in_the_cache_is_fetched_again(local_set, s3_set, tmp_path):
    """The node's disk can rot too: the cached shard is replaced by a whole one; no stand-in."""
    bucket, manifest, cache = s3_set
    whole = rows_of_steps(make_stream(*local_set))
    rows_of_steps(make_stream(bucket, manifest, **cache))
    for shard in (tmp_path / "cache").glob("*/*.tar"):
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 255
        shard.write_bytes(bytes(content))
    stream = make_stream(bucket, manifest, **cache)
    assert rows_of_steps(stream) == whole
    assert stream.counters()["retries"] > 0 and stream.counters()["stand_ins"] == 0


def test_wrong_credentials_are_one_sentence(s3_set, monkeypatch):
    """Workers use the keys of the training process at the start of the stream."""
    bucket, manifest, cache = s3_set
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match="refuses these credentials") as caught:
        rows_of_steps(make_stream(bucket, manifest, workers=1, **cache))
    assert "\n" not in str(caught.value)


def test_a_cache_that_cannot_hold_a_window_is_refused_at_once(s3_set):
    """The error comes before any fetch, with the number of bytes; all ranks that share the cache count."""
    bucket, manifest, cache = s3_set
    with pytest.raises(StreamError, match=r"cache_bytes 50000 cannot hold the 4 lanes x 2 shards .* up to \d+ bytes"):
        make_stream(bucket, manifest, **{**cache, "cache_bytes": 50_000})
    shards_of_a_rank = sorted(shard.bytes for shard in manifest.shards)[-2:]
    for_one = replace(make_stream(bucket, manifest, **cache).config, cache_bytes=sum(shards_of_a_rank))
    alone = {"manifest": manifest, "rank": 0, "world_size": 4, "micro_batch": 2}
    Stream(for_one, **alone)
    with pytest.raises(StreamError, match="cannot hold the 2 lanes x 2 shards that a node reads at a time"):
        Stream(for_one, **alone, ranks_of_node=2)


def test_random_access_to_a_bucket_reads_ranges_and_checks_them(bucket, faulty_s3, local_set):
    """Without a cache a sample takes two requests; a bit flipped on the way is found and read again."""
    manifest = build_shard_set(bucket, (7, 5, 6, 4, 9, 3))
    expected, _ = ShardReader(*local_set).read(2, 1)
    faulty_s3.inject(
        Fault("bitflip", match=manifest.shards[2].name + "?"), Fault("bitflip", match=manifest.shards[2].name)
    )
    reader = ShardReader(bucket, manifest)
    mel_TF, info = reader.read(2, 1)
    assert np.array_equal(mel_TF, expected)
    assert info["uid"] == reader.uid(2, 1)
    assert faulty_s3.struck
    assert reader.tally.take()["bytes_read"] < 40_000


def test_a_shard_that_a_suspended_process_blocks_is_read_beside_the_cache(bucket, tmp_path, local_set, caplog):
    """Its samples come by ranged reads and are the same; it is said once, and the next shard is cached as ever."""
    manifest, local = build_shard_set(bucket, (7, 5, 6, 4, 9, 3)), ShardReader(*local_set)
    config = CacheConfig(tmp_path / "cache", 10**9, patience_s=0.2)
    reader = ShardReader(bucket, manifest, cache=ShardCache(config, store=open_store(bucket), namespace="set"))
    blocked = fetch_lock(tmp_path / "cache" / "set" / manifest.shards[2].name)
    code = "import sys; from pathlib import Path; from pupujepa.locks import held\n"
    code += "with held(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, blocked], stdin=-1, stdout=-1) as process:
        assert process.stdout.readline() == b"held\n"
        os.kill(process.pid, signal.SIGSTOP)
        for shard in (2, 3, 2):
            for sample in range(3):
                assert np.array_equal(reader.read(shard, sample)[0], local.read(shard, sample)[0])
            reader.close()
        process.kill()
    (said,) = [record.message for record in caplog.records if "beside the cache" in record.message]
    assert f"process {process.pid} on" in said and manifest.shards[2].name in said
    assert [path.name for path in (tmp_path / "cache" / "set").glob("*.tar")] == [manifest.shards[3].name]


def test_a_disk_that_fails_now_gives_no_stand_in(local_set: tuple[str, Manifest], monkeypatch: pytest.MonkeyPatch):
    """An error of the disk says nothing about the sample: the stream stops, with shard and errno, and skips nothing."""
    url, manifest = local_set

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("data.reading.reader.os.preadv", fail)
    stream = make_stream(url, manifest)
    with pytest.raises(UserError, match=r"shard-\d+\.tar cannot be read now \(Input/output error, errno 5\)"):
        list(stream)
    assert stream.counters()["stand_ins"] == 0


def test_the_default_cache_is_private(bucket, tmp_path, monkeypatch):
    """Below the folder of temporary files anybody may have made a folder of its name, which is refused."""
    manifest = build_shard_set(bucket, (3,))
    monkeypatch.delenv("PUPUJEPA_CACHE_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"pupujepa-shards-{os.getuid()}"
    corpus = StreamCorpus("", bucket, manifest)
    node_cache(StreamConfig(url=bucket), corpus, tally=Tally()).open(manifest.shards[0]).close()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with pytest.raises(UserError, match=f"{folder} is a link, belongs to another user or is open to others"):
        node_cache(StreamConfig(url=bucket), corpus, tally=Tally())

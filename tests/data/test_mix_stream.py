"""The stream over a mix of corpora: other dtypes, ranges and places beside each other, one normalisation, any world."""

import logging
import re
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from data.order.layout import OrderError
from data.shards.format import index_name, read_index
from data.shards.manifest import Manifest
from data.store.store import open_store
from data.stream.batches import Batch
from data.stream.config import CorpusConfig, CorpusError, StreamConfig, named_corpora
from data.stream.corpora import Corpora, divided, read_corpora
from data.stream.stream import Stream, StreamError
from pupujepa.audio.log_mel import FrontendConfig, normalise
from pupujepa.training.masks import MaskConfig
from tests.data.shardsets import LO, build_shard_set, make_mel

# torch's advice to users of few cores; here processes are started to see that their number does not matter
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

STEPS = 12
LOWER = LO - 3.0
LARGE, SMALL = (7, 5, 6, 4, 9, 3), (5, 4)


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """34 samples as uint8 codes, 9 as codes of a lower range, 9 more as float16; uids are the same in all three."""
    root = tmp_path_factory.mktemp("corpora")
    urls = {name: str(root / name) for name in ("large", "small", "half")}
    build_shard_set(urls["large"], LARGE, moments=(-4.0, 2.0))
    build_shard_set(urls["small"], SMALL, lo=LOWER, moments=(-7.0, 1.0))
    build_shard_set(urls["half"], SMALL, dtype="float16", moments=(-4.0, 2.0))
    return urls


def config_of(urls: dict[str, str], **changes) -> StreamConfig:
    mix = {"large": CorpusConfig(urls["large"], 3.0), "small": CorpusConfig(urls["small"], 1.0)}
    base = StreamConfig(seed=3, crop_frames=32, global_batch=8, lanes=4, window_shards=2, workers=0, mix=mix)
    return replace(base, **changes)


def make_stream(config: StreamConfig, world: tuple[int, int] = (0, 1), micro_batch: int = 2, **options) -> Stream:
    options = {"masks": MaskConfig(), "total_steps": STEPS, "manifest": read_corpora(config), **options}
    return Stream(config, rank=world[0], world_size=world[1], micro_batch=micro_batch, **options)


def rows_of(batch: Batch) -> list[tuple]:
    columns = (batch.uids, batch.draws.tolist(), batch.crop_starts.tolist(), batch.target, batch.mel())
    return [(*row, target.numpy().tobytes(), mel.numpy().tobytes()) for *row, target, mel in zip(*columns)]


def global_batches(*streams: Stream) -> dict[int, Counter]:
    batches: dict[int, Counter] = {}
    for stream in streams:
        for batch in stream:
            batches.setdefault(batch.step, Counter()).update(rows_of(batch))
    return batches


@pytest.mark.parametrize("world_size, workers, micro_batch", [(2, 0, 1), (4, 0, 2), (1, 2, 4), (2, 1, 2)])
def test_global_batches_are_the_same_for_any_world_workers_and_micro_batch(urls, world_size, workers, micro_batch):
    """Samples, draws, crops, masks and values, over several epochs of the small corpus."""
    expected = global_batches(make_stream(config_of(urls)))
    assert [batch.total() for batch in expected.values()] == [8] * STEPS
    config = config_of(urls, workers=workers)
    ranks = [make_stream(config, (rank, world_size), micro_batch) for rank in range(world_size)]
    assert global_batches(*ranks) == expected


def test_each_corpus_has_its_share_and_its_epochs(urls):
    """3 : 1; the small corpus was gone through three times when the large one was two and a quarter."""
    stream = make_stream(config_of(urls))
    seen: dict[str, Counter] = {"large": Counter(), "small": Counter()}
    for batch in islice(stream, STEPS * 4):
        for uid in batch.uids:
            corpus, _, own = uid.partition("/")
            seen[corpus][own] += 1
    assert (seen["large"].total(), seen["small"].total()) == (72, 24)
    assert max(seen["large"].values()) == max(seen["small"].values()) == 3
    mixture = stream.mixture()
    assert mixture == {
        "mix/large/share": 0.75,
        "mix/large/epochs": 72 / 32,
        "mix/small/share": 0.25,
        "mix/small/epochs": 24 / 8,
    }
    assert stream.counters()["left_out"] == 2 * 2 + 3 * 1
    assert stream.steps_per_epoch == (34 + 9) // 8


def test_a_repeated_sample_comes_with_another_crop_and_mask(urls):
    """Crops and masks go with the epoch of the corpus, which may have several in one of the run."""
    crops: dict[str, set] = {}
    for batch in make_stream(config_of(urls)):
        for uid, _, start, target, _ in rows_of(batch):
            crops.setdefault(uid, set()).add((start, target))
    repeated = [len(of_uid) for uid, of_uid in crops.items() if uid.startswith("small/")]
    assert min(repeated) >= 2


@pytest.mark.parametrize("other", ["small", "half"])
def test_every_corpus_is_decoded_by_its_own_range_and_normalised_by_the_mix(urls, other):
    """Codes of two ranges, or codes and float16: the values of a row are those of its sample, with one mean and std."""
    mix = {"large": CorpusConfig(urls["large"]), other: CorpusConfig(urls[other])}
    config = config_of(urls, mix=mix)
    corpora = read_corpora(config)
    for batch in islice(make_stream(config), 8):
        holds_float16 = any(uid.startswith("half/") for uid in batch.uids)
        assert batch.codes.dtype == (torch.float16 if holds_float16 else torch.uint8)
        for uid, start, mel_TF in zip(batch.uids, batch.crop_starts.tolist(), batch.mel()):
            name, _, own = uid.partition("/")
            number = int(own.removeprefix("track").removesuffix("-0000"))
            whole_TF = make_mel(number, 40 + number % 9, lo=LOWER if name == "small" else LO)
            expected_TF = normalise(torch.from_numpy(whole_TF[start : start + 32]), corpora.mean, corpora.std)
            torch.testing.assert_close(mel_TF, expected_TF, atol=5e-3, rtol=0)


def test_the_normalisation_is_that_of_all_crops_together(urls):
    """Mean -4 and -7, deviation 2 and 1, three to one: what all values together have, the gap between them included."""
    corpora = read_corpora(config_of(urls))
    assert corpora.mean == pytest.approx(0.75 * -4 + 0.25 * -7)
    assert corpora.std**2 == pytest.approx(0.75 * (4 + 16) + 0.25 * (1 + 49) - corpora.mean**2)


def test_seeking_is_the_same_as_reading_up_to_there(urls):
    """By another world, over the epoch's end of the small corpus in some lanes and not in others."""
    straight = global_batches(make_stream(config_of(urls)))
    for step in (1, 3, 7):
        state = make_stream(config_of(urls)).state()
        state = replace(state, step=step, epoch=step // 5)
        ranks = [make_stream(config_of(urls), (rank, 2)) for rank in range(2)]
        for rank in ranks:
            rank.seek(state)
        assert global_batches(*ranks) == {later: straight[later] for later in range(step, STEPS)}


def test_a_changed_mix_is_refused_on_resume(urls):
    """Other weights, another corpus, one corpus instead of two: each is named; samples would be repeated or lost."""
    state = make_stream(config_of(urls)).state()
    assert state.mix == "3 large + 1 small"
    twice = {"large": CorpusConfig(urls["large"], 6.0), "small": CorpusConfig(urls["small"], 2.0)}
    make_stream(config_of(urls, mix=twice)).seek(state)
    for mix, found in (
        ({"large": CorpusConfig(urls["large"]), "small": CorpusConfig(urls["small"])}, "1 large + 1 small"),
        ({"large": CorpusConfig(urls["large"], 3.0), "half": CorpusConfig(urls["half"])}, "1 half + 3 large"),
        ({"large": CorpusConfig(urls["large"], 3.0)}, "of one corpus"),
    ):
        message = rf"made with mix 3 large \+ 1 small, this stream has {re.escape(found)}: .* use the same data"
        with pytest.raises(StreamError, match=message):
            make_stream(config_of(urls, mix=mix)).seek(state)
    other_data = {"large": CorpusConfig(urls["large"], 3.0), "small": CorpusConfig(urls["half"])}
    with pytest.raises(StreamError, match=r"shard set \(manifest digest\)"):
        make_stream(config_of(urls, mix=other_data)).seek(state)


def test_a_mix_of_one_corpus_is_that_corpus(urls):
    """Same rows, same uids, same state: a run may be continued under the corpus's url."""
    alone = config_of(urls, mix={}, url=urls["large"])
    named = config_of(urls, mix={"music": CorpusConfig(urls["large"], 0.3)})
    assert global_batches(make_stream(named)) == global_batches(make_stream(alone))
    assert make_stream(named).state() == make_stream(alone).state()
    assert make_stream(named).mixture() == {}


def test_a_damaged_sample_is_replaced_by_one_of_its_own_corpus(tmp_path, caplog):
    """So the shares hold, and the name tells which corpus is damaged; the same for another world."""
    urls = {"large": str(tmp_path / "large"), "small": str(tmp_path / "small")}
    build_shard_set(urls["large"], LARGE)
    manifest = build_shard_set(urls["small"], SMALL, lo=LOWER)
    whole = global_batches(make_stream(config_of(urls)))
    flip_bit_of(urls["small"], manifest, shard=1, sample=2)
    config = config_of(urls, max_bad_fraction=0.5)
    stream = make_stream(config)
    with caplog.at_level(logging.WARNING):
        damaged = global_batches(stream)
    assert "skipping sample small/track7-0000" in caplog.text
    assert global_batches(*(make_stream(config, (rank, 2)) for rank in range(2))) == damaged
    gained = [row for step in whole for row in (damaged[step] - whole[step]).elements()]
    assert len(gained) == stream.counters()["stand_ins"] > 0
    assert all(uid.startswith("small/") and uid != "small/track7-0000" for uid, *_ in gained)
    with pytest.raises(StreamError, match=rf"small/track7-0000; run .*{urls['large']}` and .*verify {urls['small']}`"):
        global_batches(make_stream(replace(config, max_bad_fraction=0.0)))


def flip_bit_of(url: str, manifest: Manifest, *, shard: int, sample: int) -> None:
    store, name = open_store(url), manifest.shards[shard].name
    index = read_index(store.read(index_name(name)))
    content = bytearray(store.read(name))
    content[index.mel_offset[sample] + index.mel_bytes[sample] // 2] ^= 1
    store.write(name, bytes(content))


def test_a_corpus_in_a_bucket_beside_one_on_disk(urls, bucket, tmp_path):
    """One is read in place, the other through the node's cache, prefetched; the batches are those of two folders."""
    build_shard_set(f"{bucket}/small", SMALL, lo=LOWER, moments=(-7.0, 1.0))
    mix = {"large": CorpusConfig(urls["large"], 3.0), "small": CorpusConfig(f"{bucket}/small", 1.0)}
    config = config_of(urls, mix=mix, cache_dir=str(tmp_path / "cache"), cache_bytes=10**8)
    ranks = [make_stream(config, (rank, 2)) for rank in range(2)]
    assert global_batches(*ranks) == global_batches(make_stream(config_of(urls)))
    assert len(list(Path(tmp_path / "cache").glob("*/*.tar"))) == len(SMALL)
    with pytest.raises(StreamError, match=r"cache_bytes 5000 cannot hold the 4 lanes x 2 shards .* of each corpus"):
        make_stream(replace(config, cache_bytes=5000))


def test_corpora_of_different_front_ends_are_refused(urls, tmp_path):
    """The error names both, and what differs."""
    build_shard_set(str(tmp_path / "wide"), (9,), frontend=FrontendConfig(hop_samples=480))
    mix = {"large": CorpusConfig(urls["large"]), "wide": CorpusConfig(str(tmp_path / "wide"))}
    message = rf"corpus large \({urls['large']}\) and corpus wide \(.*wide\) .* \(hop_samples 240 and 480\), so their"
    with pytest.raises(CorpusError, match=message):
        read_corpora(config_of(urls, mix=mix))


def test_a_corpus_twice_or_too_small_is_refused(urls, tmp_path):
    """The same shards under two names, and a corpus of which some lanes would have nothing."""
    twice = {"large": CorpusConfig(urls["large"]), "again": CorpusConfig(urls["large"])}
    with pytest.raises(CorpusError, match=r"corpora again .* and large .* are the same shard set.* both weights added"):
        read_corpora(config_of(urls, mix=twice))
    build_shard_set(str(tmp_path / "tiny"), (3,))
    tiny = {"large": CorpusConfig(urls["large"]), "tiny": CorpusConfig(str(tmp_path / "tiny"))}
    with pytest.raises(OrderError, match=r"corpus tiny .* holds 3 samples x 1 crops, fewer than the 4 lanes"):
        make_stream(config_of(urls, mix=tiny))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mix": {}}, "stream.url is not set"),
        ({"url": "x"}, r"stream.url=x and stream.mix \(large, small\) are both set"),
        ({"mix": {"a b": CorpusConfig("x")}}, "a corpus named 'a b'"),
        ({"mix": {"a": CorpusConfig("")}}, "stream.mix.a.url is not set"),
        ({"mix": {"a": CorpusConfig("x", 0.0)}}, "stream.mix.a.weight=0.0 is no share"),
        ({"mix": {"a": CorpusConfig("x", float("nan"))}}, "stream.mix.a.weight=nan is no share"),
    ],
)
def test_corpora_that_are_not_well_named_are_refused(urls, changes, message):
    """Before anything is read, with the key and a remedy."""
    with pytest.raises(CorpusError, match=message):
        named_corpora(config_of(urls, **changes))


def test_a_number_is_divided_like_the_crops(urls):
    """The fixed crops come from the corpora in proportion."""
    assert divided(8, (3, 1)) == [6, 2]
    assert divided(5, (1, 1, 1)) == [2, 1, 2]
    corpora: Corpora = read_corpora(config_of(urls))
    assert divided(8, corpora.parts) == [6, 2]

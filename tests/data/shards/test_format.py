"""Shards: plain WebDataset tars with deterministic bytes, and an index that finds every member."""

import gc
import io
import json
import random
import re
import tarfile
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from data.building.features import LOG_CEILING
from data.shards.format import (
    Sample,
    ShardError,
    WrittenShard,
    decode_mel,
    encode_mel,
    npy_bytes,
    read_index,
    read_npy,
    read_sample,
    sample_key,
    write_index,
    write_shard,
)
from pupujepa.audio.log_mel import LOG_FLOOR, FrontendConfig, log_mel, mel_filter_bank
from pupujepa.errors import UserError

RANGE = {"lo": LOG_FLOOR, "hi": LOG_CEILING}


def make_samples(count: int = 5, dtype: str = "uint8") -> list[dict]:
    """Samples of different lengths and awkward names."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(count):
        mel_TF = rng.uniform(LOG_FLOOR, LOG_CEILING, (40 + i, 128)).astype(np.float32)
        info = {
            "uid": f"söng {i}/a.b-0000",
            "track": f"söng {i}/a.b",
            "frames": 40 + i,
            "labels": {"beats": [0.5, 1.0]},
        }
        samples.append({"info": info, "mel": encode_mel(mel_TF, dtype, **RANGE)})
    return samples


def write(samples) -> tuple[bytes, WrittenShard]:
    stream = io.BytesIO()
    written = write_shard(stream, samples)
    return stream.getvalue(), written


# webdataset leaves the files that it has read to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_plain_webdataset_reads_our_shards(dtype: str, tmp_path: Path):
    """`webdataset.WebDataset(path).decode()`, without our code, gives every array and its JSON in order."""
    samples = make_samples(dtype=dtype)
    with (tmp_path / "x.tar").open("wb") as stream:
        written = write_shard(stream, samples)
    found = list(webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False).decode())
    gc.collect()
    assert [sample["__key__"] for sample in found] == list(written.index.key)
    for sample, expected in zip(found, samples, strict=True):
        assert sample["mel.npy"].dtype == np.dtype(dtype)
        np.testing.assert_array_equal(sample["mel.npy"], expected["mel"])
        assert sample["json"] == expected["info"]


def test_equal_samples_give_equal_bytes(monkeypatch: pytest.MonkeyPatch):
    """The bytes depend only on the samples: not on the clock, the user, or the order of JSON keys."""
    first, _ = write(make_samples())
    monkeypatch.setattr("time.time", lambda: 1e9)
    monkeypatch.setenv("USER", "somebody")
    again = [{**s, "info": dict(reversed(s["info"].items()))} for s in make_samples()]
    assert write(again)[0] == first
    ready = [Sample(s["info"], npy_bytes(s["mel"])) for s in make_samples()]
    assert write(ready)[0] == first


def test_the_facts_of_a_written_shard_are_those_of_its_bytes():
    """Length, digest and offsets agree with tarfile, and the index survives its own file."""
    content, written = write(make_samples())
    assert (written.bytes, written.sha256) == (len(content), sha256(content).hexdigest())
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = {member.name: (member.offset_data, member.size) for member in tar}
    index = written.index
    for i, key in enumerate(index.key):
        assert members.pop(f"{key}.mel.npy") == (index.mel_offset[i], index.mel_bytes[i])
        assert members.pop(f"{key}.json") == (index.json_offset[i], index.json_bytes[i])
    assert not members
    assert read_index(write_index(index)) == index


def test_a_flipped_bit_is_found_and_named():
    """Any flipped bit inside a member is an error that names the sample; its neighbours can be read."""
    samples = make_samples()
    content, written = write(samples)
    for offset in (written.index.mel_offset[2] + 200, written.index.json_offset[2] + 3):
        damaged = bytearray(content)
        damaged[offset] ^= 1
        with pytest.raises(ShardError, match=r"sample söng 2/a\.b-0000: .* is damaged \(crc32 differs\)"):
            read_sample(bytes(damaged), written.index, 2)
        stored_TF, info = read_sample(bytes(damaged), written.index, 3)
        np.testing.assert_array_equal(stored_TF, samples[3]["mel"])
        assert info == samples[3]["info"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-20], "is not the index of a shard"),
        (lambda text: b"[1]", "is not the index of a shard"),
        (lambda text: text.replace(b'"uid"', b'"id"'), "is not the index of a shard"),
        (lambda text: json.dumps({**json.loads(text), "frames": [1]}).encode(), "columns of different lengths"),
    ],
)
def test_a_wrong_index_is_refused(damage, message: str):
    """An index that is cut, of another kind, of uneven columns or with another digest is refused."""
    content = write_index(write(make_samples())[1].index)
    with pytest.raises(ShardError, match=message):
        read_index(damage(content), origin="x.tar.idx")
    with pytest.raises(ShardError, match=r"x\.tar\.idx is not the index that the manifest names"):
        read_index(content + b" ", origin="x.tar.idx", expected_sha256=sha256(content).hexdigest())


@given(st.lists(st.floats(LOG_FLOOR, LOG_CEILING), min_size=1, max_size=64))
def test_codes_are_half_a_step_from_the_value(values: list[float]):
    """Within the range, a decoded value is within half a code: (hi - lo) / 510, below 0.028 natural-log units."""
    mel_TF = np.array([values], dtype=np.float32)
    decoded_TF = decode_mel(encode_mel(mel_TF, "uint8", **RANGE), **RANGE)
    bound = (LOG_CEILING - LOG_FLOOR) / 510
    assert bound < 0.028
    assert np.abs(decoded_TF - mel_TF).max() <= bound * (1 + 1e-4)


def test_codes_are_a_fixed_point_and_cut_at_the_ends():
    """Decoded codes are encoded to themselves; the floor is code 0 exactly; values outside the range are clipped."""
    codes_TF = np.arange(256, dtype=np.uint8)[None]
    np.testing.assert_array_equal(encode_mel(decode_mel(codes_TF, **RANGE), "uint8", **RANGE), codes_TF)
    outside_TF = np.array([[-50.0, LOG_FLOOR, LOG_CEILING, 50.0]], dtype=np.float32)
    assert encode_mel(outside_TF, "uint8", **RANGE).tolist() == [[0, 0, 255, 255]]
    np.testing.assert_array_equal(decode_mel(np.array([[1.5, -3.25]], dtype=np.float16), **RANGE), [[1.5, -3.25]])
    with pytest.raises(ValueError, match="'int16' is not one of"):
        encode_mel(outside_TF, "int16", **RANGE)
    with pytest.raises(ValueError, match="not int64"):
        decode_mel(codes_TF.astype(np.int64), **RANGE)


def test_no_audio_within_full_scale_reaches_the_ceiling():
    """The top of the uint8 range bounds the log-mel of every signal in [-1, 1], and loud signals approach it."""
    window_S = torch.hann_window(1024).double().numpy()
    samples = np.arange(1024)
    phases = np.linspace(0, np.pi, 65)[:, None]
    # |X_k| = max over phi of sum x w cos(...) <= max over phi of sum w |cos(...)|
    peaks_K = [np.abs(np.cos(2 * np.pi * k * samples / 1024 + phases) * window_S).sum(1).max() for k in range(513)]
    bound = float(np.log(np.array(peaks_K) @ mel_filter_bank(FrontendConfig()).double().numpy()).max())
    assert LOG_CEILING - 0.01 < bound < LOG_CEILING
    times_s = np.arange(24_000) / 24_000
    square_S = np.sign(np.sin(2 * np.pi * 100 * times_s)).astype(np.float32)
    loudest = float(log_mel(torch.from_numpy(square_S)[None]).max())
    assert 2.0 < loudest < bound


@given(st.lists(st.text(min_size=1, max_size=120), min_size=2, max_size=8, unique=True))
def test_keys_are_safe_and_as_different_as_their_uids(uids: list[str]):
    """Any two uids have different keys, of characters without a meaning for tar or WebDataset."""
    keys = [sample_key(uid) for uid in uids]
    assert len(set(keys)) == len(uids)
    assert all(re.fullmatch("[A-Za-z0-9_-]{1,92}", key) for key in keys)
    assert sample_key("track_7-0001") == "track_7-0001"


def test_pickles_are_refused():
    """An .npy file that would run code is an error."""
    stream = io.BytesIO()
    np.save(stream, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_npy(stream.getvalue())


def damaged(rng: random.Random, whole: bytes, rubbish: list[bytes]) -> bytes:
    content = bytearray(whole)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(content))
        content[at : at + rng.randint(0, 3)] = rng.choice([bytes([rng.randrange(256)]), *rubbish])
    return bytes(content)


def test_damaged_indexes_end_in_one_sentence():
    """A thousand damaged indexes: none is a traceback, and none finds a sample that its shard does not hold."""
    rng = random.Random(0)
    shard, written = write(make_samples(3))
    whole = write_index(written.index)
    for _ in range(1000):
        content = damaged(rng, whole, [b"-", b"null", b"[", b"1.5", b"NaN", b'"', b"9" * 30])
        try:
            index = read_index(content)
            infos = [read_sample(shard, index, i)[1] for i in range(len(index))]
        except UserError as error:
            assert "\n" not in str(error), error
        else:
            assert all(info in [sample["info"] for sample in make_samples(3)] for info in infos)


# numpy reads a header of Python 2, which damage may resemble, with a warning
@pytest.mark.filterwarnings("ignore:Reading .* Python 2:UserWarning")
def test_damaged_arrays_are_value_errors():
    """A header that numpy cannot read, in a thousand ways, is one kind of error, and nothing huge is allocated."""
    rng, whole = random.Random(0), npy_bytes(np.arange(12, dtype=np.uint8).reshape(3, 4))
    for _ in range(1000):
        content = damaged(rng, whole[:128], [b"(", b"'", b"-", b"9" * 20, b"\n", b"{", b"O", b"    "]) + whole[128:]
        with suppress(ValueError):
            assert read_npy(content).nbytes <= len(content)

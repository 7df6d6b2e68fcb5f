"""Verification finds every kind of damage that a plain tar reader ignores, and names shard and sample."""

import gc
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import webdataset

from data.__main__ import COMMANDS
from data.check.verify import Damage, split_urls, verify
from data.shards.format import ShardIndex, index_name, read_index, write_index
from data.shards.manifest import Manifest, ManifestError, write_manifest
from data.store.store import open_store
from pupujepa.errors import UserError
from pupujepa.front_door import enter
from tests.data.shardsets import build_shard_set

SHARD, POSITION = "shard-000001.tar", 2
Damaging = Callable[[bytes, ShardIndex], bytes]


def flip(content: bytes, offset: int) -> bytes:
    return content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :]


def header_of(index: ShardIndex, i: int) -> int:
    return index.json_offset[i] - 512


# The seven damages that a strict tar reader was seen to pass over or to misread, and two more.
DAMAGES: dict[str, tuple[Damaging, str, bool]] = {
    "cut at a member boundary": (lambda c, i: c[: i.mel_offset[POSITION] - 512], "cut at byte", True),
    "cut inside a header": (lambda c, i: c[: header_of(i, POSITION) + 100], "cut at byte", True),
    "cut at a sample boundary": (lambda c, i: c[: header_of(i, POSITION)], "cut at byte", True),
    "bit flipped in a header": (lambda c, i: flip(c, header_of(i, POSITION) + 3), "header of json damaged", True),
    "cut inside data": (lambda c, i: c[: i.mel_offset[POSITION] + 999], "cut at byte", True),
    "bit flipped in data": (lambda c, i: flip(c, i.mel_offset[POSITION] + 999), "crc32 differs", True),
    "bit flipped in the first header": (lambda c, i: flip(c, 3), "header of json damaged", False),
    "empty": (lambda c, i: b"", "empty", False),
    "an HTML page": (
        lambda c, i: b"<html>502 Bad Gateway</html>" * 300,
        "not a tar file: it begins with b'<html>",
        False,
    ),
    "no end mark": (lambda c, i: c[: i.mel_offset[-1] + i.mel_bytes[-1]], "cut after its last sample", False),
    "bit flipped in padding": (lambda c, i: flip(c, len(c) - 1), "the samples are whole", False),
    "too long": (lambda c, i: c + b"\0" * 512, "512 bytes too long", False),
}


@pytest.fixture
def shard_set(tmp_path: Path) -> tuple[str, Manifest]:
    """A folder with a healthy set of four shards."""
    url = str(tmp_path / "train")
    return url, build_shard_set(url)


def damage(url: str, damaging: Damaging) -> str:
    """Damages one shard and returns the uid of the damaged sample."""
    store = open_store(url)
    index = read_index(store.read(index_name(SHARD)))
    store.write(SHARD, damaging(store.read(SHARD), index))
    return index.uid[POSITION]


@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_is_found_and_named(name: str, shard_set: tuple[str, Manifest]):
    """Each damage is reported once, at its shard and, if any, its sample; other shards are not reported."""
    damaging, what, has_sample = DAMAGES[name]
    uid = damage(shard_set[0], damaging)
    found = verify(shard_set[0])
    expected = uid if has_sample else "track7-0000" if "first" in name else ""
    assert [(d.shard, d.sample) for d in found] == [(SHARD, expected)]
    assert what in found[0].what


# webdataset leaves the files that it has read to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["cut at a member boundary", "cut at a sample boundary", "bit flipped in data"])
def test_a_strict_tar_reader_would_not_have_noticed(name: str, shard_set: tuple[str, Manifest]):
    """The reason for this module: webdataset's strictest handler reads these shards to the end, without an error."""
    damage(shard_set[0], DAMAGES[name][0])
    source = webdataset.WebDataset(f"{shard_set[0]}/{SHARD}", shardshuffle=False, handler=webdataset.reraise_exception)
    assert list(source)
    gc.collect()


def test_damage_in_a_bucket_is_found(bucket: str):
    """The same over s3://, where the shard is fetched first."""
    build_shard_set(bucket)
    assert verify(bucket) == []
    uid = damage(bucket, DAMAGES["bit flipped in data"][0])
    assert [(d.shard, d.sample) for d in verify(bucket)] == [(SHARD, uid)]
    open_store(bucket).remove(SHARD)
    assert [(d.shard, d.what[:8]) for d in verify(bucket)] == [(SHARD, "missing,")]


def test_a_missing_shard_and_its_loss_are_named(shard_set: tuple[str, Manifest]):
    """A missing shard is reported with the number of its samples."""
    (Path(shard_set[0]) / SHARD).unlink()
    [found] = verify(shard_set[0])
    assert found.shard == SHARD
    assert found.what.startswith("missing, with its 5 samples")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.write_bytes(flip(path.read_bytes(), 30)), "sha256 differs"),
    ],
)
def test_a_damaged_index_is_named_and_the_shard_still_checked(change, what: str, shard_set: tuple[str, Manifest]):
    """A shard without an index is still compared with its digest."""
    url = Path(shard_set[0])
    change(url / index_name(SHARD))
    assert [(d.shard, what in d.what) for d in verify(str(url))] == [(index_name(SHARD), True)]
    (url / SHARD).write_bytes(flip((url / SHARD).read_bytes(), 5000))
    assert [d.shard for d in verify(str(url))] == [index_name(SHARD), SHARD]


def test_strangers_are_named(shard_set: tuple[str, Manifest]):
    """A tar outside the manifest would be read by a reader of all tars in the folder."""
    (Path(shard_set[0]) / "shard-000009.tar").write_bytes(b"")
    assert verify(shard_set[0]) == [Damage("shard-000009.tar", "", "not in the manifest; remove it")]


def test_deep_finds_what_was_written_wrong(shard_set: tuple[str, Manifest]):
    """Intact bytes can be wrong: --deep finds a false index and the statistics of other samples."""
    url, manifest = shard_set
    store = open_store(url)
    found = verify(url, deep=True)
    assert {d.shard for d in found} == {"manifest.json"}
    assert [d.what.split(" is ")[0] for d in found] == ["mean", "std"]
    index = read_index(store.read(index_name(SHARD)))
    lying = write_index(replace(index, frames=(index.frames[0] - 1, index.frames[1] + 1, *index.frames[2:])))
    store.write(index_name(SHARD), lying)
    shards = tuple(
        replace(entry, index_sha256=sha256(lying).hexdigest()) if entry.name == SHARD else entry
        for entry in manifest.shards
    )
    write_manifest(url, replace(manifest, shards=shards))
    assert verify(url) == []
    assert [(d.shard, d.sample) for d in verify(url, deep=True)] == [(SHARD, index.uid[0]), (SHARD, index.uid[1])]


def test_a_sample_that_occurs_twice_is_named(shard_set: tuple[str, Manifest], tmp_path: Path):
    """A uid in two shards is damage: each sample counts once per epoch."""
    url, manifest = shard_set
    write_manifest(url, replace(manifest, shards=(*manifest.shards, manifest.shards[0])))
    found = verify(url)
    assert {d.what for d in found} == {"is in the set twice"}
    assert len(found) == manifest.shards[0].samples


def test_the_command_lists_the_damage_and_exits_with_1(
    shard_set: tuple[str, Manifest], capsys: pytest.CaptureFixture[str]
):
    """Exit code 0 if all is as built, 1 with one line per damage, 2 without a set."""
    corpus = str(Path(shard_set[0]).parent)

    def run(*arguments: str) -> int:
        return enter("data", COMMANDS, manual="", argv=["verify", *arguments])

    assert run(corpus) == 0
    assert "all as built" in capsys.readouterr().out
    uid = damage(shard_set[0], DAMAGES["bit flipped in data"][0])
    assert run(corpus) == 1
    out = capsys.readouterr().out
    assert f"DAMAGED {SHARD} sample {uid}: " in out
    assert "1 damages" in out
    assert run(str(Path(corpus) / "nothing")) == 2
    assert "no complete shard set" in capsys.readouterr().err


def test_a_corpus_is_all_its_splits(tmp_path: Path):
    """A corpus is verified split by split, a split alone, and anything else is refused."""
    for split in ("train", "test"):
        build_shard_set(str(tmp_path / split), (2,))
    assert split_urls(str(tmp_path)) == [str(tmp_path / "train"), str(tmp_path / "test")]
    assert split_urls(str(tmp_path / "test")) == [str(tmp_path / "test")]
    with pytest.raises(ManifestError, match="or its splits"):
        split_urls(str(tmp_path / "none"))


def test_a_shard_that_cannot_be_read_now_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Missing rights end the verification with the errno; they are no verdict on the shard."""
    build_shard_set(str(tmp_path))
    path, open_file = tmp_path / SHARD, Path.open

    def fail(self: Path, *args, **kwargs):
        if self == path:
            raise PermissionError(13, "Permission denied", str(self))
        return open_file(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(UserError, match=rf"{SHARD} cannot be read now \(Permission denied, errno 13\)"):
        verify(str(tmp_path))

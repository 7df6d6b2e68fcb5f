"""The manifest: an exact record with an identity, or an error that says what is wrong."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from data.shards.manifest import Manifest, ManifestError, ShardEntry, from_json, read_manifest, to_json, write_manifest
from pupujepa.errors import UserError

SHARDS = (ShardEntry("train-000000.tar", 3, 900, 120_000, "ab" * 32, "cd" * 32), ShardEntry("b.tar", 2, 5, 7, "0", "1"))
MANIFEST = Manifest(
    split="train",
    frontend={"sample_rate_hz": 24000, "mel_bands": 128},
    frontend_digest="f" * 64,
    dtype="uint8",
    lo=-11.512925464970229,
    hi=2.71,
    mean=-4.089994845986366,
    std=2.0242277159094813,
    audio_hours=0.1 + 0.2,
    tracks=4,
    shards=SHARDS,
)


@pytest.mark.parametrize("place", ["path", "s3"])
def test_what_is_written_is_read(place: str, tmp_path: Path, request: pytest.FixtureRequest):
    """A manifest read from a folder or a bucket equals the written one, to the last digit."""
    url = str(tmp_path / "train") if place == "path" else request.getfixturevalue("bucket")
    write_manifest(url, MANIFEST)
    assert read_manifest(url) == MANIFEST
    assert read_manifest(url).digest == MANIFEST.digest
    assert MANIFEST.samples == 5
    assert MANIFEST.frames == 905


def test_the_digest_is_an_identity():
    """The digest does not depend on the file's layout, and changes with every field."""
    shuffled = json.dumps(dict(reversed(json.loads(to_json(MANIFEST)).items())))
    assert from_json(shuffled.encode()).digest == MANIFEST.digest
    others = [replace(MANIFEST, mean=-4.0), replace(MANIFEST, split="test"), replace(MANIFEST, tracks=5)]
    others.append(replace(MANIFEST, shards=SHARDS[::-1]))
    others.append(replace(MANIFEST, shards=(replace(SHARDS[0], index_sha256="x"), SHARDS[1])))
    assert len({manifest.digest for manifest in [MANIFEST, *others]}) == len(others) + 1


def test_an_unfinished_set_is_no_set(tmp_path: Path):
    """Shards without a manifest are refused: their build did not finish."""
    (tmp_path / "train-000000.tar").write_bytes(b"shard")
    with pytest.raises(
        ManifestError, match=r"no complete shard set; finish the build by running `python -m data build`"
    ):
        read_manifest(str(tmp_path))


def test_the_corpus_is_not_a_split(tmp_path: Path):
    """The url of a corpus instead of a split is an error that names the splits."""
    for split in ("train", "test"):
        write_manifest(str(tmp_path / split), MANIFEST)
    with pytest.raises(ManifestError, match=r"it holds the splits train, test: use .*/train"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "is not JSON"),
        (lambda text: b"[]", "format version None"),
        (
            lambda text: text.replace(b'"format_version": 1', b'"format_version": 2'),
            "format version 2, this code reads 1",
        ),
        (
            lambda text: text.replace(b'"dtype"', b'"type"'),
            r"lacks fields \['dtype'\] and has unknown fields \['type'\]",
        ),
        (lambda text: text.replace(b'"sha256"', b'"sha1"'), r"ShardEntry lacks fields \['sha256'\]"),
        (lambda text: b'{"format_version": 1, "shards": ' + b"[" * 100_000, "is not JSON"),
        (lambda text: text.replace(b'"mean": -4.089994845986366', b'"mean": NaN'), "manifest.json: mean is nan"),
        (lambda text: text.replace(b'"tracks": 4', b'"tracks": "4"'), "manifest.json: tracks is 4"),
        (lambda text: text.replace(b'"samples": 3', b'"samples": -3'), "samples is -3, less than nothing"),
        (lambda text: text.replace(b'"samples": 3', b'"samples": true'), "samples is True"),
        (lambda text: json.dumps(json.loads(text) | {"shards": {}}).encode(), "shards is {}"),
        (lambda text: json.dumps(json.loads(text) | {"shards": [5]}).encode(), "5 is not a ShardEntry"),
        (lambda text: json.dumps(json.loads(text) | {"frontend": []}).encode(), r"frontend is \[\]"),
    ],
)
def test_a_wrong_manifest_is_refused(damage, message: str):
    """A manifest that is cut, of another version or with other fields raises one sentence."""
    with pytest.raises(ManifestError, match=message):
        from_json(damage(to_json(MANIFEST)))


def test_damaged_manifests_end_in_one_sentence():
    """A thousand damaged manifests: a manifest of the right types, or one sentence; never a traceback."""
    rng, whole = random.Random(0), to_json(MANIFEST)
    for _ in range(1000):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(content))
            rubbish = [bytes([rng.randrange(256)]), b"NaN", b"null", b"[", b"{}", b'"', b"-1", b"9" * 50, b"\\ud800"]
            content[at : at + rng.randint(0, 4)] = rng.choice(rubbish)
        try:
            manifest = from_json(bytes(content))
        except UserError as error:
            assert "\n" not in str(error), error
        else:
            assert manifest.samples >= 0 and manifest.frames >= 0 and len(manifest.digest) == 64


def test_a_newer_manifest_asks_for_a_newer_program():
    """Shards of a newer program are not to be built again."""
    newer = to_json(MANIFEST).replace(b'"format_version": 1', b'"format_version": 2')
    with pytest.raises(ManifestError, match=r"this code reads 1; update this program$"):
        from_json(newer)


@pytest.mark.parametrize("name", ["/home/x/.bashrc", "../x", ""])
def test_a_shard_outside_of_its_folder_is_refused(name: str, tmp_path: Path):
    """A foreign manifest cannot name another file of the user; it is refused before any shard is fetched."""
    foreign = replace(MANIFEST, shards=(replace(SHARDS[0], name=name), SHARDS[1]))
    write_manifest(str(tmp_path), foreign)
    with pytest.raises(UserError, match=r"manifest\.json names the file .* is not a plain relative path"):
        read_manifest(str(tmp_path))

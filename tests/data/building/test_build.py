"""The build from audio to shards gives the same bytes for any workers, any location and after any kill."""

import gc
import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from data.__main__ import COMMANDS
from data.building.build import Build
from data.building.config import BuildConfig, read_build_record
from data.building.features import FeatureConfig, cut_evenly
from data.building.inputs import read_inputs
from data.building.packing import deal_parts
from data.check.verify import verify
from data.shards.format import decode_mel, index_name, read_index, read_sample
from data.shards.manifest import read_manifest
from data.store.store import open_store
from pupujepa.audio.log_mel import frontend_digest, log_mel
from pupujepa.audio.read import resample
from pupujepa.audio.source import read_audio
from pupujepa.errors import UserError
from pupujepa.front_door import enter
from tests.data.dying import ROOT, run_and_die
from tests.data.songs import write_album, write_song

# parts of 3 s and shards of about ten of them: several shards and parts from a minute of audio
CONFIG = BuildConfig(
    features=FeatureConfig(part_frames=300, min_frames=100),
    shard_bytes=300_000,
    seed=3,
    split_fractions=(0.6, 0.2, 0.2),
)
OPTIONS = ["--part-frames=300", "--min-frames=100", "--shard-mib=0.286102294921875", "--seed=3"]
OPTIONS += ["--split-fractions=0.6,0.2,0.2"]


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of seven songs."""
    folder = tmp_path_factory.mktemp("album")
    write_album(folder)
    return folder


@pytest.fixture(scope="module")
def built(album: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The album's shards, built by two workers."""
    out = tmp_path_factory.mktemp("built")
    make(album, str(out), workers=2)
    return out


def make(folder: Path, url: str, *, workers: int = 1, config: BuildConfig = CONFIG, replace_it: bool = False) -> Build:
    """Builds and returns the build."""
    tracks = read_inputs(folder, seed=config.seed, fractions=config.split_fractions)
    work = folder.parent / f"work-{abs(hash(url))}"
    build = Build(tracks, url, config=config, work=str(work), workers=workers)
    build.run(replace=replace_it)
    assert not work.exists()
    return build


def content_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def samples_of(folder: Path, split: str):
    """Yields (log-mel, info) of all samples of a split."""
    manifest = read_manifest(str(folder / split))
    for entry in manifest.shards:
        content = (folder / split / entry.name).read_bytes()
        index = read_index(folder / split / index_name(entry.name))
        for position in range(len(index)):
            stored_TF, info = read_sample(content, index, position)
            yield decode_mel(stored_TF, lo=manifest.lo, hi=manifest.hi), info


def test_every_frame_of_every_song_is_there_once(album: Path, built: Path):
    """The joined parts of a track are its log-mel within half a code; no frame is lost or doubled."""
    parts: dict[str, list] = {}
    for split in ("train", "valid", "test"):
        for mel_TF, info in samples_of(built, split):
            parts.setdefault(info["track"], []).append((info["start_s"], mel_TF, info))
    tracks = {track.track: track for track in read_inputs(album, seed=3)}
    assert parts.keys() == tracks.keys()
    assert "top.flac" in parts
    assert "top.wav" in parts
    for name, found in parts.items():
        audio_S, rate_hz = read_audio(tracks[name].audio.url)
        whole_TF = log_mel(torch.from_numpy(resample(audio_S, rate_hz, 24_000))[None])[0].numpy()
        joined_TF = np.concatenate([mel_TF for _, mel_TF, _ in sorted(found, key=lambda part: part[0])])
        assert joined_TF.shape == whole_TF.shape
        assert np.abs(joined_TF - whole_TF).max() < 0.0281
        assert all(len(mel_TF) == info["frames"] == round(info["duration_s"] * 100) for _, mel_TF, info in found)
        assert max(len(mel_TF) for _, mel_TF, _ in found) <= 300


def test_the_manifest_tells_the_truth(built: Path):
    """Counts, hours, mean and deviation are those of the samples; all splits have training's mean and deviation."""
    manifests = {split: read_manifest(str(built / split)) for split in ("train", "valid", "test")}
    values = np.concatenate([mel_TF.ravel() for mel_TF, _ in samples_of(built, "train")]).astype(np.float64)
    for split, manifest in manifests.items():
        samples = list(samples_of(built, split))
        assert manifest.split == split
        assert manifest.frontend_digest == frontend_digest(CONFIG.features.frontend)
        assert manifest.samples == len(samples)
        assert manifest.frames == sum(len(mel_TF) for mel_TF, _ in samples)
        assert manifest.audio_hours == pytest.approx(manifest.frames / 100 / 3600)
        assert manifest.tracks == len({info["track"] for _, info in samples})
        assert (manifest.mean, manifest.std) == pytest.approx((values.mean(), values.std()), rel=1e-9)
    assert verify(str(built / "train"), deep=True) == []


# webdataset leaves the files that it has read to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_plain_webdataset_reads_a_built_set(built: Path):
    """`webdataset` alone, over all tars of the folder, reads as many whole samples as the manifest says."""
    urls = [str(path) for path in sorted((built / "train").glob("*.tar"))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    gc.collect()
    manifest = read_manifest(str(built / "train"))
    assert len(urls) == len(manifest.shards) > 1
    assert len(found) == manifest.samples
    assert all(sample["mel.npy"].shape == (sample["json"]["frames"], 128) for sample in found)


def test_parts_are_spread_and_shards_are_even(built: Path):
    """Shards of a split have equal numbers of samples within one; a track is in as many shards as possible."""
    manifest = read_manifest(str(built / "train"))
    samples = [entry.samples for entry in manifest.shards]
    assert max(samples) - min(samples) <= 1
    shards_of_track: dict[str, list[int]] = {}
    for number, entry in enumerate(manifest.shards):
        for uid in read_index(built / "train" / index_name(entry.name)).uid:
            shards_of_track.setdefault(uid.rsplit("-", 1)[0], []).append(number)
    for shards in shards_of_track.values():
        counts = Counter(shards)
        assert len(counts) == min(len(shards), len(samples))
        assert max(counts.values()) == -(-len(shards) // len(samples))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 12), st.integers(0, 99))
def test_dealing_is_fair_and_keeps_parts_apart(parts_of_track: list[int], shards: int, seed: int):
    """For any lengths of tracks: even shards, and no second part of a track before every shard has one."""
    hands = deal_parts(parts_of_track, shards, key=(seed,))
    counts = Counter(shard for hand in hands for shard in hand)
    assert sum(counts.values()) == sum(parts_of_track)
    assert max(counts.values()) - min(counts[shard] for shard in range(shards)) <= 1
    for parts, hand in zip(parts_of_track, hands, strict=True):
        assert len(hand) == parts
        laps = [hand[start : start + shards] for start in range(0, parts, shards)]
        assert all(len(set(lap)) == len(lap) for lap in laps)


@given(st.integers(1, 100_000), st.integers(1, 5000))
def test_cuts_are_even_and_cover_all(frames: int, part_frames: int):
    """A track is cut into as few parts as allowed, of equal length within one frame, without gap or overlap."""
    cuts = cut_evenly(frames, part_frames)
    lengths = [stop - start for start, stop in cuts]
    assert len(cuts) == -(-frames // part_frames)
    assert max(lengths) <= part_frames
    assert max(lengths) - min(lengths) <= 1
    assert [start for start, _ in cuts] == [0, *(stop for _, stop in cuts[:-1])]
    assert cuts[-1][1] == frames


def test_one_worker_makes_the_same_bytes_as_two(album: Path, built: Path, tmp_path: Path):
    """Every file of the corpus is equal for any number of workers and order of completion."""
    make(album, str(tmp_path / "out"), workers=1)
    assert content_of(tmp_path / "out") == content_of(built)


def test_a_bucket_holds_the_same_bytes_as_a_folder(album: Path, built: Path, bucket: str):
    """Built straight into s3://, the objects are those of the local build, and nothing else."""
    make(album, bucket)
    store = open_store(bucket)
    assert {name: store.read(name) for name in store.list()} == content_of(built)


def test_the_seed_decides_the_order(album: Path, built: Path, tmp_path: Path):
    """Another seed packs the same samples in another order; the same files in another folder pack alike."""
    config = replace(CONFIG, split_fractions=(1.0, 0.0, 0.0))
    uids = {}
    for seed in (1, 2):
        make(album, str(tmp_path / str(seed)), config=replace(config, seed=seed))
        folder = tmp_path / str(seed) / "train"
        names = [entry.name for entry in read_manifest(str(folder)).shards]
        uids[seed] = [uid for name in names for uid in read_index(folder / index_name(name)).uid]
    assert sorted(uids[1]) == sorted(uids[2])
    assert uids[1] != uids[2]
    assert uids[1] != sorted(uids[1])


def test_a_killed_build_goes_on_and_ends_with_the_same_bytes(album: Path, built: Path, tmp_path: Path):
    """SIGKILL while making features, while packing, and between the manifests; then the same command again."""
    out = tmp_path / "out"
    run_and_die("facts", _command(album, out))
    assert len(list(out.glob(".work/spool/*.json"))) >= 2
    run_and_die("entry", _command(album, out))
    assert list(out.glob("*/*.tar"))
    assert not list(out.glob("*/manifest.json"))
    run_and_die("manifest", _command(album, out))
    assert len(list(out.glob("*/manifest.json"))) == 1
    assert not (out / "train" / "manifest.json").exists()
    assert enter("data", COMMANDS, manual="", argv=["build", str(album), str(out), *OPTIONS, "--workers=1"]) == 0
    assert content_of(out) == content_of(built)


def test_a_finished_build_is_left_alone(album: Path, built: Path, capsys: pytest.CaptureFixture[str]):
    """A second run changes no file and says so; with other settings the command refuses."""
    times = {path: path.stat().st_mtime_ns for path in built.rglob("*")}
    assert enter("data", COMMANDS, manual="", argv=["build", str(album), str(built), *OPTIONS]) == 0
    assert "holds exactly this build already" in capsys.readouterr().out
    assert enter("data", COMMANDS, manual="", argv=["build", str(album), str(built), *OPTIONS, "--seed=4"]) == 2
    assert "already holds another corpus (train, valid, test)" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in built.rglob("*")} == times


def test_replacing_leaves_nothing_of_the_old(album: Path, tmp_path: Path):
    """--replace rebuilds: fewer shards than before, and no old shard for a plain reader to find."""
    out = tmp_path / "out"
    make(album, str(out), config=CONFIG)
    before = len(list(out.rglob("*.tar")))
    config = replace(CONFIG, shard_bytes=10**8, split_fractions=(1.0, 0.0, 0.0))
    make(album, str(out), config=config, replace_it=True)
    assert before > 3
    assert [path.relative_to(out).as_posix() for path in sorted(out.rglob("*.tar"))] == ["train/train-000000.tar"]
    assert not (out / "valid" / "manifest.json").exists()
    assert verify(str(out / "train"), deep=True) == []


def test_unusable_files_are_listed_with_their_reason(tmp_path: Path):
    """Corrupt, empty, short, silent and NaN files are left out and named; only damage counts against the limit."""
    folder = tmp_path / "in"
    write_song(folder / "good.wav", 4.0)
    (folder / "corrupt.flac").write_bytes(b"fLaC" + bytes(range(256)) * 20)
    (folder / "empty.wav").write_bytes(b"")
    write_song(folder / "short.wav", 0.3)
    _write_samples(folder / "silent.wav", np.full(72_000, 3e-5))
    _write_samples(folder / "nan.wav", np.where(np.arange(72_000) == 50_000, np.nan, 0.1))
    config = replace(CONFIG, max_rejected=2, split_fractions=(1.0, 0.0, 0.0))
    with pytest.raises(UserError, match=r"3 of 6 files cannot be used, more than --max-rejected 2 allows, the first "):
        make(folder, str(tmp_path / "out"), config=config)
    assert not (tmp_path / "out" / "train").exists()
    build = make(folder, str(tmp_path / "out"), config=replace(config, max_rejected=3))
    rows = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    reasons = {row["track"]: row["reason"] for row in rows}
    assert list(reasons) == ["corrupt", "empty", "nan", "short", "silent"]
    assert [row["kind"] for row in rows] == ["damaged", "damaged", "damaged", "too short", "silent"]
    for name, part in (("corrupt", "cannot be decoded"), ("short", "too short (30 frames"), ("silent", "silent (peak")):
        assert part in reasons[name]
    assert "short.wav: too short (30 frames = 0.30 s, fewer than 100 = 1.00 s)" in reasons["short"]
    where = tmp_path / "out" / "rejected.jsonl"
    assert build.summary == [
        f"6 tracks in the input: 1 built, 3 damaged, 1 too short, 1 silent; see {where}",
    ]
    assert "sample 50000 is not finite" in reasons["nan"]
    assert read_manifest(str(tmp_path / "out" / "train")).tracks == 1
    record = read_build_record(open_store(str(tmp_path / "out")))
    assert record is not None
    assert (record["rejected"], record["inputs"], record["splits"]) == (5, 6, ["train"])
    assert build.is_complete()


def test_too_many_unusable_files_stop_at_once(tmp_path: Path):
    """One too many ends the build before the remaining files; with a higher limit it resumes."""
    folder, out = tmp_path / "in", tmp_path / "out"
    for number in range(30):
        (folder / f"{number:02d}.wav").parent.mkdir(exist_ok=True)
        (folder / f"{number:02d}.wav").write_bytes(b"RIFF")
    soundfile.write(folder / "no-samples.wav", np.zeros(0), 24_000)
    write_song(folder / "song.wav", 4.0)
    with pytest.raises(UserError, match=r"^2 of 32 files cannot be used, more than --max-rejected 1 allows, the first"):
        make(folder, str(out), config=replace(CONFIG, max_rejected=1, split_fractions=(1.0, 0.0, 0.0)))
    listed = [json.loads(line)["track"] for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert len(listed) == 2
    make(folder, str(out), config=replace(CONFIG, max_rejected=31, split_fractions=(1.0, 0.0, 0.0)))
    rows = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [row["track"] for row in rows] == [*(f"{number:02d}" for number in range(30)), "no-samples"]
    assert "no-samples.wav: holds no audio; remove it" in rows[-1]["reason"]


def test_overshoot_is_cut_and_counted(tmp_path: Path):
    """Values far above full scale are clipped at the ceiling, and the manifest has their number."""
    _write_samples(tmp_path / "in" / "loud.wav", 40 * np.sin(np.arange(72_000) * 0.05))
    make(tmp_path / "in", str(tmp_path / "out"), config=replace(CONFIG, split_fractions=(1.0, 0.0, 0.0)))
    manifest = read_manifest(str(tmp_path / "out" / "train"))
    values = np.concatenate([mel_TF.ravel() for mel_TF, _ in samples_of(tmp_path / "out", "train")])
    assert values.max() == pytest.approx(manifest.hi, abs=1e-5)
    assert 0 < manifest.clipped_values <= int((values >= manifest.hi - 1e-5).sum())


def test_a_list_gives_splits_and_labels(tmp_path: Path):
    """Tracks of a list keep their split, source and labels in every part; float16 shards work too."""
    labels = {"key": "E\u266d major", "beats": [0.5, 1.0], "tempo_bpm": 120.0, "collection": None}
    rows = []
    for number, split in enumerate(("train", "valid", "train")):
        write_song(tmp_path / "in" / f"{number}.wav", 4.0, seed=number)
        row = {"track": f"piece/{number}", "path": f"{number}.wav", "source": "scores", "split": split, "group": "g"}
        rows.append({**row, "labels": {**labels, "number": number}, "duration_s": 4.0})
    (tmp_path / "in" / "tracks.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    config = replace(CONFIG, features=replace(CONFIG.features, dtype="float16"))
    make(tmp_path / "in", str(tmp_path / "out"), config=config)
    found = {split: [info for _, info in samples_of(tmp_path / "out", split)] for split in ("train", "valid")}
    assert {info["track"] for info in found["train"]} == {"piece/0", "piece/2"}
    assert {info["track"] for info in found["valid"]} == {"piece/1"}
    for info in found["train"] + found["valid"]:
        assert info["labels"] == {**labels, "number": int(info["track"][-1])}
        assert info["source"] == "scores"
    assert {info["uid"] for info in found["valid"]} == {"piece/1-0000", "piece/1-0001"}
    assert read_manifest(str(tmp_path / "out" / "train")).dtype == "float16"
    assert verify(str(tmp_path / "out" / "train"), deep=True) == []


def test_folders_are_never_split(album: Path, tmp_path: Path):
    """The songs of one folder share a split under every seed; the shares are the fractions given."""
    for i in range(300):
        folder = tmp_path / f"album{i:03d}"
        folder.mkdir()
        for name in ("a.wav", "b.wav"):
            (folder / name).touch()
    tracks = read_inputs(tmp_path, seed=5, fractions=(0.7, 0.2, 0.1))
    splits_of_folder: dict[str, set[str]] = {}
    for track in tracks:
        splits_of_folder.setdefault(track.track.split("/")[0], set()).add(track.split)
    assert all(len(splits) == 1 for splits in splits_of_folder.values())
    counts = Counter(splits.copy().pop() for splits in splits_of_folder.values())
    # three standard deviations of 300 draws
    assert [abs(counts[s] / 300 - p) < 0.08 for s, p in (("train", 0.7), ("valid", 0.2), ("test", 0.1))] == [True] * 3
    assert read_inputs(tmp_path, seed=6, fractions=(0.7, 0.2, 0.1)) != tracks


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"tracks\.jsonl:1: not JSON .*; write"),
        ('{"track": "a"}', r"tracks\.jsonl:1 is not a track \(path is None, not text\)"),
        ('{"path": "."}', r"tracks\.jsonl:1: '\.' is not the path of a file; write one"),
        ('{"path": "a\\u0000.wav"}', r"tracks\.jsonl:1: 'a\\x00\.wav' is not the path of a file; write one"),
        (
            '{"track": "a", "path": "a.wav", "split": "dev"}',
            "tracks.jsonl:1: split 'dev' is not one of train, valid, test",
        ),
        ('{"track": "a", "path": "a.wav"}\n{"track": "a", "path": "b.wav"}', "two tracks are named 'a'"),
    ],
)
def test_a_wrong_list_is_refused(line: str, message: str, tmp_path: Path):
    """An invalid list is an error with its line, before any work."""
    (tmp_path / "tracks.jsonl").write_text(line)
    with pytest.raises(UserError, match=message):
        read_inputs(tmp_path / "tracks.jsonl", seed=0)


def test_mistakes_on_the_command_line_are_one_sentence(album: Path, tmp_path: Path, s3_environment):
    """An empty folder, a corrupt file, a missing bucket, wrong credentials: through the real command, exit code 2."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / "x.flac").write_bytes(b"not audio at all" * 100)
    wrong = {"AWS_SECRET_ACCESS_KEY": "wrong"}
    cases: list[tuple[str, str, dict[str, str], str]] = [
        (f"{tmp_path}/empty", f"{tmp_path}/1", {}, "holds no audio"),
        (f"{tmp_path}/corrupt", f"{tmp_path}/2", {}, "none of 1 file can be used, the first because: "),
        (str(album), "s3://no-such-bucket/x", {}, "bucket 'no-such-bucket' does not exist"),
        (str(album), "s3://test-bucket/x", wrong, "refuses these credentials (403 "),
    ]
    # beside each other: most of each is imports
    with ThreadPoolExecutor(2) as users:
        list(users.map(lambda case: _expect_sentence(*case), cases))


def _command(folder: Path, out: Path) -> list[str]:
    return ["build", str(folder), str(out), *OPTIONS, "--workers=2"]


def _expect_sentence(source: str, out: str, environ: dict[str, str], expected: str) -> None:
    command = [sys.executable, "-m", "data", "build", source, out, "--workers=1"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, env=os.environ | environ)
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("features:", "shards:"))]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert expected in lines[0]


def _write_samples(path: Path, audio_S: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio_S, 24_000, subtype="FLOAT")

"""Every kind of input gives the same tracks: formats, rates, stretches, tables, tars, local and in a bucket."""

import io
import json
import tarfile
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data.building.build import Build
from data.building.config import BuildConfig
from data.building.features import FeatureConfig, extract
from data.building.inputs import BuildInputError, read_inputs
from data.reading.reader import ShardReader
from data.shards.manifest import read_manifest
from data.store.store import open_store
from pupujepa.audio.log_mel import mel_filter_bank
from pupujepa.errors import UserError
from tests.data.songs import write_song

CONFIG = BuildConfig(features=FeatureConfig(part_frames=400, min_frames=100))
# ending, libsndfile's format and subtype, sample rate, channels
FORMATS = [
    ("wav", "WAV", "PCM_16", 44_100, 2),
    ("wav", "WAV", "FLOAT", 22_050, 1),
    ("wav", "WAV", "PCM_24", 96_000, 6),
    ("flac", "FLAC", "PCM_16", 48_000, 2),
    ("flac", "FLAC", "PCM_24", 8_000, 1),
    ("mp3", "MP3", "MPEG_LAYER_III", 44_100, 2),
    ("mp3", "MP3", "MPEG_LAYER_III", 16_000, 1),
    ("ogg", "OGG", "VORBIS", 32_000, 2),
    ("opus", "OGG", "OPUS", 48_000, 2),
    ("ogg", "OGG", "OPUS", 16_000, 1),
]
TONE_HZ, SECONDS = 1500.0, 3.0


def write_tone(path: Path, *, kind: str, subtype: str, rate_hz: int, channels: int) -> None:
    """Writes a tone that is equally loud in all channels."""
    tone_S = 0.3 * np.sin(2 * np.pi * TONE_HZ * np.arange(round(SECONDS * rate_hz)) / rate_hz)
    soundfile.write(path, np.tile(tone_S[:, None], (1, channels)), rate_hz, format=kind, subtype=subtype)


@pytest.mark.parametrize(("ending", "kind", "subtype", "rate_hz", "channels"), FORMATS)
def test_a_tone_is_the_same_tone_in_every_format(ending, kind, subtype, rate_hz, channels, tmp_path: Path):
    """Decoded, mixed down and resampled, a tone is in its mel band, as loud and as long as in any other format."""
    file, reference = tmp_path / f"tone.{ending}", tmp_path / "reference.wav"
    write_tone(file, kind=kind, subtype=subtype, rate_hz=rate_hz, channels=channels)
    write_tone(reference, kind="WAV", subtype="FLOAT", rate_hz=24_000, channels=1)
    mel_TF, expected_TF = (_mel(path) for path in (file, reference))
    # lossy formats pad and delay by some hundredths of a second
    assert abs(len(mel_TF) - len(expected_TF)) <= 12
    middle = slice(100, 200)
    band = int(expected_TF[middle].mean(0).argmax())
    assert int(mel_TF[middle].mean(0).argmax()) == band
    assert _centre_hz(band) == pytest.approx(TONE_HZ, rel=0.04)
    assert mel_TF[middle, band].mean() == pytest.approx(expected_TF[middle, band].mean(), abs=0.1)


def test_a_stretch_of_a_file_is_a_track(tmp_path: Path):
    """Tracks of a list with start and end have the frames of that stretch; without end, to the end of the file."""
    write_song(tmp_path / "long.wav", 12.0, seed=1)
    lines = [{"path": "long.wav", "start": 2.5, "end": 7.5}, {"path": "long.wav", "start": 8, "track": "tail"}]
    (tmp_path / "cuts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = build(str(tmp_path / "cuts.jsonl"), tmp_path / "out")
    assert {track: len(mel_TF) for track, mel_TF in found.items()} == {"long@2.5-7.5": 500, "tail": 400}
    audio_S, rate_hz = soundfile.read(tmp_path / "long.wav", dtype="float32")
    soundfile.write(tmp_path / "cut.wav", audio_S[round(2.5 * rate_hz) : round(7.5 * rate_hz)], rate_hz)
    np.testing.assert_array_equal(found["long@2.5-7.5"], _mel(tmp_path / "cut.wav"))


def test_a_stretch_beyond_the_end_is_rejected(tmp_path: Path):
    """A stretch beyond the end of the file is rejected, not shortened."""
    write_song(tmp_path / "a.wav", 5.0)
    with pytest.raises(UserError, match=r"a.wav from 3 s to 9 s: the file ends at 5.00 s; correct start or end"):
        extract(
            tmp_path / "a.wav",
            CONFIG.features,
            into=io.BytesIO(),
            start_s=3.0,
            end_s=9.0,
            origin="a.wav from 3 s to 9 s",
        )
    stored = io.BytesIO()
    facts = extract(tmp_path / "a.wav", CONFIG.features, into=stored, start_s=3.0, end_s=5.04)
    assert stored.getvalue()
    assert facts.frames == 200


def test_a_table_gives_labels_and_groups(tmp_path: Path):
    """Unknown columns of a CSV are labels; numbers are numbers; no artist is in two splits."""
    rows = ["path,artist,tempo,catalogue"]
    for number in range(12):
        write_song(tmp_path / f"{number}.wav", 1.5, seed=number)
        rows.append(f'{number}.wav,"Artist {number % 4}, band",{90 + number}.5,007')
    (tmp_path / "tracks.csv").write_text("\n".join(rows) + "\n")
    tracks = read_inputs(tmp_path, seed=2, fractions=(0.4, 0.3, 0.3), group_by="artist")
    assert len(tracks) == 12
    splits: dict[str, set[str]] = {}
    for track in tracks:
        assert track.labels is not None
        splits.setdefault(track.labels["artist"], set()).add(track.split)
    assert sorted(splits) == [f"Artist {n}, band" for n in range(4)]
    assert all(len(found) == 1 for found in splits.values())
    assert len(set.union(*splits.values())) > 1
    assert tracks[0].labels == {"artist": "Artist 0, band", "tempo": 90.5, "catalogue": "007"}
    assert [t.position for t in sorted(tracks, key=lambda t: int(t.track))] == list(range(12))


def test_a_missing_label_names_the_tracks(tmp_path: Path):
    """Grouping by a missing label is an error that names the tracks and the available labels."""
    lines = ["path,artist,album"] + [f"{n}.wav,{'x' if n > 6 else ''},y" for n in range(9)]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    with pytest.raises(
        BuildInputError, match=r"7 of 9 tracks have no label 'artist'.*: 0, 1, 2, 3, 4 and 2 more; .*album"
    ):
        read_inputs(tmp_path / "list.csv", seed=0, group_by="artist")


def test_given_splits_must_not_tear_a_group(tmp_path: Path):
    """A list that puts one artist into train and test contradicts --group-by artist."""
    (tmp_path / "list.csv").write_text("path,split,artist\na.wav,train,x\nb.wav,test,x\n")
    with pytest.raises(BuildInputError, match=r"tracks of artist 'x' are in train and, as b, in test"):
        read_inputs(tmp_path / "list.csv", seed=0, group_by="artist")


def test_an_artist_is_one_in_both_forms_of_unicode(tmp_path: Path):
    """Composed and decomposed accents are one name: for --group-by, for groups of a list, and for folders of a Mac."""
    forms = {form: [unicodedata.normalize(form, f"Beyonc\u00e9 {n}") for n in range(30)] for form in ("NFC", "NFD")}
    lines = [
        json.dumps({"path": f"{form}{n}.wav", "group": a, "labels": {"artist": a}})
        for form in forms
        for n, a in enumerate(forms[form])
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    fractions = (0.4, 0.3, 0.3)
    for group_by in ("artist", None):
        tracks = read_inputs(tmp_path / "list.jsonl", seed=0, fractions=fractions, group_by=group_by)
        splits = {track.track: track.split for track in tracks}
        assert [splits[f"NFC{n}"] for n in range(30)] == [splits[f"NFD{n}"] for n in range(30)]
        assert set(splits.values()) == {"train", "valid", "test"}
    (tmp_path / "list.csv").write_text(
        f"path,split,artist\na.wav,train,{forms['NFC'][0]}\nb.wav,test,{forms['NFD'][0]}\n"
    )
    with pytest.raises(BuildInputError, match=r"are in train and, as b, in test"):
        read_inputs(tmp_path / "list.csv", seed=0, group_by="artist")


def test_stretches_of_a_file_stay_together(tmp_path: Path):
    """Without any label, neither stretches nor two names of one file are in two splits."""
    rows = ["track,path,start,end"]
    rows += [f"{n}-{k},song{n}.wav,{10 * k},{10 * k + 10}" for n in range(20) for k in range(5)]
    rows += [f"again-{n}-{k},whole{n}.wav,," for n in range(20) for k in range(2)]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    splits: dict[str, set[str]] = {}
    for track in read_inputs(tmp_path / "list.csv", seed=0, fractions=(0.5, 0.25, 0.25)):
        splits.setdefault(track.audio.url, set()).add(track.split)
    assert len(splits) == 40
    assert all(len(found) == 1 for found in splits.values())
    assert len(set.union(*splits.values())) == 3


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Two WebDataset tars of flac and wav with labels."""
    for number in range(2):
        songs: dict[str, bytes] = {}
        for key in ("a", "b", "c"):
            ending = "flac" if key != "b" else "wav"
            songs[f"sub/{key}{number}.{ending}"] = song_bytes(ending, seed=10 * number + ord(key))
            songs[f"sub/{key}{number}.json"] = json.dumps({"artist": f"{key}", "bpm": 100 + number}).encode()
        write_tar(tmp_path / "tars" / f"audio-{number:03d}.tar", songs)
    return tmp_path / "tars"


def test_tars_of_audio_are_an_input(tars: Path, tmp_path: Path):
    """A folder, a pattern, braces and a list of tars give the same tracks, with key, order, labels and sound."""
    found = build(str(tars), tmp_path / "out")
    names = [f"audio-{n:03d}/sub/{key}{n}" for n in range(2) for key in "abc"]
    assert sorted(found) == names
    expected = read_inputs(tars, seed=0)
    assert [t.track for t in sorted(expected, key=lambda t: t.position)] == names
    assert expected[0].labels == {"artist": "a", "bpm": 100}
    (tmp_path / "list.txt").write_text("\ufeff# two tars\r\ntars/audio-000.tar\n\n  # the other\ntars/audio-001.tar")
    for inputs in (
        [f"{tars}/audio-*.tar"],
        [f"{tars}/audio-{{000..001}}.tar"],
        [f"{tars}/audio-000.tar", f"{tars}/audio-001.tar"],
        [str(tmp_path / "list.txt")],
    ):
        assert [replace(t, source="") for t in read_inputs(inputs, seed=0)] == [replace(t, source="") for t in expected]
    (tmp_path / "b.wav").write_bytes(song_bytes("wav", seed=10 + ord("b")))
    np.testing.assert_array_equal(found["audio-001/sub/b1"], _mel(tmp_path / "b.wav"))


def test_a_list_of_tars_has_one_a_line(tars: Path, tmp_path: Path):
    """A blank in a name is part of it; a list of no tar, or of other bytes than text, is named."""
    (tars / "audio-000.tar").rename(tars / "my songs 1.tar")
    listed = tmp_path / "list.txt"
    listed.write_text("tars/my songs 1.tar\n")
    assert [track.track for track in read_inputs(listed, seed=0)] == [f"my songs 1/sub/{key}0" for key in "abc"]
    listed.write_text("# tars/audio-000.tar\n")
    with pytest.raises(BuildInputError, match=r"list.txt names no tar, so there is nothing to build; write one a line"):
        read_inputs(listed, seed=0)
    listed.write_bytes(b"caf\xe9.tar\n")
    with pytest.raises(BuildInputError, match=r"list.txt is not a UTF-8 list of tars .*; save it as UTF-8"):
        read_inputs(listed, seed=0)


def test_what_lies_in_a_bucket_builds_the_same_samples(tars: Path, tmp_path: Path, bucket: str):
    """Audio, a list and tars on s3:// give the samples of their local twins; missing objects are rejected."""
    local, store = tmp_path / "in", open_store(bucket)
    for number in range(3):
        write_song(local / "songs" / "one" / f"{number}.flac", 3.0, seed=number)
    (local / "list.csv").write_text("path,start,end,mood\nsongs/one/0.flac,1,3,sad\nsongs/one/2.flac,,,\n")
    for file in (*local.rglob("*.*"), *tars.glob("*.tar")):
        store.upload(file, file.relative_to(local if file.is_relative_to(local) else tars.parent).as_posix())
    for name, twin in (("songs", local / "songs"), ("list.csv", local / "list.csv"), ("tars", tars)):
        remote = build(f"{bucket}/{name}", tmp_path / f"out-{name}")
        here = build(str(twin), tmp_path / f"here-{name}")
        assert remote.keys() == here.keys()
        for track, mel_TF in remote.items():
            np.testing.assert_array_equal(mel_TF, here[track])
    store.write("list.csv", b"path\nsongs/one/0.flac\nsongs/gone.flac\n")
    [gone] = build_rejecting(f"{bucket}/list.csv", tmp_path / "out-gone")
    assert gone["track"] == "songs/gone"
    assert f"{bucket}/songs/gone.flac does not exist" in gone["reason"]


def test_an_object_that_changed_is_read_again(tmp_path: Path, bucket: str):
    """A track's spool name depends on the object's version, so that a resumed build never mixes old and new."""
    store, identities = open_store(bucket), []
    for seed in (1, 2):
        store.write("a.wav", song_bytes("wav", seed=seed))
        tracks = read_inputs(bucket, seed=0)
        identities.append(Build(tracks, str(tmp_path / "out"), config=CONFIG, work=str(tmp_path), workers=1).digest)
    assert identities[0] != identities[1]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["none"], "none does not exist, so there is nothing to build; give a folder, a list or tars"),
        (["folder"], r"holds no audio .*flac.*, no .tar and no list \(tracks.jsonl, tracks.csv, tracks.tsv\)"),
        (["folder/x.wav"], "is a single audio file; give the folder that holds it"),
        (["a.tar", "folder"], "of 2 inputs .*folder is not a .tar, but several inputs must all be tars"),
        (["a-*.tar"], "no tar matches .*a-"),
        (["a.tar"], "a.tar does not exist, so its tracks would be missing"),
        (["folder/empty.csv"], r"begins with the columns \[\], so no line can be read"),
        (["folder/nothing.jsonl"], "names no track, so there is nothing to build"),
    ],
)
def test_an_input_that_cannot_be_meant_is_named(inputs: list[str], message: str, tmp_path: Path):
    """The error comes before any work, in one sentence."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "empty.csv").write_text("")
    (tmp_path / "folder" / "nothing.jsonl").write_text("\n")
    with pytest.raises(UserError, match=message):
        read_inputs([f"{tmp_path}/{name}" for name in inputs], seed=0)


def build(inputs: str, out: Path, **config) -> dict[str, np.ndarray]:
    """Builds, all for training, and returns the log-mel [T, 128] of each track."""
    Build(read_inputs(inputs, seed=0), str(out), config=replace(CONFIG, **config), work=f"{out}-work", workers=1).run()
    manifest = read_manifest(f"{out}/train")
    reader, parts = ShardReader(f"{out}/train", manifest), {}
    for shard, entry in enumerate(manifest.shards):
        for position in range(entry.samples):
            mel_TF, info = reader.read(shard, position)
            parts.setdefault(info["track"], []).append((info["start_s"], mel_TF))
    reader.close()
    return {
        track: np.concatenate([mel_TF for _, mel_TF in sorted(found, key=lambda part: part[0])])
        for track, found in parts.items()
    }


def build_rejecting(inputs: str, out: Path) -> list[dict]:
    """Builds, allowing one unusable track, and returns the lines of rejected.jsonl."""
    build(inputs, out, max_rejected=1)
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    """Writes a tar of members in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def song_bytes(ending: str, *, seed: int, seconds: float = 1.5) -> bytes:
    """The bytes of a file of noise."""
    stream = io.BytesIO()
    audio_S = np.random.default_rng(seed).normal(0, 0.1, round(seconds * 24_000))
    soundfile.write(stream, audio_S, 24_000, format=ending.upper())
    return stream.getvalue()


def _mel(path: Path) -> np.ndarray:
    """The log-mel of a file as the build stores it."""
    out = path.parent / f"mel-{path.name}"
    folder = out / "in"
    folder.mkdir(parents=True)
    (folder / path.name).write_bytes(path.read_bytes())
    [mel_TF] = build(str(folder), out / "out").values()
    return mel_TF


def _centre_hz(band: int) -> float:
    filters_KF = mel_filter_bank(CONFIG.features.frontend).numpy()
    bins_hz = np.linspace(0, 12_000, len(filters_KF))
    return float((bins_hz @ filters_KF[:, band]) / filters_KF[:, band].sum())

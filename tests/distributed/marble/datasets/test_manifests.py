"""MARBLE's manifests: fields, slicing, and every quirk of labels and items with its protocol."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distributed.marble.datasets.corpus import LabelledCorpus, LabelledTrack, Slice, cut, union
from distributed.marble.datasets.manifests import read_marble
from distributed.marble.datasets.targets import Split, item_targets, prepare_targets, slice_targets
from distributed.marble.tasks.marble_tasks import MARBLE_TASKS
from distributed.marble.tasks.tasks import Protocol, Task
from pupujepa.errors import UserError
from tests.distributed.marble.marble_data import RATE_HZ, SPLITS, Checkout, noise

ROWS = {t.name: t for t in MARBLE_TASKS}
PROTOCOLS: tuple[Protocol, ...] = ("marble", "clean")


def row(name: str, protocol: Protocol) -> Task:
    return ROWS[name].under(protocol)


def track(rate_hz: int, num_samples: int) -> LabelledTrack:
    return LabelledTrack(
        "a", Path("a.wav"), "train", "a", num_samples / rate_hz, {}, rate_hz=rate_hz, num_samples=num_samples
    )


@pytest.mark.parametrize(
    ("task", "rate_hz", "num_samples", "marble", "clean"),
    [
        ("EMO", 44_100, 1_984_941, 3, 3),  # 45.01 s: three of 15 s, 0.01 s is dropped
        ("GS", 44_100, 1_323_000, 1, 1),  # 30 s
        ("GTZANGenre", 22_050, 661_794, 1, 1),  # 30.01 s: 0.994 of int(30.2 * 22050) = 665910 samples, padded
        ("GTZANBeatTracking", 22_050, 661_794, 3, 3),  # three of 10 s
        ("HookTheoryKey", 48_000, 512_640, 0, 1),  # 10.68 s, below 12 s: vanishes upstream, is padded in clean
        ("HookTheoryKey", 48_000, 576_000, 1, 1),  # 12 s is 0.8 of 15 s exactly
        ("HookTheoryStructure", 44_100, 413_658, 1, 1),  # 9.38 s: the ratio is 0.1 here
        ("HookTheoryStructure", 44_100, 60_000, 0, 1),  # 1.36 s
        ("MTT", 16_000, 468_700, 1, 1),  # 29.29 s
        ("MTGTop50", 44_100, 44_100 * 83, 2, 2),  # 23 s remain, less than 24
        ("MTGTop50", 44_100, 44_100 * 84, 3, 3),  # 24 s remain
        ("Chords1217", 24_000, 2_856_333, 8, 8),  # 119.01 s: seven of 15 s and 14 s more
        ("Chords1217", 24_000, 24_000 * 31, 2, 2),  # 1 s remains, less than 1.5
    ],
)
def test_slices_are_those_of_the_reference(task: str, rate_hz: int, num_samples: int, marble: int, clean: int):
    """Windows are whole at the file's rate, without overlap; a partial last one needs the task's ratio."""
    for protocol, expected in (("marble", marble), ("clean", clean)):
        slices = cut(track(rate_hz, num_samples), row(task, protocol).clips)
        assert [s.index for s in slices] == list(range(expected))


def write(checkout: Checkout, task: str, labels: dict[str, list], *, seconds: float = 16.0, channels: int = 1) -> None:
    """One file for each label; a label may be (label, ori_uid)."""
    source = ROWS[task].source
    assert source is not None
    for split in SPLITS:
        rows = []
        for i, entry in enumerate(labels[split]):
            label, uid = entry if isinstance(entry, tuple) else (entry, f"{split}{i}")
            audio_CS = np.stack([noise(int(seconds * RATE_HZ), 2 * i + c, 0.1) for c in range(channels)])
            facts = checkout.audio(f"data/{source.folder}/audio/{split}{i}.wav", audio_CS, RATE_HZ)
            rows.append(facts | {"label": label, "ori_uid": uid})
        checkout.manifest(source.folder, source.stem, split, rows)


def everywhere(labels: list) -> dict[str, list]:
    """The same labels in every split."""
    return dict.fromkeys(SPLITS, labels)


KEYS = {"train": ["C major", "A minor"], "val": ["C major", "A minor"], "test": ["C major", "A minor"]}


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize("as_data_folder", [False, True])
def test_data_is_the_checkout_or_its_data_folder(checkout: Checkout, as_data_folder: bool):
    """Checkout and data folder give the same tracks, though paths in manifests begin with data/."""
    write(checkout, "GS", KEYS)
    corpus = read_marble(checkout.root / "data" if as_data_folder else checkout.root, row("GS", "marble"))
    first = corpus.of_split("train")[0]
    assert (first.uid, first.rate_hz, first.num_samples, first.num_channels) == (
        "data/GS/audio/train0.wav",
        RATE_HZ,
        16 * RATE_HZ,
        1,
    )
    assert [len(corpus.of_split(s)) for s in ("train", "valid", "test")] == [2, 2, 2]


def test_labels_are_read_as_each_task_writes_them(checkout: Checkout):
    """Labels are [arousal, valence], lists of tags (even empty), times, sections joined by "_", and chords by start."""
    chords = [
        {"start_time": 5.0, "end_time": 9.0, "chord_str": "F"},
        {"start_time": 0.0, "end_time": 5.0, "chord_str": "C:maj7"},
    ]
    cases = {
        "EMO": ([-0.25, 0.5], {"arousal": -0.25, "valence": 0.5}),
        "GTZANGenre": ("rock", {"genre": "rock"}),
        "GTZANBeatTracking": ({"beat": [0.5, 1.0], "tempo": 120}, {"beats": [0.5, 1.0], "downbeats": []}),
        "HookTheoryStructure": (["pre-chorus", "chorus"], {"section": "chorus"}),
        "MTT": ([], {"tags": []}),
        "MTGMood": (["mood/theme---film"], {"tags": ["mood/theme---film"]}),
    }
    for name, (label, expected) in cases.items():
        write(checkout, name, {"train": [label], "val": [label], "test": [label]}, seconds=0.1)
        assert read_marble(checkout.root, row(name, "marble")).tracks[0].labels == expected
    write(checkout, "Chords1217", everywhere([chords]), seconds=0.1)
    [read] = read_marble(checkout.root, row("Chords1217", "marble")).of_split("test")
    assert [(s.start_s, s.end_s, s.label) for s in read.labels["chords"]] == [(0.0, 5.0, "C:maj7"), (5.0, 9.0, "F")]


@pytest.mark.parametrize(
    ("label", "section"),
    [
        (["intro"], "intro"),
        ("verse", "verse"),
        (["solo"], "instrumental"),
        (["verse", "pre-chorus"], "verse"),
        (["intro", "verse"], "verse"),
        (["intro", "chorus"], "chorus"),
    ],
)
def test_sections_are_seven_classes(checkout: Checkout, label: object, section: str):
    """In both protocols a compound section is the class that upstream maps it to."""
    write(checkout, "HookTheoryStructure", everywhere([label]), seconds=0.1)
    assert read_marble(checkout.root, row("HookTheoryStructure", "clean")).tracks[0].labels == {"section": section}


def test_an_unknown_section_stops_the_reading_as_it_does_upstream(checkout: Checkout):
    write(checkout, "HookTheoryStructure", everywhere([["chorus", "solo"]]), seconds=0.1)
    with pytest.raises(UserError, match=r"train\.jsonl:1: 'chorus_solo' is not a section of MARBLE's"):
        read_marble(checkout.root, row("HookTheoryStructure", "marble"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_keys_in_other_modes_are_left_out(checkout: Checkout, protocol: Protocol):
    """Both protocols keep the 24 major and minor keys; other modes are left out of every split and counted."""
    labels = {split: [*KEYS[split], "D dorian", "E phrygianDominant"] for split in SPLITS}
    write(checkout, "HookTheoryKey", labels)
    data = prepare_targets(row("HookTheoryKey", protocol), read_marble(checkout.root, row("HookTheoryKey", protocol)))
    assert [(len(s.tracks), s.left_out) for s in data.splits.values()] == [(2, 2)] * 3


def test_a_tag_outside_the_fifty_is_refused(checkout: Checkout):
    """An unknown tag is refused, as upstream does: otherwise it would silently be lost."""
    write(checkout, "MTT", everywhere([["guitar"], ["banjo"]]), seconds=29.5)
    task = row("MTT", "marble")
    with pytest.raises(UserError, match=r"\['banjo'\] are not among the 50 classes of task 'MTT'"):
        prepare_targets(task, read_marble(checkout.root, task))


def test_jamendos_classes_are_numbered_as_they_appear_in_training(checkout: Checkout):
    """Classes have the order of upstream's label map; tags of other splits add none."""
    tags = {"train": [["genre---rock", "genre---pop"], ["genre---ambient"]], "val": [["genre---x"], ["genre---pop"]]}
    write(checkout, "MTGGenre", tags | {"test": [["genre---pop"], ["genre---rock"]]}, seconds=30.0)
    task = row("MTGGenre", "marble")
    data = prepare_targets(task, read_marble(checkout.root, task))
    assert data.space.classes == ("genre---rock", "genre---pop", "genre---ambient")


def test_arousal_and_valence_are_not_standardised_again(checkout: Checkout):
    """EMO's labels are z-scores and are not standardised, in both protocols."""
    write(checkout, "EMO", {"train": [[3.0, 1.0], [5.0, 2.0]], "val": [[0, 0], [1, 1]], "test": [[-1, 4], [2, 0]]})
    for protocol in PROTOCOLS:
        task = row("EMO", protocol)
        data = prepare_targets(task, read_marble(checkout.root, task))
        values = slice_targets(data, data.splits["test"], protocol=protocol, frames=None).values
        np.testing.assert_array_equal(values, [[-1, 4], [2, 0]])


def test_clips_of_one_song_are_one_item_of_giantsteps(checkout: Checkout):
    """Both protocols average the clips with the same ori_uid, which is the song."""
    labels = {split: [("C major", "1"), ("C major", "1"), ("A minor", "2")] for split in SPLITS}
    labels = {split: [(label, split + uid) for label, uid in entries] for split, entries in labels.items()}
    write(checkout, "GS", labels, seconds=30.0)
    for protocol in PROTOCOLS:
        task = row("GS", protocol)
        test = prepare_targets(task, read_marble(checkout.root, task)).splits["test"]
        assert test.item_of_slice.tolist() == [0, 0, 1]
        assert test.units == ("test1", "test2")


def test_quirk_clips_of_one_video_are_one_item_whatever_their_keys(checkout: Checkout):
    """Upstream averages HookTheory's clips by YouTube id under the first clip's key; clean scores each clip."""
    entries = [("G major", "yt"), ("A minor", "yt"), ("C major", "other")]
    write(checkout, "HookTheoryKey", KEYS | {"test": entries})
    expected = {"marble": (["G major", "C major"], [0, 0, 1]), "clean": (["G major", "A minor", "C major"], [0, 1, 2])}
    for protocol in PROTOCOLS:
        task = row("HookTheoryKey", protocol)
        data = prepare_targets(task, read_marble(checkout.root, task))
        test = data.splits["test"]
        items = item_targets(slice_targets(data, test, protocol=protocol, frames=None), test)
        keys, item_of_slice = expected[protocol]
        assert ([items.classes[v] for v in items.values], test.item_of_slice.tolist()) == (keys, item_of_slice)
        assert set(test.units) == {"yt", "other"}  # a video is what the bootstrap draws, in both


def test_quirk_recordings_in_several_splits(checkout: Checkout, caplog: pytest.LogCaptureFixture):
    """Upstream trains on clips of test videos; clean keeps a video in its last split only, and logs it."""
    caplog.set_level(logging.INFO, logger="distributed.marble.datasets.manifests")
    labels = {
        "train": [("C major", "a"), ("A minor", "b"), ("G major", "c")],
        "val": [("C major", "b"), ("A minor", "d")],
        "test": [("C major", "a"), ("A minor", "e")],
    }
    write(checkout, "HookTheoryKey", labels)
    groups = {
        protocol: {
            split: [t.group for t in read_marble(checkout.root, row("HookTheoryKey", protocol)).of_split(split)]
            for split in ("train", "valid", "test")
        }
        for protocol in PROTOCOLS
    }
    assert groups["marble"] == {"train": ["a", "b", "c"], "valid": ["b", "d"], "test": ["a", "e"]}
    assert groups["clean"] == {"train": ["c"], "valid": ["b", "d"], "test": ["a", "e"]}
    assert "HookTheoryKey: 2 tracks are left out because their recording is in a later split too" in caplog.text


@pytest.mark.parametrize(
    ("task", "channels"),
    [("HookTheoryKey", ["mix", "0", "1"]), ("Chords1217", ["mix", "mix", "0", "1"]), ("GS", ["0"]), ("MTT", ["mix"])],
)
def test_quirk_channels_of_stereo_files(task: str, channels: list[str]):
    """Upstream trains HookTheory on left, right or mix at random (Chords: half the time the mix); else the mix.

    Tasks with mode first hear the left channel. Clean hears the mix everywhere. Mono files have no choice.
    """
    stereo = replace(track(RATE_HZ, 40 * RATE_HZ), num_channels=2, labels={})
    label = {"key": "C major", "tags": ["guitar"], "chords": []}
    expected = {"marble": (channels, ["0"] if task == "GS" else ["mix"]), "clean": (["mix"], ["mix"])}
    for protocol, (train, test) in expected.items():
        data = _channels_of(row(task, protocol), replace(stereo, labels=label))
        assert [s.channel for s in (data["train"].variants or [data["train"].slices[:1]])[0]] == train
        assert {s.channel for s in data["test"].slices} == set(test)
        assert not data["test"].variants
        mono = _channels_of(row(task, protocol), replace(stereo, labels=label, num_channels=1))
        assert not mono["train"].variants
        assert {s.channel for s in mono["train"].slices} == {"mix"}


def _channels_of(task: Task, one: LabelledTrack) -> dict[str, Split]:
    other = {"key": "A minor", "tags": ["rock"], "chords": []}
    tracks = tuple(
        replace(one, uid=f"{split}{i}", split=split, group=f"{split}{i}", labels=one.labels if i else other)
        for split in ("train", "valid", "test")
        for i in range(2)
    )
    return prepare_targets(task, LabelledCorpus(tracks, "digest")).splits


def test_quirk_the_manifests_facts_are_believed_or_the_files(checkout: Checkout):
    """Upstream cuts by the manifest's num_samples; clean by the file's header: 16 s instead of 31 s."""
    write(checkout, "GS", KEYS)
    path = checkout.root / "data/GS/GS.train.jsonl"
    rows = [json.loads(line) | {"num_samples": 31 * RATE_HZ, "channels": 2} for line in path.read_text().splitlines()]
    checkout.manifest("GS", "GS", "train", rows)
    believed = read_marble(checkout.root, row("GS", "marble")).tracks[0]
    checked = read_marble(checkout.root, row("GS", "clean")).tracks[0]
    assert (believed.num_samples, believed.num_channels) == (31 * RATE_HZ, 2)
    assert (checked.num_samples, checked.num_channels) == (16 * RATE_HZ, 1)


def test_chord_frames_of_a_padded_slice(checkout: Checkout):
    """Of 22 s the second slice has 7 s of audio; upstream labels its padding, clean does not."""
    segments = [
        {"start_time": 0.0, "end_time": 20.0, "chord_str": "C"},
        {"start_time": 20.0, "end_time": 22.0, "chord_str": "N"},
    ]
    write(checkout, "Chords1217", everywhere([segments]), seconds=22.0)
    second = {}
    for protocol in PROTOCOLS:
        task = row("Chords1217", protocol)
        data = prepare_targets(task, read_marble(checkout.root, task))
        second[protocol] = slice_targets(data, data.splits["test"], protocol=protocol, frames=(15, 1.0)).values[1]
    assert second["marble"].tolist() == [0] * 15
    assert second["clean"].tolist() == [0] * 5 + [24] * 2 + [-1] * 8


def test_a_file_that_stands_twice_is_two_tracks_of_one_item(checkout: Checkout):
    """A file listed twice gives two tracks, as upstream, with separate features."""
    write(checkout, "GS", KEYS, seconds=30.0)
    path = checkout.root / "data/GS/GS.test.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")
    task = row("GS", "marble")
    test = prepare_targets(task, read_marble(checkout.root, task)).splits["test"]
    assert [s.uid for s in test.slices][2] == "data/GS/audio/test0.wav#2"
    assert test.item_of_slice.tolist() == [0, 1, 0]


def test_several_lists_of_the_same_audio_are_one_corpus(checkout: Checkout):
    """The union has every file once, and a digest that does not depend on labels."""
    write(checkout, "MTGGenre", everywhere([["genre---a"], ["genre---b"]]), seconds=0.1)
    genre = read_marble(checkout.root, row("MTGGenre", "marble"))
    for split in SPLITS:
        text = (checkout.root / f"data/MTG/MTGGenre.{split}.jsonl").read_text()
        (checkout.root / f"data/MTG/MTGMood.{split}.jsonl").write_text(text.replace("genre", "mood/theme"))
    mood = read_marble(checkout.root, row("MTGMood", "marble"))
    both = union([genre, mood])
    assert genre.digest != mood.digest
    assert sorted(t.uid for t in both.tracks) == sorted(t.uid for t in genre.tracks)
    assert both.digest == union([mood]).digest
    (checkout.root / genre.tracks[0].uid).write_bytes((checkout.root / genre.tracks[1].uid).read_bytes())
    assert union([read_marble(checkout.root, row("MTGMood", "marble"))]).digest != both.digest


def test_broken_manifests_are_refused_with_the_line(checkout: Checkout):
    """A line that is not JSON or not an object, a missing field and a missing file are clear errors."""
    write(checkout, "GS", KEYS)
    path = checkout.root / "data/GS/GS.train.jsonl"
    good = path.read_text().splitlines()[0]
    lost = json.dumps(json.loads(good) | {"audio_path": "data/GS/lost.wav"})
    bare = json.dumps({k: v for k, v in json.loads(good).items() if k != "ori_uid"})
    for line, message in (
        ("{", r"GS\.train\.jsonl:2: not JSON"),
        ("[1]", r"GS\.train\.jsonl:2: not an object"),
        (bare, r"GS\.train\.jsonl:2: the row has no 'ori_uid'"),
        (
            good.replace(f'"sample_rate": {RATE_HZ}', '"sample_rate": "fast"'),
            r"GS\.train\.jsonl:2: a field is of the wrong",
        ),
        (good.replace(f'"sample_rate": {RATE_HZ}', '"sample_rate": NaN'), r"GS\.train\.jsonl:2: not JSON \(NaN is not"),
        (
            good.replace(f'"sample_rate": {RATE_HZ}', '"sample_rate": [1]'),
            r"GS\.train\.jsonl:2: a field is of the wrong",
        ),
        (lost, r"GS\.train\.jsonl:2: the audio file .*lost\.wav is missing.*download\.py puts the data set m-a-p/GS"),
    ):
        path.write_text(good + "\n" + line + "\n")
        with pytest.raises(UserError, match=message):
            read_marble(checkout.root, row("GS", "marble"))


def test_slices_of_other_channels_have_names_of_their_own():
    """The mix has its old name without a channel, so that features of older evaluations stay valid."""
    assert (Slice("a", 1).name, Slice("a", 1, "0").name) == (["a", 1], ["a", 1, "0"])

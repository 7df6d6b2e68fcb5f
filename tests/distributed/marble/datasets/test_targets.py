from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distributed.marble.datasets.corpus import LabelledCorpus, LabelledTrack
from distributed.marble.datasets.targets import item_targets, prepare_targets, slice_targets, widened
from distributed.marble.tasks.tasks import TASKS, Clips, Task
from pupujepa.errors import UserError

ROWS = {t.name: t for t in TASKS}


def corpus_of(labels: list[dict], splits: str, *, duration_s: float = 10.24) -> LabelledCorpus:
    """A corpus without audio; the letters of `splits` are t(rain), v(alid) and (t)e(st)."""
    names = {"t": "train", "v": "valid", "e": "test"}
    tracks = tuple(
        LabelledTrack(f"t{i}", Path("x.wav"), names[s], f"g{i // 2}", duration_s, label)
        for i, (label, s) in enumerate(zip(labels, splits, strict=True))
    )
    return LabelledCorpus(tracks, "digest")


def sliced(task: Task, clips: Clips) -> Task:
    return replace(task, clips=clips)


def test_tracks_without_a_label_are_left_out_and_counted():
    """Pieces without a known key are left out of the key task, in every split."""
    keys = ["C major", None, "A minor", "C major", "A minor", "G major", None, "F major"]
    data = prepare_targets(ROWS["key"], corpus_of([{"key": k} for k in keys], "tttvveee"))
    assert {n: len(s.units) for n, s in data.splits.items()} == {"train": 2, "valid": 2, "test": 2}
    assert (data.splits["train"].left_out, data.splits["test"].left_out) == (1, 1)


def test_a_collection_that_training_never_saw_is_left_out():
    """Classes are those of the training split; test tracks of other classes are left out."""
    names = ["bach", "haydn", "bach", "haydn", "bach", "haydn", "folk"]
    data = prepare_targets(ROWS["collection"], corpus_of([{"collection": n} for n in names], "ttvveee"))
    assert data.space.classes == ("bach", "haydn")
    assert data.splits["test"].left_out == 1


def test_regression_targets_are_logs_standardised_on_training():
    """Targets have mean 0 and deviation 1 on the training split; other splits get the same map."""
    tempi, densities = [60.0, 90.0, 140.0, 80.0, 100.0, 70.0, 120.0], [1.0, 3.0, 8.0, 2.0, 5.0, 4.0, 6.0]
    labels = [{"tempo_bpm": t, "note_density_hz": d} for t, d in zip(tempi, densities, strict=True)]
    data = prepare_targets(ROWS["tempo"], corpus_of(labels, "tttvvee"))
    train = slice_targets(data, data.splits["train"], protocol="clean", frames=None).values
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(train.std(axis=0), 1, atol=1e-6)
    test = slice_targets(data, data.splits["test"], protocol="clean", frames=None).values
    for column, values in enumerate((tempi, densities)):
        logs = np.log(values)
        np.testing.assert_allclose(test[:, column], (logs[5:] - logs[:3].mean()) / logs[:3].std(), rtol=1e-4)


def test_beat_targets_fade_over_two_frames():
    """Activations are 1 at a beat, then 1/2 and 1/4; overlapping slopes keep the larger value."""
    np.testing.assert_array_equal(
        widened(np.array([0.2, 0.32]), frames=12, frame_rate_hz=25.0, neighbours=2),
        [0, 0, 0, 0.25, 0.5, 1, 0.5, 0.5, 1, 0.5, 0.25, 0],
    )


def test_events_are_those_of_the_slice():
    """A slice has the beats inside it, in seconds from its start; protocol marble rounds and does not interpolate."""
    labels = [{"beats": [0.5 + i, 10.3 + 0.01 * i, 12.0], "downbeats": [10.4]} for i in range(3)]
    task = sliced(ROWS["beats"], Clips(seconds=10.0, max_slices=None, min_ratio=0.1))
    data = prepare_targets(task, corpus_of(labels, "tve", duration_s=12.5))
    test = data.splits["test"]
    clean = slice_targets(data, test, protocol="clean", frames=(250, 25.0))
    assert clean.events is not None
    np.testing.assert_allclose(clean.events.times_s[1][0], [0.32, 2.0])
    np.testing.assert_allclose(clean.events.times_s[0][0], [2.5])
    assert clean.values.shape == (2, 250, 2)
    upstream = slice_targets(data, test, protocol="marble", frames=(250, 25.0)).events
    assert upstream is not None
    assert (upstream.label_frames, upstream.decode_rates_hz, upstream.bpm_ranges[1]) == (250, None, (55.0, 215.0))


def test_quirk_a_beat_that_rounds_past_the_end_has_no_neighbours_upstream():
    """A beat at 9.99 s rounds to frame 250 of 0 ... 249: upstream forgets it, clean marks the frames before it."""
    task = sliced(ROWS["beats"], Clips(seconds=10.0, max_slices=None, min_ratio=0.1))
    labels = [{"beats": [1.0 + i, 9.99], "downbeats": [1.0]} for i in range(3)]
    data = prepare_targets(task, corpus_of(labels, "tve", duration_s=10.0))
    ends = {
        protocol: slice_targets(data, data.splits["test"], protocol=protocol, frames=(250, 25.0)).values[0, -2:, 0]
        for protocol in ("clean", "marble")
    }
    assert ends["clean"].tolist() == [0.25, 0.5]
    assert ends["marble"].tolist() == [0.0, 0.0]


def test_slices_of_one_track_are_one_item():
    """Clip tasks aggregate by track; an item has the target of its slices, and its unit is the piece."""
    task = sliced(ROWS["key"], Clips(seconds=3.0, max_slices=None))
    keys = ["C major", "A minor", "C major", "A minor", "G major", "F major"]
    data = prepare_targets(task, corpus_of([{"key": k} for k in keys], "ttvvee"))
    test = data.splits["test"]
    assert test.item_of_slice.tolist() == [0, 0, 0, 1, 1, 1]
    assert test.units == ("g2", "g2")
    items = item_targets(slice_targets(data, test, protocol="clean", frames=None), test)
    assert [items.classes[v] for v in items.values] == ["G major", "F major"]


def test_training_is_thinned_for_frames_and_test_is_not():
    labels = [{"beats": [0.5], "downbeats": [0.5]} for _ in range(9)]
    assert ROWS["beats"].frames is not None
    task = replace(ROWS["beats"], frames=replace(ROWS["beats"].frames, train_tracks=2, valid_tracks=1))
    data = prepare_targets(task, corpus_of(labels, "tttvvveee"))
    assert {n: len(s.tracks) for n, s in data.splits.items()} == {"train": 2, "valid": 1, "test": 3}


def test_a_task_without_labelled_test_items_says_so():
    labels = [{"key": "C major"}, {"key": "A minor"}, {"key": "C major"}, {"key": "A minor"}, {"key": None}]
    with pytest.raises(UserError, match=r"no labelled item in the test split \(1 tracks without a usable key"):
        prepare_targets(ROWS["key"], corpus_of(labels, "ttvve"))


def test_tracks_that_are_too_short_are_named():
    labels = [{"key": "C major"}, {"key": "A minor"}]
    with pytest.raises(UserError, match=r"0 tracks without a usable key, 2 shorter than 4.096 s"):
        prepare_targets(ROWS["key"], corpus_of(labels, "tt", duration_s=2.0))


@pytest.mark.parametrize(
    ("task", "label", "message"),
    [
        (
            "tempo",
            {"tempo_bpm": "fast", "note_density_hz": 1.0},
            "t1: the label tempo_bpm=fast is not a number, so 'tempo'",
        ),
        ("collection", {"collection": 1}, "t1: the label collection=1 is not text"),
        ("instruments", {"instruments": "piano"}, "instruments=piano is not a list of text"),
        ("instruments", {"instruments": ["piano", 3]}, r"instruments=\['piano', 3\] is not a list of text"),
        ("beats", {"beats": [0.5, "1"], "downbeats": []}, r"beats=\[0.5, '1'\] is not a list of numbers"),
        ("beats", {"beats": 3, "downbeats": []}, "beats=3 is not a list of numbers"),
    ],
)
def test_a_label_of_another_kind_is_refused_before_anything_is_computed(task: str, label: dict, message: str):
    """Text for a number, mixed classes, one name instead of a list: the sentence names track and label."""
    fine = {"tempo_bpm": 60.0, "note_density_hz": 1.0, "collection": "bach", "instruments": ["piano"], "beats": [0.5]}
    with pytest.raises(UserError, match=message):
        prepare_targets(ROWS[task], corpus_of([fine | {"downbeats": []}, label, fine], "tve"))


def test_labels_that_are_all_alike_are_refused_before_anything_is_computed():
    labels = [{"instruments": ["piano"]}, {"instruments": ["organ"]}, *[{"instruments": ["piano"]}] * 4]
    with pytest.raises(UserError, match="all 2 labelled tracks of the valid split have the same instruments"):
        prepare_targets(ROWS["instruments"], corpus_of(labels, "ttvvee"))

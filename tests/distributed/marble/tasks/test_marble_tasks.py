"""Rows of MARBLE's tasks against the table of its configs."""

import pytest

from distributed.marble.metrics.metrics import METRICS
from distributed.marble.tasks.marble_tasks import ALL_TASKS, MARBLE_TASKS, MTT_TAGS, choose_tasks
from distributed.marble.tasks.tasks import KEYS, TASKS
from pupujepa.errors import UserError

# task: clip, least share of a last slice, slices of a step and of a batch (MTT and MTG: four GPUs together), epochs,
# patience, plateau's factor and patience, rate
TABLE = {
    "EMO": (15.0, 0.8, 64, 16, 100, 20, 0.5, 5, 1e-3),
    "GS": (30.0, 0.8, 64, 16, 50, 20, 0.1, 5, 1e-3),
    "GTZANGenre": (30.2, 0.8, 64, 8, 100, 20, 0.5, 6, 5e-3),
    "GTZANBeatTracking": (10.0, 0.8, 64, 8, 50, 10, 0.5, 5, 1e-3),
    "HookTheoryKey": (15.0, 0.8, 64, 8, 50, 10, 0.1, 5, 1e-3),
    "HookTheoryStructure": (15.0, 0.1, 64, 16, 50, 10, 0.1, 5, 1e-3),
    "MTT": (30.0, 0.8, 128, 128, 50, 10, 0.5, 3, 1e-3),
    "MTGGenre": (30.0, 0.8, 128, 128, 20, 10, 0.5, 3, 1e-3),
    "MTGInstrument": (30.0, 0.8, 128, 128, 20, 10, 0.5, 3, 1e-3),
    "MTGMood": (30.0, 0.8, 128, 128, 20, 10, 0.5, 3, 1e-3),
    "MTGTop50": (30.0, 0.8, 128, 128, 20, 10, 0.5, 3, 1e-3),
    "Chords1217": (15.0, 0.1, 64, 8, 50, 10, 0.5, 5, 1e-3),
}
OUTPUTS = {"GS": 24, "HookTheoryKey": 24, "GTZANGenre": 10, "HookTheoryStructure": 7, "MTT": 50, "Chords1217": 25}


@pytest.mark.parametrize("name", TABLE)
def test_protocol_marble_has_the_configs_numbers(name: str):
    """Slicing, batches, stopping rules and learning rate of each row; the head is 512 hidden units with dropout."""
    task = choose_tasks([name])[0].under("marble")
    fit = task.fit
    row = (fit.batch_size, fit.loader_batch, fit.max_epochs, fit.patience, fit.plateau_factor, fit.plateau_patience)
    assert (task.clips.seconds, task.clips.min_ratio, *row, *fit.learning_rates) == TABLE[name]
    assert (fit.hidden, fit.dropout, fit.seeds) == (512, 0.2, (1234,))
    assert fit.readouts == ("layers", "reduced")
    assert (task.clips.max_slices, task.clips.keep_short) == (None, False)
    assert len(task.classes) == OUTPUTS.get(name, 0)


@pytest.mark.parametrize("task", MARBLE_TASKS, ids=lambda t: t.name)
def test_both_protocols_of_a_row_are_whole(task):
    """Metrics exist, only frame tasks have frames, and protocols share slicing, head and labels."""
    marble, clean = task.under("marble"), task.under("clean")
    for row in (marble, clean):
        assert {row.metric, *row.extra_metrics} <= set(METRICS)
        assert (row.frames is not None) == (row.target in ("frames", "frame_classes"))
        assert row.under("clean") == row.under("marble") == row
    assert (clean.header_facts, clean.drop_leaks, clean.clips.keep_short, clean.channels) == (
        True,
        True,
        True,
        ("mix", "mix"),
    )
    assert (marble.header_facts, marble.drop_leaks) == (False, False)
    assert (clean.labels, clean.classes, clean.clips.seconds) == (marble.labels, marble.classes, marble.clips.seconds)
    assert set(marble.fit.learning_rates) < set(clean.fit.learning_rates)


def test_monitors_are_batch_means_but_for_tags():
    """MTT and MTG validate on files and beats on events, all at once; every other task logs the mean of its batches."""
    of_batches = {t.name for t in MARBLE_TASKS if t.fit.batch_mean_monitor}
    assert of_batches == {t.name for t in MARBLE_TASKS if not t.name.startswith(("MT", "GTZANBeat"))}


def test_the_offline_rows_have_one_version():
    """Their protocols differ in training alone."""
    for task in TASKS:
        assert task.under("clean") == task.under("marble") == task


def test_the_fifty_tags_are_distinct_and_in_the_order_of_the_reference():
    assert (len(set(MTT_TAGS)), MTT_TAGS[0], MTT_TAGS[16], MTT_TAGS[37], MTT_TAGS[49]) == (
        50,
        "guitar",
        "indian",
        "new age",
        "choral",
    )
    assert len(KEYS) == 24


def test_tasks_are_chosen_by_name_and_by_group():
    assert choose_tasks(["all"]) == ALL_TASKS
    assert choose_tasks(["marble"]) == MARBLE_TASKS
    assert choose_tasks(["MTT", "offline"]) == (*TASKS, next(t for t in MARBLE_TASKS if t.name == "MTT"))
    with pytest.raises(UserError, match="did you mean MTGMood"):
        choose_tasks(["MTGMoods"])

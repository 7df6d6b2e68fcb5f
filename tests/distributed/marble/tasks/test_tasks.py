import pytest

from distributed.marble.metrics.metrics import METRICS
from distributed.marble.tasks.tasks import KEYS, TASKS, select_tasks
from pupujepa.errors import UserError


def test_the_five_offline_rows_are_there_and_consistent():
    """Metrics of every row exist, exactly the frame tasks have frames, and each output has one transform."""
    assert [t.name for t in TASKS] == ["key", "beats", "instruments", "tempo", "collection"]
    for task in TASKS:
        assert {task.metric, *task.extra_metrics} <= set(METRICS)
        assert (task.frames is not None) == (task.target == "frames")
        assert task.target != "regression" or len(task.transforms) == len(task.labels)


def test_keys_are_spelt_and_numbered_as_in_giantsteps():
    """C to B major are 0-11, C to B minor 12-23, with mir_eval's flats."""
    assert (KEYS[0], KEYS[1], KEYS[6], KEYS[12], KEYS[23]) == ("C major", "Db major", "Gb major", "C minor", "B minor")


def test_tasks_are_selected_in_table_order():
    assert [t.name for t in select_tasks(["tempo", "key"])] == ["key", "tempo"]
    assert select_tasks(["all"]) == TASKS


def test_a_misspelt_task_names_the_nearest():
    with pytest.raises(UserError, match="did you mean instruments"):
        select_tasks(["instrument"])

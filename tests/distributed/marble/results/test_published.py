import pytest

from distributed.marble.metrics.metrics import METRICS
from distributed.marble.results.published import MARBLE_COLUMNS, caveats, published_models
from distributed.marble.tasks.marble_tasks import MARBLE_TASKS
from distributed.marble.tasks.tasks import TASKS

MODELS = {m.name: m for m in published_models()}


def test_published_numbers_are_those_of_the_sources():
    """Samples of both sources are as printed; missing values are absent, not zero."""
    assert MODELS["PupuJEPA-Large"].scores["gtzan_genre_acc"] == "86.9"
    assert MODELS["MERT-Base"].scores["hooktheory_key_refined"] == "73.4"
    assert MODELS["MERT-v2-30s"].scores["chords1217_acc"] == "78.48"
    assert "hooktheory_key_refined" not in MODELS["MERT-v2-30s"].scores
    assert {m.source for m in MODELS.values()} == {"arXiv:2606.25713", "model card of MERT-v2"}
    assert len(MODELS) == 17


def test_every_published_score_has_a_column_and_every_column_a_metric():
    """The leaderboard has every published number, and each column a metric of its task in both protocols."""
    assert {c.published for c in MARBLE_COLUMNS} == {name for m in MODELS.values() for name in m.scores}
    tasks = {t.name: t for t in MARBLE_TASKS}
    assert {c.task for c in MARBLE_COLUMNS} == set(tasks)
    for column in MARBLE_COLUMNS:
        for protocol in ("marble", "clean"):
            row = tasks[column.task].under(protocol)
            assert set(column.metrics) & {row.metric, *row.extra_metrics}, (column, protocol)
    assert {name for c in MARBLE_COLUMNS for name in c.metrics} <= set(METRICS)


def test_offline_tasks_have_no_published_column():
    assert not {c.task for c in MARBLE_COLUMNS} & {t.name for t in TASKS}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"protocol": "clean"}, "protocol clean"),
        ({"test_items": 7}, "other data: 7 test items, where MARBLE's test split has 4231"),
        ({"extra": {"classes": 12, "head": "mlp512"}}, "other data: 12 classes instead of 56"),
        ({"extra": {"classes": 56, "head": "linear"}}, "another head: linear instead of mlp512"),
    ],
)
def test_what_does_not_compare_says_why(changes: dict, reason: str | None):
    """Protocol, data or head that differ from the published table are caveats."""
    row = {
        "task": "MTGMood",
        "protocol": "marble",
        "test_items": 4231,
        "extra": {"classes": 56, "head": "mlp512"},
    }
    assert caveats(row | changes) == ([reason] if reason else [])

import re
from pathlib import Path

import pytest

from distributed.drawing.tables import to_markdown
from distributed.marble.results.tables import comparison, layer_profiles, protocol_differences
from distributed.marble.tasks.marble_tasks import ALL_TASKS, choose_tasks


def row(task: str, protocol: str, value: float, metric: str, items: int = 10) -> dict:
    return {
        "task": task,
        "encoder": "mine",
        "protocol": protocol,
        "value": value,
        "metric": metric,
        "test_items": items,
    }


@pytest.mark.parametrize("task", ALL_TASKS, ids=lambda t: t.name)
def test_every_field_in_which_a_rows_protocols_differ_is_told(task):
    """The text lists every change of `clean`, and the training, which always differs."""
    told = protocol_differences(task)
    assert told[0].startswith("weights and monitors: the last epoch's weights")
    assert any("learning rates" in t for t in told) == ("fit" in task.clean)
    assert any("metric" in t for t in told) == ("metric" in task.clean)
    assert any("channels" in t for t in told) == (task.channels != ("mix", "mix"))
    assert any("in the last one only" in t for t in told) == ("drop_leaks" in task.clean)


def test_key_of_hooktheory_names_its_own_quirks():
    told = protocol_differences(choose_tasks(["HookTheoryKey"])[0])
    assert "an item is: recording / file" in told
    assert "tracks too short for a slice: dropped / kept, padded" in told
    assert "averaged over slices: logits_bf16 / logits" in told


def test_both_values_stand_side_by_side():
    """A task measured under both protocols has one line with both numbers, and its differences in words."""
    rows = [
        row("MTT", "marble", 0.8, "roc_auc_all"),
        row("MTT", "clean", 0.9, "roc_auc"),
        row("GS", "clean", 0.6, "key_weighted"),
    ]
    table = comparison(rows)
    assert table is not None
    text = to_markdown([table])
    assert (
        "| MTT | mine | 0.800 (ROC-AUC, macro, empty classes 0, 10 items) | 0.900 (ROC-AUC, macro, 10 items) |" in text
    )
    assert "- MTT (marble / clean): weights and monitors:" in text
    assert "GS" not in text
    assert comparison(rows[1:]) is None


def test_every_item_of_the_manual_names_its_tests():
    """Each line of docs/marble.md about a difference of protocols ends with existing tests."""
    here = Path(__file__).parents[1]
    defined = {
        name for path in here.rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    manual = (here.parents[2] / "docs" / "marble.md").read_text()
    tables = [t for t in re.findall(r"(?:^\|.*\n)+", manual, re.M) if t.splitlines()[0].endswith("| test |")]
    lines = [line.split(" | ") for table in tables for line in table.splitlines()[2:]]
    assert len(tables) == 4 and len(lines) > 35
    for *item, tests in lines:
        assert tests.strip(" |") == "same" or set(re.findall(r"test_\w+", tests)) & defined, item
    assert set(re.findall(r"`(test_\w+)`", manual)) <= defined


def profiled(encoder: str, layers: list, profile: list[float]) -> dict:
    return {"task": "GS", "encoder": encoder, "extra": {"layers": layers, "layer_profile": profile}}


def test_the_best_layer_is_marked_and_readouts_of_all_layers_are_dashed():
    """A chart has two lines over the layers, a dot at the best of each, and one encoder's readouts."""
    rows = [
        profiled("runs/base", [0, 6, 12, "mean", "reduced"], [0.5, 0.7, 0.6, 0.65, 0.72]),
        profiled("random_init", [0, 6, 12], [0.4, 0.3, float("nan")]),
    ]
    [chart] = layer_profiles(rows)
    assert [(label, value) for _, label, value in chart.legend] == [("base", "0.600"), ("random init", "0.300")]
    best = "base layer 6, mean of layers 0.650 (dashed), reduction of all layers 0.720 (dashed), random init layer 0"
    assert best in chart.sentence
    assert (chart.svg.count("<circle"), chart.svg.count(' dashed"')) == (2, 2)


def test_encoders_have_colours_of_their_own():
    """Baselines have fixed colours on every page; others take the remaining ones, in order of rows."""
    names = ("runs/base", "random_init", "mert", "muq")
    [chart] = layer_profiles([profiled(name, [0, 1], [0.5, 0.6]) for name in names])
    assert [tone for tone, _, _ in chart.legend] == ["tone-1", "tone-5", "tone-4", "tone-6"]


def test_an_encoder_with_one_layer_has_no_profile():
    assert layer_profiles([profiled("log_mel", [0], [0.5])]) == ()

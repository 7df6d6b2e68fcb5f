from pathlib import Path

import pytest

from distributed.marble.datasets.inventory import measurable, take_inventory
from distributed.marble.evaluate import run
from distributed.marble.tasks.marble_tasks import MARBLE_TASKS, choose_tasks
from pupujepa.errors import UserError
from tests.distributed.marble.marble_data import RATE_HZ, SPLITS, Checkout, noise
from tests.distributed.marble.test_evaluate import arguments


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A checkout with GiantSteps alone, two clips in every split."""
    made = Checkout(tmp_path)
    for split in SPLITS:
        rows = [
            made.audio(f"data/GS/wav/{split}{i}.wav", noise(800, i), RATE_HZ) | {"label": "C major", "ori_uid": split}
            for i in range(2)
        ]
        made.manifest("GS", "GS", split, rows)
    return made


def texts(root: Path, *names: str) -> dict[str, str]:
    return {f.task.name: f.text for f in take_inventory(choose_tasks(names), root)}


def test_what_is_there_is_told_with_its_size(checkout: Checkout):
    """A complete task reports its manifest, the tracks of each split, and that all files are there."""
    assert texts(checkout.root, "GS")["GS"] == (
        "GS: found data/GS/GS.{train,val,test}.jsonl: 2 train, 2 valid, 2 test tracks; all 6 audio files are there"
    )


@pytest.mark.parametrize("task", [t.name for t in MARBLE_TASKS])
def test_a_missing_manifest_is_named_and_whence_it_is(tmp_path: Path, task: str):
    """Every absent task reports the expected path and MARBLE's instructions for getting it."""
    (tmp_path / "data").mkdir()
    source = choose_tasks([task])[0].source
    assert source is not None
    text = texts(tmp_path, task)[task]
    assert text.startswith(f"{task}: missing {tmp_path}/data/{source.folder}/{task}.train.jsonl, ")
    assert f"download.py puts the data set m-a-p/{source.folder} into data/{source.folder}/" in text
    assert ("asked its publisher" in text) == (source.folder in ("HookTheory", "Chords1217"))


def test_missing_audio_is_counted_and_the_first_files_are_named(checkout: Checkout):
    (checkout.root / "data/GS/wav/val1.wav").unlink()
    text = texts(checkout.root, "GS")["GS"]
    assert f"but 1 of 6 audio files are missing: {checkout.root}/data/GS/wav/val1.wav; MARBLE's download.py" in text


def test_other_classes_than_marbles_are_remarked(tmp_path: Path):
    """A reduced training split of MTG-Jamendo has fewer classes, which the report calls not comparable."""
    made = Checkout(tmp_path)
    row = made.audio("data/MTG/a.wav", noise(800, 0), RATE_HZ) | {"label": ["genre---a", "genre---b"]}
    for split in SPLITS:
        made.manifest("MTG", "MTGGenre", split, [row])
    assert "of 2 classes; MARBLE's training split has 87" in texts(tmp_path, "MTGGenre")["MTGGenre"]


def test_a_group_takes_what_is_there_and_a_name_must_be_there(checkout: Checkout):
    """A group skips absent tasks; a named or partly present task must be complete."""
    tasks = choose_tasks(["marble"])
    findings = take_inventory(tasks, checkout.root)
    assert [t.name for t in measurable(findings, ["marble"], checkout.root)] == ["GS"]
    with pytest.raises(UserError, match="nothing was computed: EMO: missing"):
        measurable(take_inventory(choose_tasks(["GS", "EMO"]), checkout.root), ["GS", "EMO"], checkout.root)
    (checkout.root / "data/GS/GS.val.jsonl").unlink()
    with pytest.raises(UserError, match=r"nothing was computed: GS: missing .*GS\.val\.jsonl; "):
        measurable(take_inventory(tasks, checkout.root), ["marble"], checkout.root)


def test_check_says_all_of_it_and_computes_nothing(
    checkout: Checkout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """--check prints a line for each of the seventeen tasks; its exit code is 0 only if all are complete."""
    monkeypatch.setattr("distributed.marble.evaluate.evaluate", lambda *a, **k: pytest.fail("something was computed"))
    assert run(arguments("--tasks", "all", "--data", checkout.root, "--check")) == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in printed] == [t.name for t in choose_tasks(["all"])]
    assert printed[0] == f"key: missing {checkout.root}/tracks.jsonl; `python -m data scores DIR` makes it in DIR"
    assert sum(": found " in line for line in printed) == 1
    assert run(arguments("--tasks", "GS", "--data", checkout.root, "--check")) == 0


def test_measuring_needs_encoders_and_a_place_for_results(checkout: Checkout):
    with pytest.raises(UserError, match="--encoders and --out are needed"):
        run(arguments("--tasks", "GS", "--data", checkout.root))

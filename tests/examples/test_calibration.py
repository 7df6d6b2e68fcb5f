"""The demo's predicted duration: two rates of this machine scale the phases of a reference run."""

import json

import pytest

from examples.calibration import MODEL_PHASES, REFERENCE, Rates, calibrate, predict_s, write_reference
from examples.demo import main as demo
from pupujepa.errors import UserError
from tests.distributed.launch import environment


@pytest.fixture
def finished(tmp_path):
    """Writes the files of a finished demo that the reference needs."""
    (tmp_path / "calibration.json").write_text('{"crops_per_s": 80.0, "loops_per_s": 200.0, "precision": "fp32"}')
    (tmp_path / "phases.json").write_text('{"render": 60.0, "train": 160.0, "report": 8.0}')
    (tmp_path / "summary.json").write_text("{}")
    return tmp_path


def test_phases_scale_with_the_rate_that_bounds_them(finished, tmp_path):
    """The model's rate scales training, and that of plain Python the rest."""
    write_reference(finished, tmp_path / "reference.json")
    here = Rates(crops_per_s=160.0, loops_per_s=50.0, precision="bf16")
    assert predict_s(here, tmp_path / "reference.json") == {"render": 240.0, "train": 80.0, "report": 32.0}


def test_an_unfinished_demo_is_no_reference(finished, tmp_path):
    """An unfinished demo cannot be the reference: its missing phases would miss from every prediction."""
    (finished / "summary.json").unlink()
    with pytest.raises(UserError, match=r"lacks summary\.json, so it is not a finished demo; run make demo to its end"):
        write_reference(finished, tmp_path / "reference.json")
    assert not (tmp_path / "reference.json").exists()


def test_a_broken_reference_is_one_sentence(tmp_path):
    """Without a reference the demo says so and continues."""
    here = Rates(crops_per_s=1.0, loops_per_s=1.0, precision="fp32")
    for text in ("", "{}", '{"rates": {"crops": 1}}'):
        (tmp_path / "reference.json").write_text(text)
        with pytest.raises(UserError, match=r"reference\.json cannot be used .*; restore it with git checkout"):
            predict_s(here, tmp_path / "reference.json")


def test_the_reference_says_where_it_was_made():
    """The reference names the processor and its bf16 support, and holds every phase of the demo."""
    reference = json.loads(REFERENCE.read_text())
    assert "bf16" in reference["machine"] or "BF16" in reference["machine"]
    assert set(reference["seconds"]) == {"render", "shard", *MODEL_PHASES, "report"}
    assert predict_s(Rates(**reference["rates"])) == pytest.approx(reference["seconds"])


def test_all_ranks_are_timed_at_once():
    """The rates of two concurrent processes add up, and the precision is that of this machine."""
    rates = calibrate(2, environment())
    assert rates.crops_per_s > 0
    assert rates.loops_per_s > 0
    assert rates.precision in ("bf16", "fp32")


def test_a_machine_that_lacks_something_is_told_before_anything_runs(tmp_path, monkeypatch, capfd):
    """The doctor's exit code ends the demo: nothing is rendered."""
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(Exception, match="doctor"):
        demo(["--out", str(tmp_path / "run")])
    assert not (tmp_path / "run" / "corpus").exists()

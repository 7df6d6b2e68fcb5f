"""Trial imports: whatever a library does to its process, the others are tried and the reason is told."""

import pytest

from distributed.doctor.trial import DEEPSPEED_START, TORCH_FACTS, ImportTrial, try_steps

MODULES = {
    "good": "print('hello on standard output')",
    "better": "import os; os.write(1, b'and past Python')",
    "misfit": "raise OSError('/x/lib.so: undefined symbol: torch_exception_get_what')",
    "wordy": "raise ImportError('numpy is too new\\n\\nask its makers for another one')",
    "aborts": "import os; os.abort()",
    "leaves": "import os; os._exit(3)",
    "hangs": "import time; time.sleep(600)",
}


@pytest.fixture
def modules(tmp_path, monkeypatch):
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_each_step_has_its_own_end(modules):
    """An error, a signal and an exit each concern one step; what modules print is no report."""
    trials = try_steps(["good", "misfit", "aborts", "leaves", "better", "missing", "wordy"])
    assert trials == {
        "good": ImportTrial(),
        "misfit": ImportTrial("OSError: /x/lib.so: undefined symbol: torch_exception_get_what"),
        "aborts": ImportTrial("the process was killed by SIGABRT"),
        "better": ImportTrial(),
        "leaves": ImportTrial("the process ended with exit code 3"),
        "missing": ImportTrial("ModuleNotFoundError: No module named 'missing'"),
        "wordy": ImportTrial("ImportError: numpy is too new"),
    }


def test_what_needs_the_first_step_is_not_tried_without_it(modules):
    """Without torch, every library on top of it would say the same."""
    assert list(try_steps(["misfit", "good"], first_needed=True)) == ["misfit"]
    assert list(try_steps(["good", "misfit", "better"], first_needed=True)) == ["good", "misfit", "better"]


def test_an_import_that_hangs_is_ended(modules):
    """The reason names the limit, and what succeeded before it stays."""
    trials = try_steps(["good", "hangs", "better"], timeout_s=20.0)
    assert trials == {"good": ImportTrial(), "hangs": ImportTrial("did not end within 20 s")}


def test_torch_and_deepspeed_are_really_asked():
    """The facts are those of this torch, and a training's preparations of DeepSpeed work with this DeepSpeed."""
    import torch

    trials = try_steps([TORCH_FACTS, DEEPSPEED_START])
    assert [trial.error for trial in trials.values()] == ["", ""]
    facts = trials[TORCH_FACTS].facts
    assert facts["torch"] == torch.__version__
    assert len(facts["gpus"]) == torch.cuda.device_count()
    assert facts["gloo"] is True
    assert (facts["bf16"]["slowdown"] is None) == facts["bf16"]["supported"]

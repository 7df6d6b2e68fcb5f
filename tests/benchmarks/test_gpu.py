"""`make gpu` without a GPU: the same script at tiny sizes."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from torch.autograd import DeviceType

from benchmarks.engine.launch import ROOT, OutOfTimeError, RanksFailedError, run_within
from benchmarks.gpu import command, parts, pytests, section, steps, waiting
from benchmarks.gpu.kept import Kept, Result, Setting
from pupujepa.errors import UserError
from tests.processes import wait_until_gone


def gpu(*words, out):
    place = ["--device", "cpu", "--tiny", "--out", str(out), "--seconds", "3600"]
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "gpu", *place, *words],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Runs all parts once."""
    out = tmp_path_factory.mktemp("gpu")
    return gpu(out=out), out


def setting_of(out, device="cpu", *, tiny=True):
    return Setting(device, tiny, out, "NVIDIA H200" if device == "cuda" else "CPU", {"torch": "2.15.0"})


def result_of(kept, **data):
    return Result(data, 1.0, kept.where, ended="2026-12-01T10:00+00:00", commit="abc")


ROW = {
    "crops": 64,
    "too_many_crops": [128],
    "first_step_s": 70.0,
    "step_s": 0.5,
    "crops_per_s": 128.0,
    "tflops": 414.1,
    "mfu": 0.4186,
    "peak_bytes": 80 << 30,
    "planned_bytes": 78 << 30,
    "kernels": [{"name": "gemm|bf16", "calls": 96, "ms": 210.0, "share": 0.42}],
    "summary": "64 crops a step",
}


def test_every_part_runs_on_a_cpu(ran):
    """Tests, eager and compiled steps, and the data wait each store a result, and the section is written."""
    done, out = ran
    assert done.returncode == command.COMPLETE, done.stdout + done.stderr
    names = [part.name for part in parts.all_parts(setting_of(out))]
    assert names == ["tests", "eager large", "compiled large", "data"]
    kept = {path.stem: json.loads(path.read_text()) for path in (out / "cpu" / "parts").glob("*.json")}
    assert set(kept) == {name.replace(" ", "-") for name in names}
    assert kept["tests"]["data"]["passed"] >= 3
    for name in ("eager-large", "compiled-large"):
        assert kept[name]["data"]["step_s"] > 0
        assert kept[name]["data"]["kernels"]
    assert 0 <= kept["data"]["data"]["data_wait_fraction"] < 1
    text = (out / "cpu" / "section.md").read_text()
    assert "| eager large | 2 |" in text and section.ANCHOR in text and "crops/s" in text


def test_the_same_command_continues(ran):
    """Results are kept, with a message; a part that failed or is missing runs again."""
    _, out = ran
    (out / "cpu" / "parts" / "tests.json").unlink()
    again = gpu("--only", "tests", "data", out=out)
    assert again.returncode == command.COMPLETE, again.stdout + again.stderr
    assert "data: kept from 20" in again.stdout
    assert "tests: 3 passed" in again.stdout


def test_a_part_that_does_not_fit_is_not_begun_and_is_said(tmp_path):
    """With no time left nothing runs, each part is named, and the exit code asks for another run."""
    done = gpu("--seconds", "0", out=tmp_path)
    assert done.returncode == command.MISSING
    for part in parts.all_parts(setting_of(tmp_path)):
        assert f"{part.name}: NOT RUN" in done.stdout
    assert "Not run yet: tests, eager large, compiled large, data" in done.stdout


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch):
    """By default it needs a GPU; a CPU at a GPU's sizes would take hours."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="torch sees no CUDA device"):
        Setting.of("cuda", tiny=False, out=tmp_path)
    with pytest.raises(UserError, match="add --tiny"):
        Setting.of("cpu", tiny=False, out=tmp_path)


def test_what_is_missing_is_one_sentence():
    """The error has pip's names and the command for this Python."""
    assert command.missing_sentence() == ""
    said = command.missing_sentence(["torch", "no_such_module", "nor_this"])
    assert said.startswith(f"{sys.executable} lacks no_such_module, nor_this, so ")
    assert said.endswith(f": {sys.executable} -m pip install no_such_module nor_this")
    assert ". " not in said


def test_failures_are_tried_again_after_what_is_missing(tmp_path, monkeypatch):
    """A failed part stores its error, and the others run; a part that was cut short does not count as run."""
    calls = []

    def measure(name, outcome):
        def run(kept, *, seconds):
            calls.append(name)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return run

    made = [
        parts.Part("breaks", 0, 10, measure("breaks", RanksFailedError("Traceback\nno such kernel"))),
        parts.Part("works", 0, 10, measure("works", {"summary": "fine"})),
        parts.Part("late", 0, 1000, measure("late", OutOfTimeError("ended after 5 s"))),
    ]
    monkeypatch.setattr(parts, "all_parts", lambda setting: made)
    kept = Kept(setting_of(tmp_path))
    command.run_parts(kept, only=[], ends_s=time.monotonic() + 60)
    assert calls == ["breaks", "works", "late"]
    assert (kept.is_done("works"), kept.has("breaks"), kept.is_done("breaks")) == (True, True, False)
    assert not kept.has("late")
    assert command.code_of(kept, only=[]) == command.FAILED
    assert command.code_of(kept, only=["works"]) == command.COMPLETE
    assert command.code_of(kept, only=["late"]) == command.MISSING
    calls.clear()
    command.run_parts(kept, only=[], ends_s=time.monotonic() + 60)
    assert calls == ["late", "breaks"]


def test_results_of_another_machine_are_not_kept(tmp_path):
    """Another device, other versions or other sizes: the part runs again."""
    kept = Kept(setting_of(tmp_path, "cuda", tiny=False))
    kept.keep("tests", result_of(kept, summary="12 passed"))
    assert kept.is_done("tests")
    for change in ({"device_name": "NVIDIA A100"}, {"versions": {"torch": "2.16.0"}}, {"tiny": True}):
        assert not Kept(replace(kept.setting, **change)).has("tests")


@pytest.fixture
def measured(tmp_path):
    """Results that a GPU might give, with a failure and a missing part."""
    kept = Kept(setting_of(tmp_path / "out", "cuda", tiny=False))
    tests = {"summary": "60 passed, 1 failed, 0 skipped", "failures": [{"test": "a::b", "said": "assert 1 == 2"}]}
    kept.keep("tests", result_of(kept, **tests))
    kept.keep("eager large", result_of(kept, **ROW))
    kept.keep("compiled large", replace(result_of(kept), failure="Traceback\nRuntimeError: no C compiler"))
    wait = {"crops": 64, "workers": 14, "crops_per_s": 210.0, "crops_per_s_without": 212.0}
    kept.keep("data", result_of(kept, **wait, data_wait_fraction=0.004))
    return kept


def test_the_section_holds_what_was_measured(measured, tmp_path):
    """Device, versions, day and commit; rows with failures in place of figures; the anchor; what has not run."""
    results = tmp_path / "RESULTS.md"
    results.write_text(f"# Results\n\n{section.BEGIN}\nold\n{section.END}\n\n## Other\n")
    assert section.write(measured, results) == results
    page = results.read_text()
    assert page.startswith(f"# Results\n\n{section.BEGIN}\n\nNVIDIA H200; ")
    assert page.endswith(f"{section.END}\n\n## Other\n") and "old" not in page
    for said in (
        "torch 2.15.0; 2026-12-01, commit abc.",
        "60 passed, 1 failed, 0 skipped",
        "- `a::b`: assert 1 == 2",
        "| eager large | 64 (128 did not fit) | 0.5000 | 128.0 | 414.1 | 41.9% | 80.00 | 78.00 | -2.5% | 70.0 |",
        "| compiled large | RuntimeError: no C compiler |",
        "31 % of the bf16 peak as it is and 36 % compiled; our aim for Large is 45 %",
        "0.4% of the time waiting for data",
        "| `gemm/bf16` | 96 | 210.00 | 42.0% |",
        "Not run yet: eager base, eager small, eager tiny, compiled base",
    ):
        assert said in page, said


@pytest.mark.parametrize("change", [{"device": "cpu", "device_name": "CPU"}, {"tiny": True}])
def test_figures_of_a_cpu_never_reach_the_results(measured, tmp_path, change):
    """Nor do those of a GPU at tiny sizes: they go to another file, and RESULTS.md refuses them."""
    kept = Kept(replace(measured.setting, **change))
    before = section.RESULTS.read_text()
    assert section.write(kept) == kept.setting.out / "section.md"
    with pytest.raises(UserError, match="are not those of a GPU"):
        section.put("text", kept, section.RESULTS)
    assert section.RESULTS.read_text() == before


def test_the_results_have_a_place_for_the_section(measured, tmp_path):
    """The real file has one pair of marks; a file without marks is not changed."""
    page = section.RESULTS.read_text()
    assert (page.count(section.BEGIN), page.count(section.END)) == (1, 1)
    bare = tmp_path / "bare.md"
    bare.write_text("# Results\n")
    with pytest.raises(UserError, match="once each"):
        section.put("text", measured, bare)
    assert bare.read_text() == "# Results\n"


def test_a_report_of_pytest_is_counted(tmp_path):
    """Failures and errors with their first line; a test that fails in both its body and its end counts once."""
    cases = (
        '<testcase classname="m" name="good"/><testcase classname="m" name="left"><skipped/></testcase>'
        '<testcase classname="m" name="bad"><failure message="assert 1&#10;more"/><error message="at end"/></testcase>'
    )
    (tmp_path / "report.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    found = pytests.read_report(tmp_path / "report.xml")
    assert found["summary"] == "1 passed, 1 failed, 1 skipped"
    assert found["failures"][0] == {"test": "m::bad", "said": "assert 1"}


def test_waiting_is_counted_after_the_first_steps(tmp_path):
    """Rows of the first steps, in which workers start, and those of diagnostics are left out."""
    rows = [
        {"step": 10, "step_s": 9.0, "data_wait_s": 8.0, "crops_per_s": 1.0},
        {"step": 20, "diag/effective_rank": 3.0},
        {"step": 30, "step_s": 0.5, "data_wait_s": 0.1, "crops_per_s": 128.0},
        {"step": 39, "step_s": 0.3, "data_wait_s": 0.0, "crops_per_s": 213.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = waiting.of_rows(tmp_path, warm_steps=20)
    assert found == {"crops_per_s": 170.5, "data_wait_fraction": pytest.approx(0.125), "steps": 40}


def test_kernels_of_a_gpu_are_counted_once():
    """In a profile with a GPU only kernels count, not the operations that launched them, nor annotations."""

    def event(name, device, us, **more):
        times = {"self_device_time_total": us, "self_cpu_time_total": us, "is_user_annotation": False}
        return SimpleNamespace(key=name, count=2, device_type=device, **(times | more))

    events = [
        event("aten::mm", DeviceType.CPU, 3000),
        event("gemm", DeviceType.CUDA, 3000),
        event("flash_fwd", DeviceType.CUDA, 1000),
        event("step", DeviceType.CUDA, 9000, is_user_annotation=True),
    ]
    found = steps.kernels(SimpleNamespace(key_averages=lambda: events), rows=1)
    assert found == [{"name": "gemm", "calls": 2, "ms": 3.0, "share": 0.75}]
    on_cpu = steps.kernels(SimpleNamespace(key_averages=lambda: events[:1]))
    assert [row["name"] for row in on_cpu] == ["aten::mm"]


def test_the_micro_batch_is_what_the_plan_lets_fit(monkeypatch):
    """The micro-batch is the largest power of two whose peak leaves a fifth of the free memory."""
    monkeypatch.setattr(steps, "planned_bytes", lambda settings, crops, on_cpu: 1000 * crops)
    fits = {free: steps.largest_that_fits({"most_crops": 64}, free_bytes=free) for free in (1e9, 40_000, 39_999, 10)}
    assert fits == {1e9: 64, 40_000: 32, 39_999: 16, 10: 1}


def test_no_process_outlives_its_time(tmp_path):
    """Neither the slow command nor its orphaned children survive."""
    started = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {started}; echo begun; exec sleep 600"
    with pytest.raises(OutOfTimeError, match=r"(?s)begun.*ended after 3 s"):
        run_within(["bash", "-c", script], timeout_s=3)
    wait_until_gone([int(started.read_text())])

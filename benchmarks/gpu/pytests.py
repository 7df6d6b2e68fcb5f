"""The tests of tests/gpu as a part: counts, and the first line of each failure."""

import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.engine.launch import OutOfTimeError, RanksFailedError, run_within
from benchmarks.gpu.kept import CUDA, Kept

# a few tests for the CPU, as a smoke test; CI runs all of them separately
FEW = ("tests/gpu/test_encoding.py", "-k", "rotations or front_end")
_OUTCOMES = ("failure", "error", "skipped")


def measure(kept: Kept, *, seconds: float) -> dict[str, Any]:
    """Runs pytest on the tests of the device.

    Raises:
        RanksFailedError: pytest wrote no report, or exceeded its time.
    """
    setting = kept.setting
    report = setting.out / "tests.xml"
    report.unlink(missing_ok=True)
    on_gpu = setting.device == CUDA
    command = [
        *(sys.executable, "-m", "pytest", *(("tests/gpu",) if on_gpu else FEW)),
        *("-m", "gpu" if on_gpu else "not gpu", f"--junitxml={report}", "-q"),
        # without other conftests: their packages may be missing
        *("--confcutdir", "tests/gpu", "-p", "no:cacheprovider"),
        # warnings are errors only with the locked packages
        *("-W", "default"),
    ]
    environ = setting.environ | {"OMP_NUM_THREADS": "1"}
    try:
        code, said = run_within(command, timeout_s=seconds, environ=environ)
    except OutOfTimeError as error:
        # pytest writes its report when it is interrupted, too
        ended = f"{read_report(report)['summary']} by then; " if report.is_file() else ""
        raise OutOfTimeError(f"{error}; {ended}") from error
    (setting.out / "tests.log").write_text(said)
    if code not in (0, 1) or not report.is_file():
        # code 1: tests failed; others: no tests found, or a crash
        raise RanksFailedError(f"{said[-5000:]}\npytest ended with code {code}")
    return read_report(report) | {"log": said[-8000:] if code else ""}


def read_report(path: Path) -> dict[str, Any]:
    """Returns the counts of a JUnit report, and each failure's test and first line."""
    cases = list(ElementTree.parse(path).iter("testcase"))
    outcomes = {name: [case for case in cases if case.find(name) is not None] for name in _OUTCOMES}
    failures = [
        {"test": f"{case.get('classname')}::{case.get('name')}", "said": _first_line(case)}
        for name in ("failure", "error")
        for case in outcomes[name]
    ]
    failed, skipped = len({f["test"] for f in failures}), len(outcomes["skipped"])
    passed = len(cases) - failed - skipped
    summary = f"{passed} passed, {failed} failed, {skipped} skipped"
    return {"passed": passed, "failed": failed, "skipped": skipped, "failures": failures, "summary": summary}


def _first_line(case: ElementTree.Element) -> str:
    for name in ("failure", "error"):
        if (found := case.find(name)) is not None:
            return (found.get("message") or found.text or "").strip().partition("\n")[0][:300]
    return ""

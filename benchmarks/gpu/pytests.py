"""The tests of tests/gpu as a part: what passed, what failed, and the first line of why."""

import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.engine.launch import OutOfTimeError, RanksFailedError, run_within
from benchmarks.gpu.kept import CUDA, Kept

# of the CPU's, as many as show that the part works; CI runs them all by themselves
FEW = ("tests/gpu/test_encoding.py", "-k", "rotations or front_end")
_OUTCOMES = ("failure", "error", "skipped")


def measure(kept: Kept, *, seconds: float) -> dict[str, Any]:
    """Runs pytest on the tests of the device.

    Raises:
        RanksFailedError: it ended without a report, or not in time.
    """
    setting = kept.setting
    report = setting.out / "tests.xml"
    report.unlink(missing_ok=True)
    on_gpu = setting.device == CUDA
    command = [
        *(sys.executable, "-m", "pytest", *(("tests/gpu",) if on_gpu else FEW)),
        *("-m", "gpu" if on_gpu else "not gpu", f"--junitxml={report}", "-q"),
        # on its own: other tests' packages may be missing
        *("--confcutdir", "tests/gpu", "-p", "no:cacheprovider"),
        # a warning is an error with the locked packages alone
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
        # 1 is that tests failed; else it found none, or broke down
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

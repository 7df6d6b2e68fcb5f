"""The parts of `make gpu`, their order and their time limits."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.engine.launch import OutOfTimeError, RanksFailedError, on_ranks
from benchmarks.gpu import pytests, steps, waiting
from benchmarks.gpu.kept import CUDA, Kept, Result, Setting
from benchmarks.gpu.steps import StepSetting

TESTS, DATA, EAGER, COMPILED, STAGE = "tests", "data", "eager", "compiled", "stage"

Measure = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        least_s: it does not start with less time than this.
        most_s: it is ended after this time.
        measure: (kept, seconds=) -> data; raises RanksFailedError.
    """

    name: str
    least_s: float
    most_s: float
    measure: Measure


# (least, most) seconds of a part; compiling takes longer with more blocks
_TIMES = {TESTS: (60, 240), EAGER: (30, 75), DATA: (45, 120), STAGE: (30, 75)}
_COMPILE_TIMES = {"tiny": (60, 150), "small": (60, 150), "base": (80, 180), "large": (120, 300)}


# factor for smoke tests: figures do not matter, and the machine may be slow
_PATIENCE = 10


def all_parts(setting: Setting) -> list[Part]:
    """Returns the parts of a device in order: Large, which has the aim, before the other sizes."""
    compiler = "inductor" if setting.device == CUDA else "aot_eager"
    others = () if setting.tiny else ("base", "small", "tiny")

    def part(name: str, times: tuple[float, float], measure: Measure) -> Part:
        least_s, most_s = times
        return Part(name, least_s, most_s * (_PATIENCE if setting.tiny else 1), measure)

    def eager(size: str) -> Part:
        return part(f"{EAGER} {size}", _TIMES[EAGER], partial(step_row, StepSetting(size)))

    def compiled(size: str) -> Part:
        asked = StepSetting(size, compiler=compiler)
        return part(f"{COMPILED} {size}", _COMPILE_TIMES[size], partial(step_row, asked))

    def staged(stage: int) -> Part:
        return part(f"{STAGE} {stage} large", _TIMES[STAGE], partial(step_row, StepSetting("large", stage=stage)))

    return [
        part(TESTS, _TIMES[TESTS], pytests.measure),
        eager("large"),
        compiled("large"),
        part(DATA, _TIMES[DATA], waiting.measure),
        *map(eager, others),
        *map(compiled, others),
        *map(staged, () if setting.tiny else (2, 3)),
    ]


def chosen_parts(setting: Setting, only: Sequence[str]) -> list[Part]:
    """Returns the parts whose names begin with one of the words; all of them without words."""
    return [part for part in all_parts(setting) if not only or part.name.startswith(tuple(only))]


def run_part(part: Part, kept: Kept, *, seconds: float) -> Result | None:
    """Runs a part; a failure is a result too. None: the command's time ended before the part's."""
    started, failure = time.monotonic(), ""
    data: dict[str, Any] = {}
    try:
        data = part.measure(kept, seconds=seconds)
    except OutOfTimeError as error:
        if seconds < part.most_s:
            return None
        failure = str(error)
    except RanksFailedError as error:
        failure = str(error)
    if data.get("failures"):
        failure = f"{data['log']}\n{data['summary']}"
    return Result(data, time.monotonic() - started, kept.where, failure)


def step_row(asked: StepSetting, kept: Kept, *, seconds: float) -> dict[str, Any]:
    """Measures the steps of a setting in a fresh process, with the crops of its eager row."""
    setting, plain = kept.setting, f"{EAGER} {asked.model}"
    settings = asked.settings(tiny=setting.tiny)
    if kept.is_done(plain):
        settings["crops"] = kept.result(plain).data["crops"]
    found = on_ranks(steps.measure, settings, ranks=1, environ=setting.environ, timeout_s=seconds)
    mfu = "" if found["mfu"] is None else f", {found['mfu']:.1%} of the bf16 peak"
    summary = f"{found['crops']} crops a step, {found['step_s']:.3f} s, {found['crops_per_s']:.1f} crops/s{mfu}"
    return {"summary": summary, "setting": vars(asked)} | found

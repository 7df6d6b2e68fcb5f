"""The section of benchmarks/RESULTS.md that `make gpu` writes, from figures of a GPU only."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.alternate import machine
from benchmarks.engine.launch import ROOT
from benchmarks.gpu.kept import CUDA, Kept, Result
from benchmarks.gpu.parts import COMPILED, DATA, EAGER, TESTS, all_parts
from pupujepa.durable import atomic_file
from pupujepa.errors import UserError

RESULTS = ROOT / "benchmarks" / "RESULTS.md"
BEGIN, END = "<!-- gpu: make gpu -->", "<!-- /gpu -->"
GIB = 2**30
ANCHOR = (
    "Public anchor: stable-pretraining's ViT-L on one H200 reaches 31 % of the bf16 peak as it is and 36 % compiled; "
    "our aim for Large is 45 %."
)
PREDICTION = (
    "on an H200 45 % of the bf16 peak for Large compiled and 38 % without; 15 % for Tiny, whose narrow predictor is "
    "bound by memory; stages 1 to 3 within 5 % of each other on one GPU; planned memory within 15 % of the peak; less "
    "than 1 % of the time waiting for data."
)


def write(kept: Kept, results: Path = RESULTS) -> Path:
    """Writes the results of a GPU into RESULTS.md, those of a CPU into OUT/section.md; returns the file.

    Raises:
        UserError: RESULTS.md has lost its marks.
    """
    text = "\n".join(lines(kept))
    print(f"\n{text}\n")
    if kept.setting.device != CUDA or kept.setting.tiny:
        path = kept.setting.out / "section.md"
        path.write_text(f"{text}\n")
        return path
    put(text, kept, results)
    return results


def put(text: str, kept: Kept, results: Path) -> None:
    """Puts a text between the marks of RESULTS.md.

    Raises:
        UserError: the figures are not those of a GPU at full size, or the marks are not there.
    """
    if kept.setting.device != CUDA or kept.setting.tiny:
        raise UserError(f"figures of {kept.setting.device_name} are not those of a GPU; {results} keeps what it has")
    page = results.read_text()
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise UserError(f"{results} must hold {BEGIN} and {END} once each, for the figures to be put between them")
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    with atomic_file(results) as temporary:
        temporary.write_text(re.sub(pattern, lambda _: f"{BEGIN}\n\n{text}\n\n{END}", page, flags=re.DOTALL))


def lines(kept: Kept) -> Iterator[str]:
    """Yields the section as Markdown."""
    setting = kept.setting
    names = [part.name for part in all_parts(setting)]
    there = {name: kept.result(name) for name in names if kept.has(name)}
    versions = ", ".join(f"{name} {number}" for name, number in setting.versions.items())
    yield f"{setting.device_name}; {machine()}; {versions}; {_when(there)}."
    yield f"\n**Prediction**: {PREDICTION}\n\n**Measured**:\n"
    yield from _tests_lines(there.get(TESTS))
    steps = {name: result for name, result in there.items() if name not in (TESTS, DATA)}
    yield from _steps_lines(steps)
    yield f"\n{ANCHOR}"
    yield from _data_lines(there.get(DATA))
    yield from _kernel_lines(steps)
    if missing := [name for name in names if name not in there]:
        yield f"\nNot run yet: {', '.join(missing)}. The same command continues with them."


def _when(there: dict[str, Result]) -> str:
    days = sorted({result.ended[:10] for result in there.values()}) or ["nothing measured"]
    commits = sorted({result.commit for result in there.values()} - {""}) or ["unknown"]
    return f"{' and '.join(days)}, commit {' and '.join(commits)}"


def _tests_lines(result: Result | None) -> Iterator[str]:
    if result is None:
        return
    yield f"Tests of `tests/gpu`: {result.data.get('summary') or _last_line(result.failure)}."
    for failure in result.data.get("failures", []):
        yield f"- `{failure['test']}`: {failure['said']}"


def _steps_lines(steps: dict[str, Result]) -> Iterator[str]:
    yield "\n| what | crops | step, s | crops/s | TFLOP/s | MFU | peak, GiB | planned, GiB | off by | first step, s |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for name, result in steps.items():
        if result.failure:
            yield f"| {name} | {_last_line(result.failure)} | | | | | | | | |"
            continue
        yield f"| {name} | {_row(result.data)} |"


def _row(data: dict[str, Any]) -> str:
    peak, planned = data["peak_bytes"], data["planned_bytes"]
    fewer = f" ({', '.join(map(str, data['too_many_crops']))} did not fit)" if data["too_many_crops"] else ""
    columns = [
        f"{data['crops']}{fewer}",
        f"{data['step_s']:.4f}",
        f"{data['crops_per_s']:.1f}",
        f"{data['tflops']:.1f}",
        "?" if data["mfu"] is None else f"{data['mfu']:.1%}",
        f"{peak / GIB:.2f}" if peak else "?",
        f"{planned / GIB:.2f}",
        f"{planned / peak - 1:+.1%}" if peak else "?",
        f"{data['first_step_s']:.1f}",
    ]
    return " | ".join(columns)


def _data_lines(result: Result | None) -> Iterator[str]:
    if result is None:
        return
    if result.failure:
        yield f"\nData wait: {_last_line(result.failure)}"
        return
    data = result.data
    yield (
        f"\nTraining Tiny from local shards, {data['crops']} crops a step, {data['workers']} workers: "
        f"{data['crops_per_s']:.1f} crops/s, {data['data_wait_fraction']:.1%} of the time waiting for data; without a "
        f"stream, the same batch again and again, {data['crops_per_s_without']:.1f} crops/s."
    )


def _kernel_lines(steps: dict[str, Result]) -> Iterator[str]:
    for name in (f"{EAGER} large", f"{COMPILED} large"):
        rows = steps[name].data.get("kernels", []) if name in steps else []
        if rows:
            yield f"\nWhere a step goes, {name}:\n\n| kernel | calls | ms | share |\n|---|---|---|---|"
        for row in rows:
            kernel = row["name"].replace("|", "/")[:100]
            yield f"| `{kernel}` | {row['calls']} | {row['ms']:.2f} | {row['share']:.1%} |"


def _last_line(text: str) -> str:
    said = [line.strip() for line in text.splitlines() if line.strip()]
    return said[-1][:200] if said else "?"

"""Puts a finished demo into the README: pictures, facts and the probe table. `python docs/figures.py runs/demo`

No figure in the README is typed by hand: each comes from the run's summary.json, results.jsonl or page.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.alternate import machine  # noqa: E402 - run as a script, the root is not on the path before
from data.store.store import open_store  # noqa: E402
from distributed.report.inputs import ReportError  # noqa: E402
from docs.browser import Browser, View  # noqa: E402

README = ROOT / "README.md"
IMAGES = ROOT / "docs" / "images"
# parts of a run's page, by the name of their picture
FIGURES = {
    "overview": "header.head",
    "masks": "#music .masks",
    "prediction": "#music .filled",
    "training": "#training .charts",
    "diagnostics": "#collapse .charts",
    "attention": "#attention .explorers",
    "probes": "#probes .scroll",
    "layers": "#probes .charts",
}
TITLES = {
    "key": "key (weighted score)",
    "beats": "beats (F1)",
    "instruments": "instruments (ROC-AUC)",
    "tempo": "tempo and density (R²)",
    "collection": "collection (accuracy)",
}


def main(run_dir: Path) -> None:
    """Renews docs/images and the two marked parts of the README."""
    summary = json.loads((run_dir / "summary.json").read_text())
    figure_files(run_dir, IMAGES)
    text = README.read_text()
    text = _between(text, "facts", facts(summary))
    text = _between(text, "table", table(summary["probes"]))
    README.write_text(text)


def figure_files(run_dir: str | Path, out: Path) -> list[Path]:
    """Writes each of `FIGURES` as PNG, and returns their paths.

    Args:
        run_dir: a run with its report.html, a path or URL.

    Raises:
        ReportError: the run has no page yet.
        BrowserError: no Chromium, or the page lacks one of the parts because an input of it was missing.
    """
    store = open_store(str(run_dir))
    if not store.exists("report.html"):
        raise ReportError(f"{run_dir} has no report.html; make it with `python -m distributed report {run_dir}`")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Browser() as browser:
        page = Path(folder) / "report.html"
        page.write_bytes(store.read("report.html"))
        visit = browser.visit(page.as_uri(), view=View(width=1200, scale=2.0), pictures=list(FIGURES.values()))
    paths = {name: out / f"{name}.png" for name in FIGURES}
    for name, path in paths.items():
        path.write_bytes(visit.pictures[FIGURES[name]])
    return list(paths.values())


def facts(summary: dict) -> str:
    """The run in three lines."""
    seconds = summary["seconds"]
    phases = ", ".join(f"{phase} {took:.0f} s" for phase, took in seconds.items())
    return (
        f"One run on {machine()}: {summary['pieces']} pieces, {summary['audio_hours']:.1f} hours of training audio in "
        f"{summary['shards']} shards, {summary['steps']} steps on {summary['ranks']} ranks with ZeRO-"
        f"{summary['zero_stage']} at {summary['crops_per_s']:.0f} crops/s ({summary['data_wait_fraction']:.1%} of the "
        f"time waiting for data), {sum(seconds.values()) / 60:.1f} minutes after installation ({phases})."
    )


def table(probes: dict) -> str:
    """Trained beside the baselines; the gain over random init with its paired 95 % interval over pieces."""
    lines = ["| task | trained | random init | log-mel | chroma | trained - random init |", "|---|---|---|---|---|---|"]
    for task, title in TITLES.items():
        row = probes[task]
        values = [row["trained"], row["random_init"], row["log_mel"], row.get("chroma")]
        cells = " | ".join("-" if value is None else f"{value:.3f}" for value in values)
        low, high = row["gain_interval"]
        lines.append(f"| {title} | {cells} | {row['gain']:+.3f} [{low:+.3f}, {high:+.3f}] |")
    return "\n".join(lines)


def _between(text: str, mark: str, content: str) -> str:
    begin, end = f"<!-- {mark}: python docs/figures.py -->", f"<!-- /{mark} -->"
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    if not re.search(pattern, text, flags=re.DOTALL):
        raise SystemExit(f"error: the README has no part between {begin} and {end}")
    return re.sub(pattern, lambda _: f"{begin}\n{content}\n{end}", text, flags=re.DOTALL)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))

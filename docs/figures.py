"""Pictures, facts and probe table of the README, from a finished demo: `python docs/figures.py RUN`

Each figure of the README comes from the run's summary.json, results.jsonl or page.
"""

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.alternate import machine  # noqa: E402 - run as a script, the root is not on the path before
from data.store.store import open_store  # noqa: E402
from distributed.report.inputs import ReportError  # noqa: E402
from docs.browser import Browser, View  # noqa: E402
from docs.marks import with_section  # noqa: E402

README = ROOT / "README.md"
IMAGES = ROOT / "docs" / "images"
# selectors in the page of a run, by the name of their picture
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
    """Renews docs/images and the two marked sections of the README."""
    summary = json.loads((run_dir / "summary.json").read_text())
    figure_files(run_dir, IMAGES)
    text = README.read_text()
    for name, content in (("facts", facts(summary)), ("table", table(summary["probes"]))):
        text = with_section(text, name, content, command="python docs/figures.py")
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
    """Returns the facts of a run, in one paragraph."""
    seconds = summary["seconds"]
    phases = ", ".join(f"{phase} {took:.0f} s" for phase, took in seconds.items())
    return (
        f"One run on {machine()}: {summary['pieces']} pieces, {summary['audio_hours']:.1f} hours of training audio in "
        f"{summary['shards']} shards, {summary['steps']} steps on {summary['ranks']} ranks with ZeRO-"
        f"{summary['zero_stage']} at {summary['crops_per_s']:.0f} crops/s ({summary['data_wait_fraction']:.1%} of the "
        f"time waiting for data), {sum(seconds.values()) / 60:.1f} minutes after installation ({phases})."
    )


def table(probes: dict) -> str:
    """Returns the probe table: trained, the baselines, and the gain with its paired 95 % interval."""
    lines = ["| task | trained | random init | log-mel | chroma | trained - random init |", "|---|---|---|---|---|---|"]
    for task, title in TITLES.items():
        row = probes[task]
        values = [row["trained"], row["random_init"], row["log_mel"], row.get("chroma")]
        cells = " | ".join("-" if value is None else f"{value:.3f}" for value in values)
        low, high = row["gain_interval"]
        lines.append(f"| {title} | {cells} | {row['gain']:+.3f} [{low:+.3f}, {high:+.3f}] |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))

"""Pictures of a finished page as PNG files, for a README: what a reader of the page sees, taken in a real browser."""

import tempfile
from pathlib import Path

from data.store import open_store
from distributed.report.browser import Browser, View
from distributed.report.inputs import ReportError

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


def figure_files(run_dir: str | Path, out_dir: str | Path) -> list[Path]:
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
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Browser() as browser:
        page = Path(folder) / "report.html"
        page.write_bytes(store.read("report.html"))
        view = View(width=1200, scale=2.0)
        visit = browser.visit(page.as_uri(), view=view, pictures=list(FIGURES.values()))
    paths = []
    for name, selector in FIGURES.items():
        paths.append(out / f"{name}.png")
        paths[-1].write_bytes(visit.pictures[selector])
    return paths

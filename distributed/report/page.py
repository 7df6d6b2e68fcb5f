"""Build the page of a run: one self-contained HTML file.

  python -m distributed report runs/demo                                   writes runs/demo/report.html
  python -m distributed report runs/demo --shards s3://bucket/shards/test  pictures from held-out music
  python -m distributed report runs/demo --out page.html

It reads config.yaml, metrics.jsonl, facts.json, phases.json and export/ of the run, results.jsonl of the evaluator, and
a few samples of the shards. The page names each missing input, with the command that makes it. The file needs no
network, and works from a disk or an e-mail, in light and dark, on a phone and on paper.
"""

import argparse
import base64
import hashlib
import logging
from pathlib import Path
from typing import Any

import torch

from data.store.store import StoreError, open_store
from distributed.drawing.charts import frame_clip
from distributed.drawing.tables import render_page
from distributed.report.attention import attention_section, load_export
from distributed.report.inputs import Missing, ReportError, RunInputs, read_run
from distributed.report.music import music_section
from distributed.report.overview import overview, reproduce_section
from distributed.report.prediction import prediction_plates
from distributed.report.probes import probe_section
from distributed.report.samples import read_gallery
from distributed.report.training import collapse_section, training_section
from pupujepa.audio.log_mel import normalise
from pupujepa.config import compose
from pupujepa.model.model import ModelConfig
from pupujepa.training.masks import MaskConfig
from pupujepa.training.objective import ObjectiveConfig
from pupujepa.weights.weights import WeightsError

_LOG = logging.getLogger(__name__)
HERE = Path(__file__).parent
CROPS = 12  # for the explained variance; the page shows fewer
CONTENTS = (
    ("music", "The music"),
    ("training", "The training"),
    ("collapse", "Learning or collapsing?"),
    ("attention", "Where the predictor looks"),
    ("probes", "What the features know"),
    ("reproduce", "Do it again"),
)
MARKS = {"good": "✓", "alarm": "!", "open": "?"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument("run_dir", metavar="RUN_DIR", help="run directory, a path or URL, e.g. runs/demo")
    parser.add_argument("--results", metavar="FILE", help="results.jsonl of the evaluator (default: the run's own)")
    parser.add_argument(
        "--shards", metavar="URL", help="shard set for the pictures (default: beside the training shards, test first)"
    )
    parser.add_argument("--out", metavar="FILE", help="where to write (default: RUN_DIR/report.html)")


def run(args: argparse.Namespace) -> int:
    """Builds the page and prints its path."""
    out = build_report(args.run_dir, args.results, args.out, shards=args.shards)
    print(out)  # noqa: T201 - the path is the product
    return 0


def build_report(
    run_dir: str | Path,
    results_path: str | Path | None = None,
    out: str | Path | None = None,
    *,
    shards: str | None = None,
) -> str:
    """Writes the page of a run and returns its path or URL.

    Args:
        run_dir: path or URL.
        results_path: results.jsonl; by default the run's.
        out: path or URL of the page; by default report.html in the run directory.
        shards: shard set or corpus root for the pictures; by default the run's, held-out split first.

    Raises:
        ReportError: no run, or a file of it that cannot be read.
    """
    inputs = read_run(str(run_dir), str(results_path) if results_path else None)
    html = render_report(inputs, visible_sections(inputs, shards), shards=shards)
    out = str(out) if out else f"{inputs.location.rstrip('/')}/report.html"
    folder, _, name = out.rpartition("/")
    open_store(folder or ("/" if out.startswith("/") else ".")).write(name, html.encode())
    return out


def visible_sections(inputs: RunInputs, shards: str | None) -> dict[str, Any]:
    """Draws the sections that need shards or weights; a section without its input is a `Missing`."""
    url = shards or inputs.fact("stream", "url")
    remedy = f"python -m distributed report {inputs.location} --shards SHARDS"
    if url is None or "model" not in inputs.config:
        gap = Missing("the shards of the run" if "model" in inputs.config else "config.yaml of the run", remedy)
        return {"music": gap, "attention": gap, "filled": None}
    config = compose(ModelConfig, presets=[inputs.config["model"]])
    masks = compose(MaskConfig, presets=[inputs.config.get("masks") or {}])
    try:
        gallery = read_gallery(url, crop_frames=config.crop_frames, count=CROPS)
    except (StoreError, ReportError) as error:
        _LOG.warning("no pictures of the music: %s", error)
        gap = Missing(f"the shards, and they could not be read: {error}", remedy)
        return {"music": gap, "attention": gap, "filled": None}
    music, needed = music_section(gallery, config, masks=masks), "the weights in export/"
    try:
        model = load_export(inputs.location) if inputs.has_export else None
    except WeightsError as error:
        model, needed = None, f"{needed}, and they could not be read: {error}"
    if model is None:
        gap = Missing(needed, f"python -m distributed export {inputs.location}")
        return {"music": music, "attention": gap, "filled": None}
    mels = [normalise(torch.from_numpy(c.mel_TF), model.config.mel_mean, model.config.mel_std) for c in gallery.crops]
    objective, canvas = compose(ObjectiveConfig, presets=[inputs.config.get("objective") or {}]), music["canvases"][0]
    return {
        "music": music,
        "attention": attention_section(model, canvas, mels[0], masks=masks),
        "filled": prediction_plates(model, canvas, mels, masks=masks, objective=objective),
    }


def render_report(inputs: RunInputs, sections: dict[str, Any], *, shards: str | None = None) -> str:
    """Returns the page's HTML."""
    script, music = (HERE / "page.js").read_text(), sections["music"]
    return render_page(
        HERE / "page.html.j2",
        policy=policy(script),
        title=f"{inputs.name} · PupuJEPA run report",
        gap=lambda section: isinstance(section, Missing),
        run=inputs,
        words=inputs.words,
        head=overview(inputs),
        contents=CONTENTS,
        marks=MARKS,
        **sections,
        symbols=() if isinstance(music, Missing) else music["symbols"],
        training=training_section(inputs),
        collapse=collapse_section(inputs),
        probes=probe_section(inputs),
        reproduce=reproduce_section(inputs, shards),
        no_config=Missing("config.yaml, the resolved configuration", "python -m distributed train --preset demo ..."),
        script=script,  # inline, because the policy allows no request
        frame_clip=frame_clip(),
    )


def policy(script: str) -> str:
    """Returns the content security policy: load nothing, and run only this script, by its digest."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )

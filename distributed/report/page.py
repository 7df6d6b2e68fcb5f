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
from dataclasses import dataclass
from pathlib import Path

import torch

from data.store.store import StoreError, open_store
from distributed.drawing.charts import frame_clip
from distributed.drawing.page import render_page
from distributed.report.attention import AttentionSection, attention_section, load_export
from distributed.report.inputs import Missing, ReportError, RunInputs, read_run
from distributed.report.music import Music, music_section
from distributed.report.overview import overview
from distributed.report.prediction import Predictions, prediction_plates
from distributed.report.probes import probe_section
from distributed.report.reproduce import reproduce_section
from distributed.report.samples import Gallery, read_gallery
from distributed.report.terms import terms_of
from distributed.report.training import collapse_section, training_section
from pupujepa.audio.log_mel import normalise
from pupujepa.config import compose
from pupujepa.model.model import ModelConfig
from pupujepa.training.masks import MaskConfig
from pupujepa.training.objective import ObjectiveConfig
from pupujepa.weights.weights import WeightsError

_LOG = logging.getLogger(__name__)
HERE = Path(__file__).parent
CROPS = 12
CONTENTS = (
    ("music", "The music"),
    ("training", "The training"),
    ("collapse", "Learning or collapsing?"),
    ("attention", "Where the predictor looks"),
    ("probes", "What the features know"),
    ("reproduce", "Do it again"),
)
MARKS = {"good": "✓", "alarm": "!", "open": "?"}


@dataclass(frozen=True)
class Sections:
    """The sections that need the shards or the weights."""

    music: Music | Missing
    attention: AttentionSection | Missing
    filled: Predictions | None = None


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


def visible_sections(inputs: RunInputs, shards: str | None) -> Sections:
    """Draws the sections that need shards or weights; a section without its input is a `Missing`."""
    url = shards or inputs.fact("stream", "url")
    configs = _configs(inputs)
    remedy = f"python -m distributed report {inputs.location} --shards SHARDS"
    if url is None or configs is None:
        gap = Missing("config.yaml of the run" if configs is None else "the shards of the run", remedy)
        return Sections(gap, gap)
    model, masks = configs
    try:
        gallery = read_gallery(url, crop_frames=model.crop_frames, count=CROPS)
    except (StoreError, ReportError) as error:
        _LOG.warning("no pictures of the music: %s", error)
        gap = Missing(f"the shards, and they could not be read: {error}", remedy)
        return Sections(gap, gap)
    music = music_section(gallery, model, masks=masks)
    return _with_weights(inputs, gallery, music, masks)


def render_report(inputs: RunInputs, sections: Sections, *, shards: str | None = None) -> str:
    """Returns the page's HTML."""
    script = (HERE / "page.js").read_text()
    return render_page(
        HERE / "page.html.j2",
        policy=policy(script),
        title=f"{inputs.name} · PupuJEPA run report",
        gap=lambda section: isinstance(section, Missing),
        run=inputs,
        head=overview(inputs),
        contents=CONTENTS,
        marks=MARKS,
        terms=terms_of(inputs),
        music=sections.music,
        attention=sections.attention,
        filled=sections.filled,
        symbols=sections.music.symbols if isinstance(sections.music, Music) else (),
        training=training_section(inputs),
        collapse=collapse_section(inputs),
        probes=probe_section(inputs),
        reproduce=reproduce_section(inputs, shards),
        no_config=Missing("config.yaml, the resolved configuration", "python -m distributed train --preset demo ..."),
        script=script,
        frame_clip=frame_clip(),
    )


def policy(script: str) -> str:
    """Returns the content security policy: load nothing, and run only this script, by its digest."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )


def _with_weights(inputs: RunInputs, gallery: Gallery, music: Music, masks: MaskConfig) -> Sections:
    remedy = f"python -m distributed export {inputs.location}"
    if not inputs.has_export:
        return Sections(music, Missing("the weights in export/", remedy))
    try:
        model = load_export(inputs.location)
    except WeightsError as error:
        return Sections(music, Missing(f"the weights in export/, and they could not be read: {error}", remedy))
    mels = [normalise(torch.from_numpy(c.mel_TF), model.config.mel_mean, model.config.mel_std) for c in gallery.crops]
    objective = compose(ObjectiveConfig, presets=[inputs.config.get("objective") or {}])
    return Sections(
        music,
        attention_section(model, music.canvases[0], mels[0], masks=masks),
        prediction_plates(model, music.canvases[0], mels, masks=masks, objective=objective),
    )


def _configs(inputs: RunInputs) -> tuple[ModelConfig, MaskConfig] | None:
    """Returns the configurations of the run's model and masks; None without config.yaml."""
    if "model" not in inputs.config:
        return None
    return (
        compose(ModelConfig, presets=[inputs.config["model"]]),
        compose(MaskConfig, presets=[inputs.config.get("masks") or {}]),
    )

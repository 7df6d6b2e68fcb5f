"""Shows random samples of a shard set as one HTML page: spectrograms, labels, positions.

  python -m data inspect shards/train --out page.html
  python -m data inspect s3://bucket/scores/train --count 24 --seed 7 --out page.html

`verify` checks the bytes; eyes check that they are music. Only the drawn samples are fetched.
"""

import argparse
import base64
import html
import io
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.reading.reader import ShardReader
from data.shards.manifest import Manifest, read_manifest
from pupujepa.durable import atomic_file
from pupujepa.errors import UserError
from pupujepa.progress import Progress
from pupujepa.randomness import generator

_LONGEST_LIST = 12  # of labels that are shown whole
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; color: #222; }
figure { margin: 2rem 0; } img { width: 100%; height: 190px; image-rendering: auto; border-radius: 4px; }
figcaption b { font-size: 1.05em; } pre { background: #f4f4f4; padding: .6rem; overflow-x: auto; font-size: 12px; }
.axis { color: #777; font-size: 12px; display: flex; justify-content: space-between; }
@media (prefers-color-scheme: dark) { body { background: #16181c; color: #ddd; } pre { background: #22252b; } }
"""


@dataclass(frozen=True)
class Drawn:
    """One sample of the page."""

    shard: str
    mel_TF: NDArray[np.float32]
    info: dict[str, Any]


def draw_samples(url: str, *, count: int, seed: int) -> tuple[Manifest, list[Drawn]]:
    """Returns the manifest and `count` distinct random samples, or all if there are fewer.

    Raises:
        ManifestError, ShardError, StoreError: the set or one of the samples cannot be read.
    """
    manifest = read_manifest(url)
    ends = np.cumsum([entry.samples for entry in manifest.shards])  # sample numbers at which shards end
    chosen = generator(seed, "inspect").permutation(manifest.samples)[:count]
    reader, drawn = ShardReader(url, manifest), []
    try:
        with Progress(len(chosen), title=f"inspect {url}", unit="samples") as progress:
            for number in chosen:
                shard = int(np.searchsorted(ends, number, side="right"))
                mel_TF, info = reader.read(shard, int(number - (ends[shard] - manifest.shards[shard].samples)))
                drawn.append(Drawn(manifest.shards[shard].name, mel_TF, info))
                progress.advance()
    finally:
        reader.close()
    return manifest, drawn


def samples_page(url: str, manifest: Manifest, drawn: Iterable[Drawn]) -> str:
    """Returns the page of the samples."""
    head = (
        f"{manifest.audio_hours:.2f} h, {manifest.tracks} tracks, {manifest.samples} samples in {len(manifest.shards)} "
        f"shards, {manifest.dtype}, digest {manifest.digest[:16]}"
    )
    figures = "\n".join(_figure(sample, manifest) for sample in drawn)
    title = f"Samples of {html.escape(url)}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"</head>\n<body><h1>{title}</h1><p>{html.escape(head)}. Time runs to the right, mel bands upwards (0 to "
        f"{manifest.frontend['fmax_hz'] / 1000:g} kHz); dark is quiet.</p>\n{figures}\n</body></html>\n"
    )


def _figure(sample: Drawn, manifest: Manifest) -> str:
    info = dict(sample.info)
    labels = info.pop("labels", None)
    start, stop = info["start_s"], info["start_s"] + info["duration_s"]
    caption = f"{info['source']}, {start:.2f} - {stop:.2f} s of the track, {info['frames']} frames, in {sample.shard}"
    shown = f"<pre>{html.escape(_short_json(labels))}</pre>" if labels else ""
    return (
        f"<figure><figcaption><b>{html.escape(info['uid'])}</b><br>{html.escape(caption)}</figcaption>"
        f'<img alt="log-mel spectrogram" src="data:image/png;base64,{_png(sample.mel_TF, manifest)}">'
        f'<div class="axis"><span>{start:.1f} s</span><span>{stop:.1f} s</span></div>{shown}</figure>'
    )


def _png(mel_TF: NDArray[np.float32], manifest: Manifest) -> str:
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    # the loud end follows the sample: most music stays far below the ceiling of the codes
    highest = max(float(mel_TF.max()), manifest.lo + 1.0)
    # time to the right
    imsave(buffer, mel_TF.T, origin="lower", vmin=manifest.lo, vmax=highest, cmap="magma", format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def _short_json(labels: dict[str, Any]) -> str:
    short = {
        name: [*value[:_LONGEST_LIST], f"... {len(value)} in all"]
        if isinstance(value, list) and len(value) > _LONGEST_LIST
        else value
        for name, value in labels.items()
    }
    return "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in sorted(short.items()))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares `inspect`."""
    parser.add_argument("url", metavar="URL", help="folder of one split: path, file:// or s3://")
    parser.add_argument("--out", type=Path, default=Path("samples.html"), help="the page (default samples.html)")
    parser.add_argument("--count", type=int, default=12, help="samples to draw (default 12)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws others (default 0)")


def run(args: argparse.Namespace) -> int:
    """Draws the samples and writes the page."""
    if args.count < 1:
        raise UserError(f"--count is {args.count}, so the page would be empty; use 1 or more")
    manifest, drawn = draw_samples(args.url, count=args.count, seed=args.seed)
    with atomic_file(args.out) as temporary:
        temporary.write_text(samples_page(args.url, manifest, drawn))
    sys.stdout.write(f"{args.out}: {len(drawn)} of {manifest.samples} samples\n")
    return 0

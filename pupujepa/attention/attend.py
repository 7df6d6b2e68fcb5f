"""Draw the predictor's attention from a hidden region: a picture, or an interactive page.

  python -m pupujepa attend runs/demo/export song.flac --out attention.png
  python -m pupujepa attend runs/demo/export song.flac --out attention.html
  python -m pupujepa attend runs/demo/export song.flac --start 30 --time 1.0 1.4 --frequency 80 400 --out bass.png
  python -m pupujepa attend runs/demo/export song.flac --layer all --head all --out heads.png
  python -m pupujepa attend runs/demo/export song.flac --regions 8x4 --out explore.html bass.png

Everything outside the region is visible, split into passes that each see as much as in training. Bright patches receive
the most attention from the region, in multiples of an even spread. A picture shows one layer and head, their means, or
all of them. The .html page lets you choose them, and with --regions also the region. The page needs only a browser; a
picture needs matplotlib: pip install 'pupujepa[eval]'.
"""

import argparse
import re
import sys
from pathlib import Path

from pupujepa.attention.maps import region_attention
from pupujepa.attention.picture import ALL, MEAN, panels_of, save_picture, write_page
from pupujepa.attention.region import AudioCrop, Box, Look, box_in, boxes_over, read_crop
from pupujepa.errors import UserError
from pupujepa.progress import follow
from pupujepa.weights.weights import load

PAGE_SUFFIX = ".html"
PICTURE_SUFFIXES = (".png", ".svg", ".pdf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("weights", help="a folder of weights, or a hub id")
    parser.add_argument("audio", type=Path, help="an audio file")
    parser.add_argument("--out", type=Path, nargs="+", required=True, help="files to write: .png, .svg, .pdf, .html")
    parser.add_argument("--start", type=float, default=0.0, metavar="S", help="start of the crop in the file, seconds")
    parser.add_argument(
        "--time",
        type=float,
        nargs=2,
        metavar=("FROM", "TO"),
        help="region, seconds in the crop (default: its middle tenth)",
    )
    height = parser.add_mutually_exclusive_group()
    height.add_argument("--frequency", type=float, nargs=2, metavar=("LOW", "HIGH"), help="region, hertz (all)")
    height.add_argument("--bands", type=int, nargs=2, metavar=("LOW", "HIGH"), help="region, rows of patches (all)")
    parser.add_argument("--layer", default=MEAN, help=f"pictures: layer of the predictor, from 1; {MEAN} or {ALL}")
    parser.add_argument("--head", default=MEAN, help=f"pictures: head, from 1; {MEAN} or {ALL}")
    parser.add_argument("--regions", metavar="CxR", help="pages: also cut the crop into C x R regions to choose from")
    parser.add_argument("--ratio", type=float, default=0.8, help="share of patches that each pass hides")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split into passes")


def run(args: argparse.Namespace) -> int:
    """Computes the attention and writes pictures and pages.

    Raises:
        UserError: another file format, a box outside the crop, or audio or weights that cannot be used.
    """
    for path in args.out:
        if path.suffix.lower() not in (PAGE_SUFFIX, *PICTURE_SUFFIXES):
            known = ", ".join((PAGE_SUFFIX, *PICTURE_SUFFIXES))
            raise UserError(f"--out {path}: no such format; choose one of {known}")
    if not 0 < args.ratio < 1:
        raise UserError(f"--ratio {args.ratio} must be between 0 and 1: it is the share of hidden patches")
    model = load(args.weights)
    crop = read_crop(model, args.audio, start_s=args.start)
    boxes = _boxes(args, crop)  # the first is the requested region; pictures show only this one
    looks, grid = [], (crop.steps, crop.bands)
    for box in follow(boxes, total=len(boxes), title="attention", unit="regions"):
        maps = region_attention(model, crop.mel_TF, box.mask(grid), ratio=args.ratio, seed=args.seed)
        looks.append(Look(box, maps))
    panels_of(looks[0], args.layer, args.head)  # raises for a wrong layer before a file is written
    for path in args.out:
        if path.suffix.lower() == PAGE_SUFFIX:
            write_page(crop, looks, path)
        else:
            save_picture(crop, looks[0], path, layer=args.layer, head=args.head)
    sys.stderr.write(f"{boxes[0].steps * boxes[0].bands} patches looked from: {boxes[0].describe(crop)}\n")
    sys.stderr.write(f"written: {', '.join(str(path) for path in args.out)}\n")
    return 0


def _boxes(args: argparse.Namespace, crop: AudioCrop) -> list[Box]:
    """Returns the requested region, then those to choose from on a page."""
    box = box_in(crop, time_s=args.time, frequency_hz=args.frequency, rows=args.bands)
    if args.regions is None:
        return [box]
    match = re.fullmatch(r"(\d+)x(\d+)", args.regions)
    if not match:
        raise UserError(f"--regions {args.regions}: give columns x rows, such as 8x4")
    return [box, *boxes_over(crop, int(match[1]), int(match[2]))]

"""One command for one GPU: tests, step times, data wait; at most nine minutes, resumable.

  make gpu                                  installs first; make gpu BIN=/opt/env/bin uses an existing environment
  python -m benchmarks gpu                  missing parts, then the section of benchmarks/RESULTS.md
  python -m benchmarks gpu --fresh          from the beginning
  python -m benchmarks gpu --only tests     parts whose names begin with a word
  python -m benchmarks gpu --device cpu --tiny --out DIR       a smoke test without a GPU

OUT/parts keeps the result of each part. A part that does not fit into the remaining time is skipped with a message.
Failed parts run again after the missing ones. Exit code 0: all parts are done; 1: one failed; 3: one is missing, so run
it again. RESULTS.md gets figures of a GPU only; those of a CPU go to OUT/section.md.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import arguments_of

if TYPE_CHECKING:
    from benchmarks.gpu.kept import Kept

# nine minutes, minus the time that an interrupted part needs to end
TIME_S = 520.0
COMPLETE, FAILED, MISSING = 0, 1, 3
# modules whose pip packages have the same names
NEEDED = (
    *("torch", "numpy", "omegaconf", "safetensors", "soundfile", "tqdm", "librosa"),
    *("deepspeed", "webdataset", "pytest", "pytest_timeout"),
)


def main() -> None:
    """Runs the parts, writes the section, and exits with COMPLETE, FAILED or MISSING."""
    args = parse(arguments_of("gpu"))
    began_s = time.monotonic()
    if sentence := missing_sentence():
        sys.exit(f"error: {sentence}")
    # they import torch and other packages that may be missing
    from benchmarks.gpu import section
    from benchmarks.gpu.kept import Kept, Setting
    from pupujepa.errors import UserError

    try:
        setting = Setting.of(args.device, tiny=args.tiny, out=args.out)
        if args.fresh:
            shutil.rmtree(setting.out, ignore_errors=True)
        kept = Kept(setting)
        run_parts(kept, only=args.only, ends_s=began_s + args.seconds)
        section.write(kept)
    except UserError as error:
        sys.exit(f"error: {error}")
    sys.exit(code_of(kept, only=args.only))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads what follows `gpu` on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="sizes that take a CPU seconds; a smoke test")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="default: %(default)s")
    parser.add_argument("--fresh", action="store_true", help="delete earlier results")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="parts whose names begin with a word")
    parser.add_argument("--seconds", type=float, default=TIME_S, help="time limit of this run (default: %(default)g)")
    return parser.parse_args(argv)


def missing_sentence(needed: Iterable[str] = NEEDED) -> str:
    """Returns a sentence with the missing modules and the command to install them; "" if none is missing."""
    missing = [name for name in needed if find_spec(name) is None]
    if not missing:
        return ""
    return (
        f"{sys.executable} lacks {', '.join(missing)}, so the GPU cannot be tested with it; install "
        f"{'it' if len(missing) == 1 else 'them'} beside its torch: {sys.executable} -m pip install {' '.join(missing)}"
    )


def run_parts(kept: "Kept", *, only: Sequence[str], ends_s: float) -> None:
    """Runs missing parts, then failed ones, until the time is over; prints a line per part.

    Args:
        ends_s: on the monotonic clock.
    """
    from benchmarks.gpu.parts import chosen_parts, run_part

    parts = chosen_parts(kept.setting, only)
    for part in parts:
        if kept.is_done(part.name):
            print(f"{part.name}: kept from {kept.result(part.name).ended}", flush=True)
    for part in sorted((p for p in parts if not kept.is_done(p.name)), key=lambda p: kept.has(p.name)):
        left_s = ends_s - time.monotonic()
        if left_s < part.least_s:
            print(
                f"{part.name}: NOT RUN, it needs about {part.least_s:.0f} s and {max(left_s, 0):.0f} s are left; the "
                f"same command continues with it",
                flush=True,
            )
            continue
        print(f"{part.name}: at most {min(part.most_s, left_s):.0f} s ...", flush=True)
        result = run_part(part, kept, seconds=min(part.most_s, left_s))
        if result is None:
            print(f"{part.name}: NOT DONE, the time is over; the same command begins it again", flush=True)
            continue
        kept.keep(part.name, result)
        print(f"{part.name}: {result.summary}, in {result.seconds:.0f} s", flush=True)
        if result.failure:
            print(f"{result.failure}\n", flush=True)


def code_of(kept: "Kept", *, only: Sequence[str]) -> int:
    """Returns the exit code."""
    from benchmarks.gpu.parts import chosen_parts

    names = [part.name for part in chosen_parts(kept.setting, only)]
    if any(kept.has(name) and not kept.is_done(name) for name in names):
        return FAILED
    return COMPLETE if all(map(kept.has, names)) else MISSING

"""Embed audio files: one row per file, with the embedding, its readout and layers, and all settings.

  python -m pupujepa embed runs/demo/export songs/ --out vectors/
  python -m pupujepa embed owner/weights song.flac --out vectors/ --readout mean --layers 6 12
  python -m pupujepa embed runs/demo/export songs/ --out vectors/ --readout mean --format parquet
  python -m pupujepa embed runs/demo/export songs/ --out vectors/ --workers 8 --skip-broken

Folders, linked ones too, are searched for wav, flac, mp3, ogg, opus, aiff, au, caf and w64 files of any rate, mono or
stereo, 40 ms to hours; the files and links that are passed over are counted or named.

  --format npz      an .npz per file, with arrays values, times_s, layers, readout, name, settings and more
  --format parquet  part-00000.parquet and so on, a row per file; needs pip install 'pupujepa[parquet]'

Run the same command again to continue after an interruption: finished files are kept, and files with another size or
time of change are embedded again. Rows of other weights, readout or layers are an error. The result does not depend on
the number of workers or on interruptions. Files that cannot be embedded are listed at the end, with exit code 1; with
--skip-broken the exit code is 0, and OUT/broken.jsonl lists them with the reasons. Files that cannot be read now
(rights, disk) are not broken: they are listed with exit code 1, and tried again by the next run. All audio that a file
holds is embedded, whatever length it announces; files that announce another one are listed.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pupujepa.audio.decode_ahead import PendingClip, decode_ahead
from pupujepa.audio.find import AudioFile, find_audio
from pupujepa.durable import remove_unfinished
from pupujepa.embedding.encoder import Embedding, Encoder
from pupujepa.embedding.readout import parse_readout
from pupujepa.embedding.stores import NpzFolder, VectorStore
from pupujepa.errors import UnreadableError, UserError
from pupujepa.json_lines import write_rows
from pupujepa.locks import only_writer
from pupujepa.model.model import PupuJEPA, resolve_layers
from pupujepa.model.rope import ROPE_MODES
from pupujepa.precision import usable_device, warn_of_emulation
from pupujepa.progress import Progress
from pupujepa.weights.weights import load

BROKEN_NAME = "broken.jsonl"
FORMATS = ("npz", "parquet")
_SAMPLED_BYTES = 4096
_MEGABYTE = 1_000_000
_MOST_DEFAULT_WORKERS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("weights", help="a folder of weights, or a hub id")
    parser.add_argument("audio", nargs="+", type=Path, help="audio files, or folders that are searched for them")
    parser.add_argument("--out", type=Path, required=True, help="folder for the rows")
    parser.add_argument("--format", choices=FORMATS, default="npz", help="default: %(default)s")
    parser.add_argument(
        "--readout", default="frames", help="frames (25 a second), mean, or region:FxT such as region:4x2"
    )
    parser.add_argument(
        "--layers", nargs="+", default=["-1"], metavar="N", help="0 = patch embedding, -1 = last (default), or all"
    )
    parser.add_argument("--encoder", choices=("teacher", "student"), default="teacher", help="default: %(default)s")
    parser.add_argument("--rope", choices=ROPE_MODES, help="clip_relative is the release's (see docs/differences.md)")
    parser.add_argument("--batch-size", type=int, default=8, help="windows encoded together (default: %(default)s)")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, cuda:1, mps and so on (default here: %(default)s)",
    )
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument(
        "--workers",
        type=int,
        default=min(cores, _MOST_DEFAULT_WORKERS),
        help="files to decode at the same time (default: %(default)s)",
    )
    parser.add_argument(
        "--part-mb",
        type=float,
        default=256.0,
        help="parquet: size of a part (default: %(default)g)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace rows made with other settings")
    parser.add_argument("--skip-broken", action="store_true", help=f"list broken files in OUT/{BROKEN_NAME}, exit 0")


def run(args: argparse.Namespace) -> int:
    """Embeds all files and returns 1 if any failed, unless --skip-broken.

    Raises:
        UserError: inputs, weights, readout or layers that cannot be used, or an --out with other files or writers.
    """
    if args.workers < 1:
        raise UserError(f"--workers {args.workers}: give at least one thread to decode")
    if not args.part_mb > 0:
        raise UserError(f"--part-mb {args.part_mb:g} must be positive: it is the size of a part")
    files, passed_over = find_audio(args.audio)
    device = usable_device(args.device)  # inputs and device first: loading weights takes longer
    model = load(args.weights, rope=args.rope)
    parse_readout(args.readout, bands=model.config.grid_bands)
    layers = resolve_layers(_layers(args.layers), model.config.depth)
    settings = {
        "weights": model_fingerprint(model),
        "readout": args.readout,
        "layers": layers,
        "encoder": args.encoder,
        "bf16": args.bf16,
    }
    if args.bf16:
        warn_of_emulation("bf16", device)
    encoder = Encoder(
        model,
        device=device,
        autocast_dtype=torch.bfloat16 if args.bf16 else None,
        batch_size=args.batch_size,
    )
    store = _open_store(args, settings)
    with only_writer(args.out):
        remove_unfinished(args.out)  # safe: no other writer is at work here now
        stock = store.take_stock(files)
        todo = [file for file in files if file.name not in stock.finished]
        sys.stderr.writelines(f"{line}\n" for line in passed_over.lines())
        again = f", {len(stock.changed)} of them again because they were changed" if stock.changed else ""
        sys.stderr.write(f"{len(files)} files: {len(stock.finished)} already embedded, {len(todo)} to do{again}\n")
        outcome = embed(todo, encoder, store, settings=settings, workers=args.workers)
        store.close()
        if args.skip_broken and outcome.broken:
            write_rows(args.out / BROKEN_NAME, outcome.broken)
        elif args.skip_broken:
            (args.out / BROKEN_NAME).unlink(missing_ok=True)  # of an earlier run, repaired since
    sys.stderr.writelines(f"{line}\n" for line in outcome.lines(len(todo), args.out, skipping=args.skip_broken))
    return 1 if outcome.unreadable or (outcome.broken and not args.skip_broken) else 0


@dataclass(frozen=True)
class EmbedOutcome:
    """Files to report.

    broken: damaged or unusable: name, path and reason.
    unreadable: sentences on files that cannot be read now; the next run tries them again.
    notes: sentences on files that were embedded, but have another length than they announce.
    """

    broken: list[dict[str, str]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self, files: int, out: Path, *, skipping: bool) -> Iterator[str]:
        """Yields the summary of a run over `files` files."""
        yield f"{files - len(self.broken) - len(self.unreadable)} files embedded into {out}"
        if self.notes:
            yield f"{len(self.notes)} of them have another length than they announce:"
            yield from self.notes
        yield from (f"{'skipped' if skipping else 'failed'}: {record['reason']}" for record in self.broken)
        yield from (f"unreadable: {reason}" for reason in self.unreadable)


def embed(
    files: Sequence[AudioFile], encoder: Encoder, store: VectorStore, *, settings: Mapping[str, Any], workers: int
) -> EmbedOutcome:
    """Adds the row of every file to a store.

    Args:
        settings: readout, layers and encoder, already checked against the model.
        workers: files to decode at the same time.
    """
    outcome = EmbedOutcome()
    rate_hz = encoder.frontend.sample_rate_hz
    with (
        closing(decode_ahead([file.path for file in files], rate_hz, threads=workers)) as clips,
        _Pace(files) as pace,
    ):
        for file, clip in zip(files, clips, strict=True):
            audio_s = 0.0
            try:
                embedding, audio_s, note = _embed_clip(clip, encoder, settings)
            except UnreadableError as error:
                outcome.unreadable.append(str(error))
            except UserError as error:  # the settings were checked, so the clip is at fault
                reason = str(error) if str(file.path) in str(error) else f"{file.path}: {error}"
                outcome.broken.append({"name": file.name, "path": str(file.path), "reason": reason})
            else:
                store.add(file, embedding)
                outcome.notes.extend([note] if note else [])
            pace.advance(file, audio_s)
    return outcome


def model_fingerprint(model: PupuJEPA) -> str:
    """Returns a digest of the configs and of the first bytes of every tensor."""
    digest = blake2b(repr((model.config, model.frontend)).encode(), digest_size=16)
    for name, tensor in model.state_dict().items():  # of each tensor only a sample: Giant has 12 GB
        digest.update(name.encode())
        digest.update(tensor.detach().flatten()[: _SAMPLED_BYTES // 4].cpu().numpy().tobytes())
    return digest.hexdigest()


def _open_store(args: argparse.Namespace, settings: Mapping[str, Any]) -> VectorStore:
    """Returns the store of --format.

    Raises:
        UserError: parquet without pyarrow.
    """
    if args.format == "npz":
        return NpzFolder(args.out, settings, overwrite=args.overwrite)
    try:
        # pyarrow is an extra, and slow to import
        from pupujepa.embedding.parquet import ParquetFolder
    except ImportError as error:
        raise UserError(
            "parquet needs pyarrow, which is not installed: pip install 'pupujepa[parquet]', or --format npz"
        ) from error
    part_bytes = round(args.part_mb * _MEGABYTE)
    return ParquetFolder(args.out, settings, part_bytes=part_bytes, overwrite=args.overwrite)


def _layers(words: Sequence[str]) -> list[int] | None:
    """Returns layer numbers, or None for `all`."""
    if list(words) == ["all"]:
        return None
    try:
        return [int(word) for word in words]
    except ValueError as error:
        raise UserError(f"--layers {' '.join(words)}: give numbers or the single word all") from error


def _embed_clip(pending: PendingClip, encoder: Encoder, settings: Mapping[str, Any]) -> tuple[Embedding, float, str]:
    """Returns the embedding, the seconds of audio, and the clip's note.

    Raises:
        UserError: the clip cannot be decoded or embedded. UnreadableError: it cannot be read now.
    """
    clip = pending.open()
    embedding = encoder.encode(clip, readout=settings["readout"], layers=settings["layers"], which=settings["encoder"])
    if not np.isfinite(embedding.values).all():
        raise UserError("the embedding is not finite; embed the file without --bf16, or repair the weights")
    return embedding, clip.samples / encoder.frontend.sample_rate_hz, clip.note


class _Pace:
    """Progress by size, which estimates the remaining time better than a count of files."""

    def __init__(self, files: Sequence[AudioFile]) -> None:
        self._files, self._files_done = len(files), 0
        self._bytes_done = 0
        self._audio_s = 0.0
        total = sum(file.state.size_bytes for file in files)
        self._progress = Progress(-(-total // _MEGABYTE), title="embed", unit="MB")

    def __enter__(self) -> "_Pace":
        self._progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.__exit__(*error)

    def advance(self, file: AudioFile, audio_s: float) -> None:
        self._files_done += 1
        self._bytes_done += file.state.size_bytes
        self._audio_s += audio_s
        elapsed_s = self._progress.elapsed_s
        self._progress.advance(
            -(-self._bytes_done // _MEGABYTE) - self._progress.done,  # rounded up, so that the last file ends at 100 %
            note=f"{self._files_done}/{self._files} files, {self._files_done / elapsed_s:.1f} files/s, "
            f"{self._audio_s / elapsed_s:.0f} times real time",
        )

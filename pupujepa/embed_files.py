"""Embed audio files: one .npz per file, with arrays `values` and `times_s` and the settings that made them.

  python -m pupujepa embed runs/demo/export songs/ --out vectors/
  python -m pupujepa embed owner/weights song.flac --out vectors/ --readout mean --layers 6 12

Folders are searched for wav, flac, ogg, mp3, aiff and aif files. Any rate, mono or stereo, 40 ms to hours. Run the same
command again to continue: finished files are kept. Files that cannot be embedded are listed at the end, and the exit
code is then 1; none is skipped silently.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from tqdm import tqdm

from pupujepa.audio import AudioError
from pupujepa.encoder import Embedding, Encoder
from pupujepa.errors import UserError
from pupujepa.model import PupuJEPA
from pupujepa.readout import parse_readout
from pupujepa.weights import load

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif"})
_SAMPLED_BYTES = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("weights", help="a folder of weights, or a hub id")
    parser.add_argument("audio", nargs="+", type=Path, help="audio files, or folders that are searched for them")
    parser.add_argument("--out", type=Path, required=True, help="folder for the .npz files")
    parser.add_argument(
        "--readout", default="frames", help="frames (25 a second), mean, or region:FxT such as region:4x2"
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[-1], help="0 = patch embedding, -1 = last (default)")
    parser.add_argument("--encoder", choices=("teacher", "student"), default="teacher")
    parser.add_argument("--batch-size", type=int, default=8, help="windows encoded together")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--overwrite", action="store_true", help="replace files made with other settings")


def run(args: argparse.Namespace) -> int:
    """Embeds all files and returns 1 if any failed."""
    plan = plan_outputs(args.audio, args.out)
    model = load(args.weights)
    encoder = Encoder(
        model,
        device=args.device,
        autocast_dtype=torch.bfloat16 if args.bf16 else None,
        batch_size=args.batch_size,
    )
    parse_readout(args.readout, bands=model.config.grid_bands)
    settings = {
        "weights": fingerprint(model),
        "readout": args.readout,
        "layers": args.layers,
        "encoder": args.encoder,
        "bf16": args.bf16,
    }
    todo = unfinished(plan, settings, overwrite=args.overwrite)
    sys.stderr.write(f"{len(plan)} files: {len(plan) - len(todo)} already embedded, {len(todo)} to do\n")
    failures = []
    for source, output in tqdm(todo.items(), desc="embed", unit="file", disable=None):
        try:
            embedding = encoder.encode(source, readout=args.readout, layers=args.layers, which=args.encoder)
        except AudioError as error:
            failures.append(str(error))
            continue
        write_embedding(output, embedding, settings)
    sys.stderr.write(f"{len(todo) - len(failures)} files embedded into {args.out}\n")
    for failure in failures:
        sys.stderr.write(f"failed: {failure}\n")
    return 1 if failures else 0


def plan_outputs(inputs: Iterable[Path], out: Path) -> dict[Path, Path]:
    """Returns the output file of every audio file, in a fixed order.

    Raises:
        UserError: a missing input, a folder without audio, or two inputs with one output.
    """
    plan: dict[Path, Path] = {}
    for given in inputs:
        if given.is_dir():
            sources = sorted(path for path in given.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
            if not sources:
                raise UserError(f"{given} holds no audio files ({', '.join(sorted(AUDIO_SUFFIXES))})")
            plan.update({source: out / f"{source.relative_to(given)}.npz" for source in sources})
        elif given.is_file():
            plan[given] = out / f"{given.name}.npz"
        else:
            raise UserError(f"{given}: no such file or folder; check the path")
    owners: dict[Path, Path] = {}
    for source, output in plan.items():
        if output in owners:
            raise UserError(f"{source} and {owners[output]} would both be written to {output}; embed them separately")
        owners[output] = source
    return plan


def unfinished(plan: Mapping[Path, Path], settings: Mapping, *, overwrite: bool) -> dict[Path, Path]:
    """Returns the part of the plan whose output does not exist.

    Raises:
        UserError: an output that was made with other settings, unless `overwrite`.
    """
    todo = {}
    for source, output in plan.items():
        found = _settings_of(output)
        if found == settings:
            continue
        if found is not None and not overwrite:
            differing = [key for key in settings if found.get(key) != settings[key]]
            raise UserError(
                f"{output} was made with another {' and '.join(differing)}; choose another --out, or pass --overwrite"
            )
        todo[source] = output
    return todo


def write_embedding(output: Path, embedding: Embedding, settings: Mapping) -> None:
    """Writes an .npz that is either complete or absent."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    with partial.open("wb") as file:
        np.savez(
            file,
            values=embedding.values,
            times_s=embedding.times_s,
            layers=np.asarray(embedding.layers),
            settings=np.asarray(json.dumps(settings)),
        )
    partial.replace(output)


def fingerprint(model: PupuJEPA) -> str:
    """Returns a digest of the first bytes of every tensor: enough to tell trained models apart without reading all."""
    digest = blake2b(repr((model.config, model.frontend)).encode(), digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().flatten()[: _SAMPLED_BYTES // 4].cpu().numpy().tobytes())
    return digest.hexdigest()


def _settings_of(output: Path) -> dict | None:
    if not output.is_file():
        return None
    try:
        with np.load(output) as file:
            return json.loads(str(file["settings"]))
    except (BadZipFile, KeyError, ValueError) as error:
        raise UserError(f"{output} is not a file of this command ({error}); choose another --out") from error

"""Weights on disk, in the layout of the released models or flat.

    pupujepaV2_25hz_large/args.json                          sections preprocess, model, train (release_args.py)
    pupujepaV2_25hz_large/checkpoint/step-0500000_loss-0.177000/model.safetensors      the newest step is read
    any/folder/args.json, any/folder/model.safetensors       flat layout

The folder may have any name: the release uses two (pupujepaV2_25hz_* and pupum2dV2_25hz_*). All tensor names and shapes
must match.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pupujepa.durable import atomic_file
from pupujepa.errors import require_readable
from pupujepa.model.model import ModelConfig, PupuJEPA
from pupujepa.precision import usable_device
from pupujepa.weights.hub import download, parse_hub_id
from pupujepa.weights.release_args import ARGS_NAME, WEIGHTS_NAME, WeightsError, args_of, described_model, read_args

__all__ = ["WeightsError", "find_weights", "load", "locate_weights", "save_release"]

_CHECKPOINT = "checkpoint"
_SHOWN_DIFFERENCES = 6
_STEP_FOLDER = re.compile(r"step-(\d+)")
_HEADER_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load(
    path_or_hub_id: str | Path,
    *,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    rope: str | None = None,
) -> PupuJEPA:
    """Loads a model, in evaluation mode, in float32.

    Args:
        path_or_hub_id: a folder in one of the two layouts, a step's folder of a released one, or
            `owner/repository[/folder][@revision]` on the Hugging Face hub.
        device: "meta" checks the description and every name and shape without reading the weights.
        revision: commit, tag or branch, if the hub id has none.
        rope: "length_exact", or "clip_relative" as in the release (rope.py). None uses the description, and
            length_exact if, as in the released files, the description has none.

    Raises:
        WeightsError: missing or unreadable files, an architecture that is not PupuJEPA's, or tensors that differ from
            args.json; the message lists the first differences.
        UserError: a device that cannot be used here.
    """
    directory, weights_path = locate_weights(path_or_hub_id, revision)
    args_path = directory / ARGS_NAME
    args = read_args(args_path)
    tensors = _read_tensors(weights_path, usable_device(device))
    config, frontend = described_model(args, tensors, origin=str(args_path))
    if rope is not None:
        config = replace(config, rope=rope)
    with torch.device("meta"):
        model = PupuJEPA(config, frontend=frontend)
    _check_tensors(model.state_dict(), tensors, origin=str(weights_path))  # before loading, to name all differences
    # assign, because a meta model has no memory to copy into
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return model.eval()


def save_release(
    model: PupuJEPA, config: ModelConfig, directory: str | Path, *, train: Mapping[str, Any] | None = None
) -> Path:
    """Writes `args.json` and the weights, each file atomically; the inverse of `load`, bit for bit.

    Args:
        config: of the model, as a check against a wrong description.
        train: the run's own record, stored under "train".

    Returns:
        The path of the safetensors file, in the flat layout.

    Raises:
        WeightsError: `config` is not the model's.
    """
    if config != model.config:
        raise WeightsError(f"the model was built with {model.config}, not with {config}; pass the model's own config")
    directory = Path(directory)
    # safetensors refuses tensors that share memory or are not contiguous
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_file(directory / WEIGHTS_NAME) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
    with atomic_file(directory / ARGS_NAME) as partial:
        partial.write_text(json.dumps(args_of(model, train or {}), indent=2) + "\n")
    return directory / WEIGHTS_NAME


def find_weights(directory: Path) -> Path:
    """Returns the safetensors file of a weights folder: the flat one, or that of the newest step.

    Raises:
        WeightsError: it has none; the message lists its folders that hold a model.
    """
    if (directory / WEIGHTS_NAME).is_file():
        return directory / WEIGHTS_NAME
    steps = {
        int(match[1]): path
        for path in (directory / _CHECKPOINT).glob(f"step-*/{WEIGHTS_NAME}")
        if (match := _STEP_FOLDER.match(path.parent.name))
    }
    if not steps:
        inside = sorted(path.parent.name for path in directory.glob(f"*/{ARGS_NAME}"))
        remedy = (
            f"give one of its folders {', '.join(inside)}" if inside else "give a released folder or a run's export"
        )
        raise WeightsError(
            f"{directory} holds neither {WEIGHTS_NAME} nor {_CHECKPOINT}/step-*/{WEIGHTS_NAME}; {remedy}"
        )
    return steps[max(steps)]  # by number: as text, step-900 would be newer than step-1000


def locate_weights(path_or_hub_id: str | Path, revision: str | None = None) -> tuple[Path, Path]:
    """Returns the folder of args.json and the path of the weights; downloads those of a hub id.

    Raises:
        WeightsError: neither a folder of weights nor a hub id.
    """
    path, text = Path(path_or_hub_id).expanduser(), str(path_or_hub_id)
    if not path.is_dir():
        hub_id = None if isinstance(path_or_hub_id, Path) else parse_hub_id(text, revision=revision)
        # `runs/demo` beside an existing `runs` is a misspelt folder, not a repository to ask the network for
        if hub_id is None or Path(text.split("/")[0]).exists():
            raise WeightsError(
                f"{text} is not a folder; give a folder with {ARGS_NAME}, or owner/repository[/folder][@revision] of "
                f"the hub"
            )
        directory = download(hub_id)
    elif revision is not None:
        raise WeightsError(f"{path} is a folder, which has no revision={revision!r}; omit the revision")
    elif _STEP_FOLDER.match(path.name) and path.resolve().parent.name == _CHECKPOINT:
        return path.resolve().parents[1], find_weights(path)  # a step's args.json is two levels above
    else:
        directory = path
    return directory, find_weights(directory)


def _read_tensors(path: Path, device: torch.device) -> dict[str, Tensor]:
    """Returns the tensors of a file; on the meta device from its header alone."""
    require_readable(path)
    try:
        if device.type != "meta":
            return load_file(path, device=str(device))
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
            shapes = {
                name: (it.get_shape(), _HEADER_DTYPES.get(it.get_dtype(), torch.uint8)) for name, it in slices.items()
            }
    except SafetensorError as error:
        raise WeightsError(f"{path} cannot be read ({error}); it is probably truncated, so copy it again") from error
    return {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in shapes.items()}


def _check_tensors(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], *, origin: str) -> None:
    differences = [f"{name} is missing" for name in wanted if name not in found]
    differences += [f"{name} is not part of the model" for name in found if name not in wanted]
    both = [(name, tensor, found[name]) for name, tensor in wanted.items() if name in found]
    differences += [
        f"{name} has shape {tuple(read.shape)} instead of {tuple(tensor.shape)}"
        for name, tensor, read in both
        if read.shape != tensor.shape
    ]
    differences += [f"{name} is of type {read.dtype}" for name, _, read in both if not read.is_floating_point()]
    if differences:
        rest = len(differences) - _SHOWN_DIFFERENCES
        more = f"; and {rest} more" if rest > 0 else ""
        raise WeightsError(
            f"{origin} does not hold the model that its {ARGS_NAME} describes: "
            f"{'; '.join(differences[:_SHOWN_DIFFERENCES])}{more}"
        )

"""Weights on disk, in the layout of the released models or flat.

    <dir>/args.json                                          sections preprocess, model, train
    <dir>/checkpoint/step-0500000_loss-0.177000/model.safetensors     released layout; the newest step is read
    <dir>/model.safetensors                                  flat layout

The tensors decide, args.json describes: the released files say qk_norm true although no such weights exist. Fields of
ours that the released files lack (mel_mean, mel_std, magnitude_epsilon, floor, rope) are optional when reading.
"""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pupujepa.errors import UserError
from pupujepa.frontend import RELEASED_MEAN, RELEASED_STD, FrontendConfig
from pupujepa.model import ModelConfig, PupuJEPA
from pupujepa.rope import LENGTH_EXACT

logger = logging.getLogger(__name__)

ARGS_NAME = "args.json"
WEIGHTS_NAME = "model.safetensors"
_SHOWN_DIFFERENCES = 6
_DEFAULT_PREDICTOR_HEADS = 16
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)*")
_STEP_FOLDER = re.compile(r"step-(\d+)")
# string literals are matched first, so that a comma inside one is never taken for a trailing one
_TRAILING_COMMA = re.compile(r'("(?:\\.|[^"\\])*")|,(?=\s*[}\]])')


class WeightsError(UserError):
    """A weights folder that cannot be read, or does not hold this model."""


def load(path_or_hub_id: str | Path, *, device: str | torch.device = "cpu") -> PupuJEPA:
    """Loads a model, in evaluation mode.

    Args:
        path_or_hub_id: a folder in one of the two layouts, or `owner/repository[/folder]` on the Hugging Face hub.

    Raises:
        WeightsError: missing or unreadable files, an architecture that is not PupuJEPA's, or tensors that differ from
            what args.json describes; the first differences are listed.
    """
    directory = _local_folder(path_or_hub_id)
    args_path = directory / ARGS_NAME
    weights_path = find_weights(directory)
    args = read_args(args_path)
    tensors = _read_tensors(weights_path, device)
    config, frontend = _described_model(args, tensors, origin=str(args_path))
    with torch.device("meta"):
        model = PupuJEPA(config, frontend=frontend)
    _check_tensors(model.state_dict(), tensors, origin=str(weights_path))
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return model.eval()


def save_release(
    model: PupuJEPA,
    config: ModelConfig,
    directory: str | Path,
    *,
    step: int | None = None,
    loss: float | None = None,
    train: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `args.json` and the weights, each file complete or absent; `load` is the exact opposite, bit for bit.

    Args:
        config: of the model, as a check against writing the description of another one.
        step: None writes the flat layout; a number writes the released one, `checkpoint/step-<step>[_loss-<loss>]/`.
        loss: shown in the folder name of the released layout.
        train: what the run wants to record about itself under "train".

    Returns:
        The path of the safetensors file.
    """
    if config != model.config:
        raise WeightsError(f"the model was built with {model.config}, not with {config}; pass the model's own config")
    directory = Path(directory)
    folder = directory
    if step is not None:
        folder = directory / "checkpoint" / (f"step-{step:07d}" + ("" if loss is None else f"_loss-{loss:.6f}"))
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in model.state_dict().items()}
    weights_path = folder / WEIGHTS_NAME
    partial = weights_path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(weights_path)
    args_path = directory / ARGS_NAME
    partial = args_path.with_suffix(".partial")
    partial.write_text(json.dumps(_args_of(model, dict(train or {})), indent=2) + "\n")
    partial.replace(args_path)
    return weights_path


def find_weights(directory: Path) -> Path:
    """Returns the safetensors file of a weights folder: the flat one, or that of the newest step."""
    if (directory / WEIGHTS_NAME).is_file():
        return directory / WEIGHTS_NAME
    steps = {
        int(match[1]): path
        for path in (directory / "checkpoint").glob(f"step-*/{WEIGHTS_NAME}")
        if (match := _STEP_FOLDER.match(path.parent.name))
    }
    if not steps:
        raise WeightsError(
            f"{directory} holds neither {WEIGHTS_NAME} nor checkpoint/step-*/{WEIGHTS_NAME}; point to a folder of "
            "released weights or to the export of a run"
        )
    return steps[max(steps)]


def read_args(path: Path) -> dict[str, Any]:
    """Reads args.json, whose released form has trailing commas."""
    if not path.is_file():
        raise WeightsError(f"{path} is missing; it says how the weights beside it are wired, so keep the two together")
    try:
        args = json.loads(_TRAILING_COMMA.sub(lambda match: match[1] or "", path.read_text()))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is not JSON ({error}); download it again") from error
    for section in ("preprocess", "model"):
        if not isinstance(args, dict) or not isinstance(args.get(section), dict):
            raise WeightsError(f"{path} has no section {section!r}; is it the args.json of a PupuJEPA release?")
    return args


def _local_folder(path_or_hub_id: str | Path) -> Path:
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        return path
    text = str(path_or_hub_id)
    # `runs/demo` beside an existing `runs` is a misspelt folder, not a repository to ask the network for
    if isinstance(path_or_hub_id, Path) or not _HUB_ID.fullmatch(text) or Path(text.split("/")[0]).exists():
        raise WeightsError(
            f"{path} is no folder; give a folder with {ARGS_NAME}, or owner/repository[/folder] of the hub"
        )
    return _download(text)


def _download(hub_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise WeightsError(
            f"there is no folder {hub_id}, and reading it from the hub needs huggingface_hub: "
            "pip install 'pupujepa[hub]'"
        ) from error
    owner, repository, *folder = hub_id.split("/")
    inside = "/".join(folder)
    prefix = f"{inside}/" if inside else ""
    try:
        root = snapshot_download(
            f"{owner}/{repository}",
            allow_patterns=[f"{prefix}{ARGS_NAME}", f"{prefix}{WEIGHTS_NAME}", f"{prefix}checkpoint/*/{WEIGHTS_NAME}"],
        )
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise WeightsError(f"there is no folder {hub_id}, and the hub does not give it either: {error}") from error
    return Path(root) / inside


def _read_tensors(path: Path, device: str | torch.device) -> dict[str, Tensor]:
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); it is probably cut short, so copy it again") from error


def _described_model(
    args: Mapping[str, Any], tensors: Mapping[str, Tensor], *, origin: str
) -> tuple[ModelConfig, FrontendConfig]:
    model, preprocess = args["model"], args["preprocess"]
    for key, wanted in (("use_swiglu", True), ("norm_layer", "layer"), ("frequency_first", False), ("in_chans", 1)):
        if model.get(key, wanted) != wanted:
            raise WeightsError(f"{origin}: model.{key} is {model[key]!r}, but only {wanted!r} is implemented")
    if model.get("qk_norm") and not any(".q_norm." in name for name in tensors):
        logger.info("%s says qk_norm true, but the file has no such weights: the weights are believed", origin)
    try:
        (crop_frames, mel_bands), (patch_frames, patch_bands) = model["image_size"], model["patch_size"]
        config = ModelConfig(
            crop_frames=crop_frames,
            mel_bands=mel_bands,
            patch_frames=patch_frames,
            patch_bands=patch_bands,
            width=model["embed_dim"],
            depth=model["depth"],
            heads=model["num_heads"],
            mlp_ratio=float(model.get("mlp_ratio", 4.0)),
            rope=model.get("rope", LENGTH_EXACT),
            mel_mean=float(preprocess.get("mel_mean", RELEASED_MEAN)),
            mel_std=float(preprocess.get("mel_std", RELEASED_STD)),
            **_described_predictor(model, tensors, origin=origin),
        )
        return config, _described_frontend(preprocess)
    except (KeyError, TypeError) as error:
        raise WeightsError(
            f"{origin}: a field is missing or malformed ({error!r}); is it a PupuJEPA release?"
        ) from error


def _described_predictor(model: Mapping[str, Any], tensors: Mapping[str, Tensor], *, origin: str) -> dict[str, int]:
    """Returns the predictor's shape: width and depth as the tensors have them, heads as args.json says."""
    if "predictor.proj_in.weight" not in tensors:
        raise WeightsError(
            f"{origin}: the weights beside it hold no predictor; this is not a complete PupuJEPA release"
        )
    numbers = [int(m[1]) for name in tensors if (m := re.match(r"predictor\.blocks\.(\d+)\.", name))]
    heads = model.get("decoder_num_heads")
    if heads is None:
        logger.info("%s does not give decoder_num_heads: taking %d, our choice", origin, _DEFAULT_PREDICTOR_HEADS)
    return {
        "predictor_width": len(tensors["predictor.proj_in.weight"]),
        "predictor_depth": max(numbers, default=0) + 1,
        "predictor_heads": heads or _DEFAULT_PREDICTOR_HEADS,
    }


def _described_frontend(preprocess: Mapping[str, Any]) -> FrontendConfig:
    default = FrontendConfig()
    return FrontendConfig(
        sample_rate_hz=preprocess["sample_rate"],
        n_fft=preprocess["n_fft"],
        hop_samples=preprocess["hop_size"],
        window_samples=preprocess["win_size"],
        mel_bands=preprocess["n_mels"],
        fmin_hz=float(preprocess["fmin"]),
        fmax_hz=float(preprocess["fmax"]),
        floor=float(preprocess.get("floor", default.floor)),
        magnitude_epsilon=float(preprocess.get("magnitude_epsilon", default.magnitude_epsilon)),
    )


def _args_of(model: PupuJEPA, train: dict[str, Any]) -> dict[str, Any]:
    config, frontend = model.config, model.frontend
    return {
        "preprocess": {
            "sample_rate": frontend.sample_rate_hz,
            "cut_mel_frame": config.crop_frames,
            "hop_size": frontend.hop_samples,
            "n_fft": frontend.n_fft,
            "win_size": frontend.window_samples,
            "fmin": frontend.fmin_hz,
            "fmax": frontend.fmax_hz,
            "n_mels": frontend.mel_bands,
            "normalize": True,
            "flip_ft": True,
            "mel_mean": config.mel_mean,
            "mel_std": config.mel_std,
            "floor": frontend.floor,
            "magnitude_epsilon": frontend.magnitude_epsilon,
        },
        "model": {
            "image_size": [config.crop_frames, config.mel_bands],
            "patch_size": [config.patch_frames, config.patch_bands],
            "embed_dim": config.width,
            "depth": config.depth,
            "num_heads": config.heads,
            "mlp_ratio": config.mlp_ratio,
            "use_swiglu": True,
            "qk_norm": False,
            "norm_layer": "layer",
            "frequency_first": False,
            "in_chans": 1,
            "drop_path_rate": 0.0,
            "drop_path_uniform": False,
            "layer_scale_init_value": None,
            "decoder_embed_dim": config.predictor_width,
            "decoder_depth": config.predictor_depth,
            "decoder_num_heads": config.predictor_heads,
            "rope": config.rope,
        },
        "train": train,
    }


def _check_tensors(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], *, origin: str) -> None:
    differences = [f"{name} is missing" for name in wanted if name not in found]
    differences += [f"{name} is not part of the model" for name in found if name not in wanted]
    differences += [
        f"{name} has shape {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if differences:
        rest = len(differences) - _SHOWN_DIFFERENCES
        more = f"; and {rest} more" if rest > 0 else ""
        raise WeightsError(
            f"{origin} does not hold the model that its {ARGS_NAME} describes: "
            f"{'; '.join(differences[:_SHOWN_DIFFERENCES])}{more}"
        )

"""args.json of a release: the description of a model beside its weights, read and written.

The released files have trailing commas, which is not JSON, and claim a qk_norm that has no weights. If description and
tensors disagree about the architecture, the tensors win, with a warning. Our additional fields (mel_mean, mel_std,
magnitude_epsilon, floor, rope, ...) are optional when reading.
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from pupujepa.audio.log_mel import FrontendConfig
from pupujepa.errors import UserError, require_readable
from pupujepa.model.architecture import SWIGLU, ModelConfig
from pupujepa.model.model import PupuJEPA

logger = logging.getLogger(__name__)

ARGS_NAME = "args.json"
WEIGHTS_NAME = "model.safetensors"
_DEFAULT_PREDICTOR_HEADS = 16
# matches string literals first, so that a comma inside one never counts as trailing
_TRAILING_COMMA = re.compile(r'("(?:\\.|[^"\\])*")|,(?=\s*[}\]])')
_ONLY_IMPLEMENTED = (
    ("model", "norm_layer", "layer"),
    ("model", "frequency_first", False),
    ("model", "in_chans", 1),
    ("model", "layer_scale_init_value", None),
    ("preprocess", "normalize", True),
    ("preprocess", "flip_ft", True),
)
# fields of ModelConfig with other names in the release, or in another section
_RENAMED = frozenset(
    {
        "crop_frames",
        "mel_bands",
        "patch_frames",
        "patch_bands",
        "width",
        "depth",
        "heads",
        "predictor_width",
        "predictor_depth",
        "predictor_heads",
        "mel_mean",
        "mel_std",
    }
)


class WeightsError(UserError):
    """A weights folder that cannot be read, or does not hold this model."""


def read_args(path: Path) -> dict[str, Any]:
    """Reads args.json, whose released form has trailing commas.

    Raises:
        WeightsError: a missing file, invalid JSON, or a missing section.
    """
    if not path.is_file():
        raise WeightsError(f"{path} is missing; it describes the weights beside it, so keep the two together")
    require_readable(path)
    try:
        args = json.loads(_TRAILING_COMMA.sub(lambda match: match[1] or "", path.read_text()))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is not JSON ({error}); download it again") from error
    for section in ("preprocess", "model"):
        if not isinstance(args, dict) or not isinstance(args.get(section), dict):
            raise WeightsError(f"{path} has no section {section!r}; is it the args.json of a PupuJEPA release?")
    return args


def described_model(
    args: Mapping[str, Any], tensors: Mapping[str, Tensor], *, origin: str
) -> tuple[ModelConfig, FrontendConfig]:
    """Returns the architecture and the front end of a release.

    Args:
        args: from `read_args`.
        tensors: the weights, shape [...] by name; they override the description.
        origin: name of the description in messages.

    Raises:
        WeightsError: a missing or malformed field, or an architecture that is not implemented.
    """
    # our own descriptions name their MLP; any other must have the released one
    known_mlp = () if "mlp" in args["model"] else (("model", "use_swiglu", True),)
    for section, key, wanted in (*known_mlp, *_ONLY_IMPLEMENTED):
        if args[section].get(key, wanted) != wanted:
            raise WeightsError(
                f"{origin}: {section}.{key} is {args[section][key]!r}, but only {wanted!r} is implemented"
            )
    _tell_disagreements(args["model"], tensors, origin=origin)
    try:
        config = ModelConfig(**_architecture(args["model"], tensors, origin=origin), **_statistics(args["preprocess"]))
        return config, _described_frontend(args["preprocess"])
    except UserError as error:
        raise WeightsError(f"{origin}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{origin}: a field is missing or malformed ({error!r}); is it a PupuJEPA release?"
        ) from error


def args_of(model: PupuJEPA, train: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the description of a model, ours and the released fields; inverts `described_model`."""
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
            "use_swiglu": config.mlp == SWIGLU,
            "norm_layer": "layer",
            "frequency_first": False,
            "in_chans": 1,
            "drop_path_rate": 0.0,
            "drop_path_uniform": False,
            "layer_scale_init_value": None,
            "decoder_embed_dim": config.predictor_width,
            "decoder_depth": config.predictor_depth,
            "decoder_num_heads": config.predictor_heads,
            **{name: getattr(config, name) for name in _same_names()},
        },
        "train": dict(train),
    }


def _same_names() -> list[str]:
    """Returns the fields of ModelConfig with the same name in the description; new fields are included."""
    return [field.name for field in fields(ModelConfig) if field.name not in _RENAMED]


def _tell_disagreements(model: Mapping[str, Any], tensors: Mapping[str, Tensor], *, origin: str) -> None:
    """Logs, in one line, every field that the tensors override."""
    found = {"qk_norm": _has_qk_norm(tensors), **_predictor_shape(tensors, origin=origin)}
    wrong = [
        f"{key} {model[key]!r} (they have {value!r})" for key, value in found.items() if model.get(key, value) != value
    ]
    if wrong:
        logger.warning("%s: the weights override the description: %s", origin, ", ".join(wrong))


def _architecture(model: Mapping[str, Any], tensors: Mapping[str, Tensor], *, origin: str) -> dict[str, Any]:
    (crop_frames, mel_bands), (patch_frames, patch_bands) = model["image_size"], model["patch_size"]
    predictor = _predictor_shape(tensors, origin=origin)
    predictor_heads = model.get("decoder_num_heads")
    if predictor_heads is None:
        logger.info("%s does not give decoder_num_heads: taking %d, our choice", origin, _DEFAULT_PREDICTOR_HEADS)
        predictor_heads = _DEFAULT_PREDICTOR_HEADS
    return {
        "crop_frames": crop_frames,
        "mel_bands": mel_bands,
        "patch_frames": patch_frames,
        "patch_bands": patch_bands,
        "width": _whole(model, "embed_dim"),
        "depth": _whole(model, "depth"),
        "heads": _whole(model, "num_heads"),
        "predictor_width": predictor["decoder_embed_dim"],
        "predictor_depth": predictor["decoder_depth"],
        "predictor_heads": predictor_heads,
        **{name: model[name] for name in _same_names() if name in model},
        "qk_norm": _has_qk_norm(tensors),
    }


def _has_qk_norm(tensors: Mapping[str, Tensor]) -> bool:
    return any(".q_norm." in name for name in tensors)


def _predictor_shape(tensors: Mapping[str, Tensor], *, origin: str) -> dict[str, int]:
    if "predictor.proj_in.weight" not in tensors:
        raise WeightsError(f"{origin}: the weights have no predictor, so the release is incomplete; download it again")
    numbers = [int(m[1]) for name in tensors if (m := re.match(r"predictor\.blocks\.(\d+)\.", name))]
    return {
        "decoder_embed_dim": tensors["predictor.proj_in.weight"].shape[0],
        "decoder_depth": max(numbers, default=0) + 1,
    }


def _statistics(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    return {name: float(preprocess[name]) for name in ("mel_mean", "mel_std") if name in preprocess}


def _described_frontend(preprocess: Mapping[str, Any]) -> FrontendConfig:
    return FrontendConfig(
        sample_rate_hz=_whole(preprocess, "sample_rate"),
        n_fft=_whole(preprocess, "n_fft"),
        hop_samples=_whole(preprocess, "hop_size"),
        window_samples=_whole(preprocess, "win_size"),
        mel_bands=_whole(preprocess, "n_mels"),
        fmin_hz=float(preprocess["fmin"]),
        fmax_hz=float(preprocess["fmax"]),
        **{name: float(preprocess[name]) for name in ("floor", "magnitude_epsilon") if name in preprocess},
    )


def _whole(section: Mapping[str, Any], key: str) -> int:
    value = section[key]
    if isinstance(value, bool) or not isinstance(value, int):  # bool is a subclass of int
        raise TypeError(f"{key} is {value!r}, not a whole number")
    return value

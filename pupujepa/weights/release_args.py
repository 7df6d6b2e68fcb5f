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
_DEFAULT_PREDICTOR_HEADS = 16  # the release has no such field, and no tensor shows it
# matches string literals first, so that a comma inside one never counts as trailing
_TRAILING_COMMA = re.compile(r'("(?:\\.|[^"\\])*")|,(?=\s*[}\]])')
_ONLY_IMPLEMENTED = (
    ("model", "norm_layer", "layer"),
    ("model", "frequency_first", False),
    ("model", "in_chans", 1),
    ("model", "layer_scale_init_value", None),
    ("preprocess", "normalize", True),
    ("preprocess", "flip_ft", True),  # time is the first axis of a spectrogram
)
# our names of fields, and those of the release, with the type of the value
_FRONTEND = (
    ("sample_rate_hz", "sample_rate", int),
    ("n_fft", "n_fft", int),
    ("hop_samples", "hop_size", int),
    ("window_samples", "win_size", int),
    ("mel_bands", "n_mels", int),
    ("fmin_hz", "fmin", float),
    ("fmax_hz", "fmax", float),
)
_ARCHITECTURE = {
    "width": "embed_dim",
    "depth": "depth",
    "heads": "num_heads",
    "predictor_width": "decoder_embed_dim",
    "predictor_depth": "decoder_depth",
    "predictor_heads": "decoder_num_heads",
}
# our own fields, optional when reading; those of ModelConfig have the same name in the description
_OWN_FRONTEND = ("floor", "magnitude_epsilon")
_STATISTICS = ("mel_mean", "mel_std")
_SIZES = ("crop_frames", "mel_bands", "patch_frames", "patch_bands")
_OWN_MODEL = [field.name for field in fields(ModelConfig) if field.name not in {*_ARCHITECTURE, *_STATISTICS, *_SIZES}]


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
    preprocess, model = args["preprocess"], args["model"]
    found = _found(model, tensors, origin=origin)
    try:
        ours: dict[str, Any] = dict(zip(_SIZES, (*model["image_size"], *model["patch_size"]), strict=True))
        ours |= {name: _whole(found, key) for name, key in _ARCHITECTURE.items()}
        ours |= {name: found[name] for name in _OWN_MODEL if name in found}
        ours |= {name: float(preprocess[name]) for name in _STATISTICS if name in preprocess}
        heard: dict[str, Any] = {
            name: _whole(preprocess, key) if kind is int else kind(preprocess[key]) for name, key, kind in _FRONTEND
        }
        heard |= {name: float(preprocess[name]) for name in _OWN_FRONTEND if name in preprocess}
        return ModelConfig(**ours), FrontendConfig(**heard)
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
            "cut_mel_frame": config.crop_frames,
            **{key: getattr(frontend, name) for name, key, _ in _FRONTEND},
            "normalize": True,
            "flip_ft": True,
            **{name: getattr(config, name) for name in _STATISTICS},
            **{name: getattr(frontend, name) for name in _OWN_FRONTEND},
        },
        "model": {
            "image_size": [config.crop_frames, config.mel_bands],
            "patch_size": [config.patch_frames, config.patch_bands],
            "use_swiglu": config.mlp == SWIGLU,
            "norm_layer": "layer",
            "frequency_first": False,
            "in_chans": 1,
            "drop_path_rate": 0.0,
            "drop_path_uniform": False,
            "layer_scale_init_value": None,
            **{key: getattr(config, name) for name, key in _ARCHITECTURE.items()},
            **{name: getattr(config, name) for name in _OWN_MODEL},
        },
        "train": dict(train),
    }


def _found(model: Mapping[str, Any], tensors: Mapping[str, Tensor], *, origin: str) -> dict[str, Any]:
    """Returns the description with the fields that the weights show; logs those that they override."""
    if "predictor.proj_in.weight" not in tensors:
        raise WeightsError(f"{origin}: the weights have no predictor, so the release is incomplete; download it again")
    blocks = [int(m[1]) for name in tensors if (m := re.match(r"predictor\.blocks\.(\d+)\.", name))]
    shown = {
        "qk_norm": any(".q_norm." in name for name in tensors),
        "decoder_embed_dim": tensors["predictor.proj_in.weight"].shape[0],
        "decoder_depth": max(blocks, default=0) + 1,
    }
    wrong = [f"{key} {model[key]!r} (they have {it!r})" for key, it in shown.items() if model.get(key, it) != it]
    if wrong:
        logger.warning("%s: the weights override the description: %s", origin, ", ".join(wrong))
    heads = model.get("decoder_num_heads")
    if heads is None:
        logger.info("%s does not give decoder_num_heads: taking %d, our choice", origin, _DEFAULT_PREDICTOR_HEADS)
        heads = _DEFAULT_PREDICTOR_HEADS
    return {**model, **shown, "decoder_num_heads": heads}


def _whole(section: Mapping[str, Any], key: str) -> int:
    value = section[key]
    if isinstance(value, bool) or not isinstance(value, int):  # bool is a subclass of int
        raise TypeError(f"{key} is {value!r}, not a whole number")
    return value

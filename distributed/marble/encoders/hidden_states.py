"""Output of an encoder, how to run one, and encoders made of a function from waveforms to states.

Legend: B slices, S samples, L layers, M layers kept as frames, T frames, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from distributed.run.installed import torchaudio_functional
from pupujepa.errors import UserError

FRAME_DTYPE = torch.float16


@dataclass(frozen=True)
class SliceFeatures:
    """Features of a batch of slices."""

    pooled_BLD: Tensor  # clip-level features, float32
    frames_BMTD: Tensor | None = None  # frames of some layers, or None


@dataclass(frozen=True)
class HowToEncode:
    """Settings for running an encoder."""

    which: str = "teacher"  # teacher or student
    # "bf16" runs the blocks under autocast, as MARBLE does, with weights and features in float32
    precision: str = "fp32"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    # readout of a PupuJEPA: "frames", "mean" or "region:FxT". A region with several blocks in time is one vector per
    # slice, without frames.
    readout: str = "frames"
    rope: str = ""  # layout of a PupuJEPA's rotary positions; "" for that of training
    window_frames: int = 0  # frames that a PupuJEPA sees at once; 0 for a training crop

    @property
    def positions(self) -> list[str]:
        """Options that differ from the positions of training, as parts of an encoder's name."""
        rope = [f"rope={self.rope}"] if self.rope else []
        return [*rope, f"window={self.window_frames}"] if self.window_frames else rope


@dataclass(frozen=True)
class Description:
    """Facts about an encoder; see FrozenEncoder in distributed/marble/encoders/resolve.py."""

    name: str
    # function that returns a digest of the weights and of everything else that changes the features, except front end
    # and precision, which are added
    digest: Callable[[], str]
    front_end: str
    sample_rate_hz: int
    frame_rate_hz: float | None  # rate of the states; None for an encoder with one vector per slice
    layer_names: tuple[str, ...]


class HiddenStates:
    """A frozen encoder of another project.

    Args:
        states_of: takes waveforms [B, S] on the device, returns a state [B, T, D] for every layer name.
    """

    only_tasks: frozenset[str] | None = None

    def __init__(self, states_of: Callable[[Tensor], Sequence[Tensor]], description: Description, how: HowToEncode):
        self._states_of, self._how = states_of, how
        self.name = description.name
        self._digest_of_weights = description.digest
        self.front_end = description.front_end
        self.sample_rate_hz = description.sample_rate_hz
        self.frame_rate_hz = description.frame_rate_hz
        self.layer_names = description.layer_names

    @cached_property
    def digest(self) -> str:
        """Digest of everything that could change the features."""
        words = (self._digest_of_weights(), self.front_end, self._how.precision)  # bf16 changes features
        return sha256("/".join(words).encode()).hexdigest()

    @torch.no_grad()
    def embed(self, audio_BS: Tensor, *, frame_layers: Sequence[int]) -> SliceFeatures:
        """Returns [B, L, D] and the frames [B, M, T, D] of `frame_layers`."""
        device = self._how.device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self._how.precision == "bf16"):
            states_LBTD = self._states_of(audio_BS.to(device))
        if len(states_LBTD) != len(self.layer_names):
            raise UserError(
                f"encoder {self.name!r} names {len(self.layer_names)} layers but gives the states of "
                f"{len(states_LBTD)}, so scores would have wrong layer names; correct its layer_names"
            )
        return pool_states([state.float().cpu() for state in states_LBTD], frame_layers)


def transformer_layers(count: int) -> tuple[str, ...]:
    """Returns the names of a transformer's states: its input and the outputs of `count` layers."""
    return ("before the transformer", *(f"layer {i}" for i in range(1, count + 1)))


def weights_digest(module: nn.Module) -> str:
    """Returns a digest of all parameters and buffers, their names and types."""
    digest = sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}".encode())
        # as bytes: numpy has no bfloat16
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def need_package(name: str, *, encoder: str) -> Any:
    """Imports a package that an encoder needs.

    Raises:
        UserError: the package or one of its dependencies is not installed, or its torchaudio cannot be loaded.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or name).split(".")[0]
        if missing == "torchaudio":  # the newest release may not fit this torch, so say which does
            torchaudio_functional(without=f"encoder {encoder!r} cannot be measured")
        raise UserError(
            f"encoder {encoder!r} needs the package {missing}, which is not installed, so it cannot be measured; "
            f"install it with `pip install {missing}`, or those of all adapters with `pip install -e '.[peers]'`"
        ) from error
    except (ImportError, OSError, RuntimeError):
        torchaudio_functional(without=f"encoder {encoder!r} cannot be measured")  # raises if torchaudio was the reason
        raise


def need_transformers_4(*, encoder: str) -> Any:
    """Imports transformers 4, whose conformer returns the hidden states that MuQ and MusicFM read.

    Raises:
        UserError: transformers is not installed, or is newer.
    """
    transformers = need_package("transformers", encoder=encoder)
    found = version("transformers")
    if int(found.split(".")[0]) >= 5:
        raise UserError(
            f"encoder {encoder!r} reads hidden states in a way that transformers {found} no longer supports; "
            "in a separate environment, run `pip install 'transformers>=4.48,<5'`"
        )
    return transformers


def pool_states(states_LBTD: Sequence[Tensor], frame_layers: Sequence[int]) -> SliceFeatures:
    """Returns the time mean of every layer and the frames of some."""
    pooled_BLD = torch.stack([s.float().mean(dim=1) for s in states_LBTD], dim=1)
    frames = torch.stack([states_LBTD[i] for i in frame_layers], dim=1) if frame_layers else None
    return SliceFeatures(pooled_BLD, frames)


def spread_layers(num_layers: int, most: int | None) -> tuple[int, ...]:
    """Returns at most `most` layers (None: all), evenly spread: the last and, from two on, the first."""
    if most is None or most >= num_layers:
        return tuple(range(num_layers))
    if most == 1:
        return (num_layers - 1,)
    return tuple(round(i * (num_layers - 1) / (most - 1)) for i in range(most))

"""Encoders built from a function from waveforms to the states of its layers, such as most adapters.

Legend: B slices, S samples, L layers, T frames, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from distributed.marble.encoders.pupujepa import HowToEncode
from distributed.marble.encoders.readout import SliceFeatures, pool_states
from distributed.run.installed import torchaudio_functional
from pupujepa.errors import UserError


@dataclass(frozen=True)
class Description:
    """Facts about an encoder; see FrozenEncoder in distributed/marble/encoders/resolve.py.

    Attributes:
        digest: function that returns a digest of the weights and of everything else that changes the features, except
            front end and precision, which are added.
        frame_rate_hz: rate of the states; None for an encoder with one vector per slice.
    """

    name: str
    digest: Callable[[], str]
    front_end: str
    sample_rate_hz: int
    frame_rate_hz: float | None
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

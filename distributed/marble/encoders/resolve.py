"""Interface of encoders, encoders from their names on the command line, and the baselines.

    runs/demo                      a PupuJEPA: run directory, export, release or step of one, model.safetensors, hub id
    runs/demo:student:region:4x2   its student, with another readout than frames; both are optional
    random_init, log_mel, chroma   baselines; random_init:mean has a readout too
    mert:m-a-p/MERT-v1-95M         an adapter for another project's encoder: adapters.py
    my_encoder.py:ARGUMENT         your file with the same function, open_encoder

docs/encoders.md lists them and explains how to add one.

Legend: B slices, S samples, L layers, T frames, D width, F bands, C pitch classes.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Protocol

import librosa
import torch
from torch import Tensor

from distributed.marble.encoders.adapters import ADAPTERS
from distributed.marble.encoders.hidden_states import HowToEncode, SliceFeatures
from distributed.marble.encoders.pupujepa import FrozenPupuJEPA, load_frozen, random_twin
from distributed.marble.tasks.tasks import Task
from pupujepa.audio.log_mel import FrontendConfig, frontend_digest, log_mel
from pupujepa.errors import UserError

STACKED_FRAMES = 4
CHROMA_FFT = 8192
CHROMA_HOP = 2048


class FrozenEncoder(Protocol):
    """A frozen encoder: audio slices in, features of all its layers out."""

    @property
    def name(self) -> str: ...  # noqa: D102 - name in results
    @property
    def digest(self) -> str: ...  # noqa: D102 - of everything that could change its features
    @property
    def front_end(self) -> str: ...  # noqa: D102 - description or digest of the processing from audio to its input
    @property
    def sample_rate_hz(self) -> int: ...  # noqa: D102 - of the audio that it takes
    @property
    def layer_names(self) -> tuple[str, ...]: ...  # noqa: D102 - one for each of its states
    @property
    def frame_rate_hz(self) -> float | None: ...  # noqa: D102 - None for clip-level features only
    @property
    def only_tasks(self) -> frozenset[str] | None: ...  # noqa: D102 - tasks that it supports; None for all

    def embed(self, audio_BS: Tensor, *, frame_layers: Sequence[int]) -> SliceFeatures:
        """Returns the time mean of every layer, and the frames of `frame_layers`."""


def supports(encoder: FrozenEncoder, task: Task) -> bool:
    """Returns True if an encoder can be measured on a task."""
    if encoder.only_tasks is not None and task.name not in encoder.only_tasks:
        return False
    return task.frames is None or encoder.frame_rate_hz is not None


def resolve_encoders(specs: Sequence[str], how: HowToEncode) -> tuple[FrozenEncoder, ...]:
    """Loads the encoders named on the command line, in that order.

    Args:
        specs: as above. `random_init` copies the shape and the input normalisation of the first PupuJEPA in the list.
        how: which blocks and which readout of a PupuJEPA that does not say.

    Raises:
        UserError: no weights, an option or a file that cannot be understood, a package that is missing, `random_init`
            without an encoder to copy, or two encoders of one name.
    """
    # random_init copies the first PupuJEPA, wherever both are in the list: open it last
    opened = {spec: _open(spec, how) for spec in specs if spec.split(":")[0] != "random_init"}
    trained = next((e for e in opened.values() if isinstance(e, FrozenPupuJEPA)), None)
    for spec in (s for s in specs if s not in opened):
        if trained is None:
            raise UserError(
                "random_init copies the shape of a trained network, but none is given; "
                "name a run directory too: --encoders runs/demo random_init"
            )
        opened[spec] = random_twin(trained, _options(spec, how)[1])
    names = [opened[spec].name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two encoders are called {name!r}, so their results would be mixed up; rename a folder")
    return tuple(opened[spec] for spec in specs)


def _open(spec: str, how: HowToEncode) -> FrozenEncoder:
    source, _, argument = spec.partition(":")
    if spec == "log_mel":
        return LogMel(FrontendConfig())
    if spec == "chroma":
        return Chroma()
    if source in ADAPTERS:
        return ADAPTERS[source](argument, how)
    if source.endswith(".py"):
        return _from_file(Path(source), argument, how)
    return load_frozen(*_options(spec, how))


def _options(spec: str, how: HowToEncode) -> tuple[str, HowToEncode]:
    """Splits SOURCE[:teacher|:student][:READOUT][:rope=MODE][:window=FRAMES]."""
    if Path(spec).exists():  # a path has no options, even if it holds a colon
        return spec, how
    source, *words = spec.split(":")
    if words and words[0] in ("teacher", "student"):
        how = replace(how, which=words.pop(0))
    while words and words[-1].startswith(("rope=", "window=")):
        option, _, value = words.pop().partition("=")
        if option == "window" and not value.isdigit():
            raise UserError(f"encoder {spec!r}: window={value} is not a number of frames; write e.g. window=1024")
        how = replace(how, rope=value) if option == "rope" else replace(how, window_frames=int(value))
    readout = ":".join(words)
    if readout and not readout.startswith("region:") and readout not in ("frames", "mean"):
        raise UserError(
            f"encoder {spec!r}: {readout!r} is not a readout (frames, mean, region:FxT) and {source!r} is not an "
            f"adapter ({', '.join(ADAPTERS)}); correct one of them"
        )
    return source, replace(how, readout=readout) if readout else how


def _from_file(path: Path, argument: str, how: HowToEncode) -> FrozenEncoder:
    """Returns the encoder of a user's file; raises UserError now, not after hours, if it lacks something."""
    description = spec_from_file_location(path.stem, path)
    if not path.is_file() or description is None or description.loader is None:
        raise UserError(f"there is no file {path}, so no encoder can be loaded; give the path of a Python file")
    module = module_from_spec(description)
    description.loader.exec_module(module)
    if not hasattr(module, "open_encoder"):
        raise UserError(
            f"{path} has no function open_encoder(argument, how), so no encoder can be loaded; "
            "docs/encoders.md shows one"
        )
    encoder: FrozenEncoder = module.open_encoder(argument, how)
    wanted = [name for name in vars(FrozenEncoder) if not name.startswith("_")]
    if missing := [name for name in wanted if not hasattr(encoder, name)]:
        raise UserError(
            f"the encoder of {path} has no {', '.join(missing)}, which the evaluator reads; "
            "add them, or build it on HiddenStates as docs/encoders.md shows"
        )
    return encoder


class LogMel:
    """Mean and standard deviation over time of each mel band; four spectrogram frames side by side."""

    name = "log_mel"
    layer_names = ("log_mel",)
    only_tasks: frozenset[str] | None = None

    def __init__(self, config: FrontendConfig):
        self._config = config
        self.front_end = frontend_digest(config)
        self.digest = f"log_mel/1/{self.front_end}"
        self.sample_rate_hz = config.sample_rate_hz
        self.frame_rate_hz = config.sample_rate_hz / config.hop_samples / STACKED_FRAMES

    @torch.no_grad()
    def embed(self, audio_BS: Tensor, *, frame_layers: Sequence[int]) -> SliceFeatures:
        """Returns [B, 1, 2F] and, with `frame_layers`, [B, 1, T // 4, 4F]."""
        mel_BTF = log_mel(audio_BS, self._config)
        pooled_BLD = torch.cat([mel_BTF.mean(dim=1), mel_BTF.std(dim=1)], dim=-1).unsqueeze(1)
        if not frame_layers:
            return SliceFeatures(pooled_BLD)
        steps = mel_BTF.shape[1] // STACKED_FRAMES  # frames after the last whole step are dropped
        stacked = mel_BTF[:, : steps * STACKED_FRAMES].reshape(len(mel_BTF), 1, steps, -1)
        return SliceFeatures(pooled_BLD, stacked)


class Chroma:
    """Mean and standard deviation over time of twelve pitch-class energies, for key.

    It is librosa's `chroma_stft` without the tuning estimate, with frames normalised to a maximum of 1, for a batch at
    once. A constant-Q transform would take longer than all probes together.
    """

    name = "chroma"
    layer_names = ("chroma",)
    only_tasks: frozenset[str] | None = frozenset({"key", "GS", "HookTheoryKey"})
    frame_rate_hz: float | None = None
    sample_rate_hz = 24_000
    front_end = f"stft {CHROMA_FFT}/{CHROMA_HOP} at {sample_rate_hz} Hz"
    digest = f"chroma/1/{CHROMA_FFT}/{CHROMA_HOP}/{sample_rate_hz}"

    @torch.no_grad()
    def embed(self, audio_BS: Tensor, *, frame_layers: Sequence[int]) -> SliceFeatures:
        """Returns [B, 1, 2C]."""
        if frame_layers:
            raise ValueError("chroma has clip-level features only")
        chroma_BCT = pitch_classes(audio_BS, self.sample_rate_hz)
        return SliceFeatures(torch.cat([chroma_BCT.mean(dim=-1), chroma_BCT.std(dim=-1)], dim=-1).unsqueeze(1))


def pitch_classes(audio_BS: Tensor, sample_rate_hz: int) -> Tensor:
    """Returns chroma energies [B, 12, T], with a maximum of 1 in each frame."""
    spectrum = torch.stft(
        audio_BS.float(),
        CHROMA_FFT,
        hop_length=CHROMA_HOP,
        window=torch.hann_window(CHROMA_FFT, device=audio_BS.device),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    energy_BCT = _filter_bank(sample_rate_hz).to(audio_BS.device) @ spectrum.abs().square()
    largest_B1T = energy_BCT.amax(dim=1, keepdim=True)
    # silent frames are divided by 1 and stay silent
    return energy_BCT / torch.where(largest_B1T > torch.finfo(torch.float32).tiny, largest_B1T, 1.0)


@lru_cache(maxsize=2)
def _filter_bank(sample_rate_hz: int) -> Tensor:
    return torch.from_numpy(librosa.filters.chroma(sr=sample_rate_hz, n_fft=CHROMA_FFT, tuning=0.0)).float()

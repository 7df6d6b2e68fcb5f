"""PupuJEPA as a frozen encoder: hidden states of its teacher or student, with a choice of readouts.

The default readout concatenates the bands, 25 frames per second; pupujepa/embedding/readout.py has the others.

A slice longer than the training crop is cut into crops without overlap: the network sees lengths that it was trained
on, and every patch is encoded once.

Legend: B slices, S samples, W windows of a slice, T frames, F mel bands.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from hashlib import file_digest, sha256
from json import dumps
from pathlib import Path

import torch
from torch import Tensor

from distributed.marble.encoders.hidden_states import HowToEncode, SliceFeatures, pool_states
from pupujepa.audio.log_mel import frontend_digest, log_mel, normalise
from pupujepa.embedding.encoder import Encoder
from pupujepa.embedding.readout import parse_readout, pool_region
from pupujepa.errors import UserError
from pupujepa.model.model import PupuJEPA
from pupujepa.weights.release_args import WEIGHTS_NAME
from pupujepa.weights.weights import load, locate_weights

CROPS_PER_PASS = 8
EXPORT = "export"


class FrozenPupuJEPA:
    """A trained or untrained PupuJEPA.

    Args:
        digest: digest of the weights, or a function that computes it (in seconds, so only one rank of a node calls
            it). Everything else that changes the features is added.

    Raises:
        UserError: readout or window does not fit the patches, or `rope` is set for positions that are not rotary.
    """

    only_tasks: frozenset[str] | None = None

    def __init__(self, model: PupuJEPA, how: HowToEncode, *, name: str, digest: str | Callable[[], str]):
        if how.rope:
            model.config = replace(model.config, rope=how.rope)
        self._window_frames = how.window_frames or model.config.crop_frames
        if self._window_frames % model.config.patch_frames:
            raise UserError(
                f"a window of {self._window_frames} frames cannot be cut into patches of {model.config.patch_frames} "
                "frames; use a multiple"
            )
        # the blocks only; the log-mel front end is always float32
        autocast_dtype = torch.bfloat16 if how.precision == "bf16" else None
        self._encoder = Encoder(model, device=how.device, autocast_dtype=autocast_dtype, batch_size=CROPS_PER_PASS)
        self._how = how
        self._readout = parse_readout(how.readout, bands=model.config.grid_bands)
        self.model = model
        self.name = name
        frontend = self._encoder.frontend
        self.front_end = frontend_digest(frontend)
        self._digest_of_weights = digest
        self._how_in_words = f"{how.which}/{how.precision}/{self.front_end}/{model.config}"
        # defaults add nothing, so that digests of older evaluations stay valid
        if how.readout != "frames":
            self._how_in_words += f"/{self._readout}"
        self._how_in_words += "".join(f"/{word}" for word in how.positions)
        self.sample_rate_hz = frontend.sample_rate_hz
        rate_hz = frontend.sample_rate_hz / frontend.hop_samples / model.config.patch_frames
        self.frame_rate_hz: float | None = rate_hz if self._readout.time_blocks == 1 else None
        blocks = [f"block {i}" for i in range(1, model.config.depth)]
        self.layer_names = ("patch embedding", *blocks, "last block, normed")

    @cached_property
    def digest(self) -> str:
        """Digest of everything that could change the features."""
        weights = self._digest_of_weights if isinstance(self._digest_of_weights, str) else self._digest_of_weights()
        return sha256(f"{weights}/{self._how_in_words}".encode()).hexdigest()

    @torch.no_grad()
    def embed(self, audio_BS: Tensor, *, frame_layers: Sequence[int]) -> SliceFeatures:
        """Returns [B, L, bands * D] and the frames [B, M, T / patch_frames, bands * D] of `frame_layers`."""
        config, window = self.model.config, self._window_frames
        mel_BTF = log_mel(audio_BS.to(self._how.device), self._encoder.frontend)
        mel_BTF = normalise(mel_BTF, config.mel_mean, config.mel_std)
        # whole windows, then a shorter rest of whole patches
        whole = mel_BTF.shape[1] // window * window
        rest = (mel_BTF.shape[1] - whole) // config.patch_frames * config.patch_frames
        parts: list[list[Tensor]] = []
        if whole:
            crops = mel_BTF[:, :whole].reshape(-1, window, mel_BTF.shape[2])  # [B * W, window, F]
            states = self._encoder.encode_mel(crops, which=self._how.which)
            parts.append([s.reshape(len(mel_BTF), -1, s.shape[-1]) for s in states])
        if rest:
            parts.append(self._encoder.encode_mel(mel_BTF[:, whole : whole + rest], which=self._how.which))
        return self._read_out([torch.cat(pieces, dim=1).cpu() for pieces in zip(*parts, strict=True)], frame_layers)

    def _read_out(self, states_LBTD: list[Tensor], frame_layers: Sequence[int]) -> SliceFeatures:
        if self._readout.name == "frames":
            return pool_states(states_LBTD, frame_layers)
        if self._readout.time_blocks == 1:  # bands pooled to blocks: as many times D wide
            steps = states_LBTD[0].shape[1]
            return pool_states([self._blocks(s, steps).transpose(1, 2).flatten(2) for s in states_LBTD], frame_layers)
        pooled = [self._blocks(s, self._readout.time_blocks).flatten(1) for s in states_LBTD]
        return SliceFeatures(torch.stack(pooled, dim=1))

    def _blocks(self, states_BTD: Tensor, time_blocks: int) -> Tensor:
        """Returns the grid pooled to blocks, [B, f, t, D]; `states_BTD` has concatenated bands."""
        bands = self.model.config.grid_bands
        blocks = 1 if self._readout.name == "mean" else self._readout.frequency_blocks
        tokens_BND = states_BTD.unflatten(2, (bands, -1)).flatten(1, 2)
        pooled = pool_region(tokens_BND, bands=bands, frequency_blocks=blocks, time_blocks=time_blocks)
        return pooled.unflatten(1, (blocks, time_blocks, -1))


def load_frozen(source: Path | str, how: HowToEncode) -> FrozenPupuJEPA:
    """Loads a run's export, an export, a release or a step of one, model.safetensors, or a hub id.

    Raises:
        UserError: the source has no weights.
    """
    folder = Path(source).expanduser()
    if folder.name == WEIGHTS_NAME:
        folder = folder.parent
    if (folder / EXPORT).is_dir():
        folder = folder / EXPORT
    if folder.is_dir() and not any(folder.rglob(WEIGHTS_NAME)):
        raise UserError(
            f"no {WEIGHTS_NAME} in {source} or {Path(source) / EXPORT}, so there is nothing to evaluate; "
            f"train first, or export a checkpoint with `python -m distributed export {source}`"
        )
    release = folder if folder.is_dir() else source
    _, weights = locate_weights(release)
    named = folder.resolve().parent if folder.name == EXPORT else folder.resolve()
    return FrozenPupuJEPA(load(release), how, name=_name(named.name, how), digest=partial(_digest_of_file, weights))


def random_twin(trained: FrozenPupuJEPA, how: HowToEncode) -> FrozenPupuJEPA:
    """Returns an untrained network of the same shape, with the same input normalisation."""
    model = PupuJEPA(trained.model.config, seed=0, frontend=trained.model.frontend)
    config = dumps(asdict(trained.model.config), sort_keys=True)
    name = _name("random_init", replace(how, which="teacher"))
    return FrozenPupuJEPA(model, how, name=name, digest=f"random/0/{config}")


def _name(name: str, how: HowToEncode) -> str:
    """Returns the name with the options that are not defaults."""
    which = [] if how.which == "teacher" else [how.which]
    readout = [] if how.readout == "frames" else [how.readout]
    return ":".join([name, *which, *readout, *how.positions])


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()

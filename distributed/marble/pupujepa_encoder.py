"""PupuJEPA as a frozen encoder: the teacher's hidden states at 25 frames per second, bands side by side.

A slice longer than the training crop is cut into crops that do not overlap, so that the network sees what it was
trained on and every patch is encoded once.

Legend: B slices, S samples, W crops of a slice, T frames, F mel bands.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from json import dumps
from pathlib import Path

import torch
from torch import Tensor

from distributed.marble.readout import SliceFeatures, pool_states
from pupujepa.encoder import Encoder
from pupujepa.errors import UserError
from pupujepa.frontend import frontend_digest, log_mel, normalise
from pupujepa.model import PupuJEPA
from pupujepa.weights import load

CROPS_PER_PASS = 8
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class HowToEncode:
    """How a network is run.

    Attributes:
        which: teacher or student.
        precision: "bf16" runs the blocks under autocast, as MARBLE does, with weights and features in float32;
            "fp32" does not.
    """

    which: str = "teacher"
    precision: str = "bf16"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class FrozenPupuJEPA:
    """A trained or untrained PupuJEPA.

    Args:
        digest: of the weights; everything else that shapes the features is added to it.
    """

    only_tasks: frozenset[str] | None = None

    def __init__(self, model: PupuJEPA, how: "HowToEncode", *, name: str, digest: str):
        autocast_dtype = torch.bfloat16 if how.precision == "bf16" else None
        self._encoder = Encoder(model, device=how.device, autocast_dtype=autocast_dtype, batch_size=CROPS_PER_PASS)
        self._which = how.which
        self._device = how.device
        self.model = model
        self.name = name
        frontend = self._encoder.frontend
        self.front_end = frontend_digest(frontend)
        self.digest = sha256(
            f"{digest}/{how.which}/{how.precision}/{self.front_end}/{model.config}".encode()
        ).hexdigest()
        self.sample_rate_hz = frontend.sample_rate_hz
        self.frame_rate_hz = frontend.sample_rate_hz / frontend.hop_samples / model.config.patch_frames
        blocks = [f"block {i}" for i in range(1, model.config.depth)]
        self.layer_names = ("patch embedding", *blocks, "last block, normed")

    @torch.no_grad()
    def embed(self, audio_BS: Tensor, *, frame_layers: Sequence[int]) -> SliceFeatures:
        """Returns [B, L, bands * D] and the frames [B, M, T / patch_frames, bands * D] of `frame_layers`."""
        config = self.model.config
        mel_BTF = log_mel(audio_BS.to(self._device), self._encoder.frontend)
        mel_BTF = normalise(mel_BTF, config.mel_mean, config.mel_std)
        whole = mel_BTF.shape[1] // config.crop_frames * config.crop_frames
        rest = (mel_BTF.shape[1] - whole) // config.patch_frames * config.patch_frames
        parts: list[list[Tensor]] = []
        if whole:
            crops = mel_BTF[:, :whole].reshape(-1, config.crop_frames, mel_BTF.shape[2])  # [B * W, crop, F]
            states = self._encoder.encode_mel(crops, which=self._which)
            parts.append([s.reshape(len(mel_BTF), -1, s.shape[-1]) for s in states])
        if rest:
            parts.append(self._encoder.encode_mel(mel_BTF[:, whole : whole + rest], which=self._which))
        return pool_states([torch.cat(pieces, dim=1).cpu() for pieces in zip(*parts, strict=True)], frame_layers)


def load_frozen(folder: Path, how: HowToEncode) -> FrozenPupuJEPA:
    """Loads a run directory (its export) or a release folder.

    Raises:
        UserError: the folder holds no weights.
    """
    release = folder / "export" if (folder / "export").is_dir() else folder
    weights = sorted(release.rglob("model.safetensors"))
    if not weights:
        raise UserError(
            f"no model.safetensors in {folder} or {folder / 'export'}: there are no weights to evaluate; "
            f"train first, or write them from a checkpoint with `python -m distributed export {folder}`"
        )
    model = load(release)
    return FrozenPupuJEPA(model, how, name=_name(folder, how.which), digest=_digest_of_files(weights))


def random_twin(trained: FrozenPupuJEPA, how: HowToEncode, *, seed: int) -> FrozenPupuJEPA:
    """Returns an untrained network of the same shape, with the same input normalisation."""
    model = PupuJEPA(trained.model.config, seed=seed, frontend=trained.model.frontend)
    config = dumps(asdict(trained.model.config), sort_keys=True)
    return FrozenPupuJEPA(model, how, name="random_init", digest=f"random/{seed}/{config}")


def _name(folder: Path, which: str) -> str:
    name = folder.resolve().name
    return name if which == "teacher" else f"{name}:{which}"


def _digest_of_files(paths: Sequence[Path]) -> str:
    digest = sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
    return digest.hexdigest()

"""PupuJEPA itself: patch embedding, student and teacher encoders, predictor, with the released key names.

The patch embedding is shared and online: there is no EMA copy of it. The teacher lives here as an ordinary submodule
because the released files hold it and inference runs it; training takes it out of the optimised parameters
(see objective.py).

Shapes: B batch, T frames, F mel bands, N patches, K context patches, M target patches, D width, P predictor width.
Token index = step * grid_bands + band.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pupujepa.blocks import Block, LayerNorm, Linear, PatchConv, Transformer, run_blocks
from pupujepa.errors import UserError
from pupujepa.frontend import RELEASED_MEAN, RELEASED_STD, FrontendConfig
from pupujepa.randomness import torch_seed
from pupujepa.rope import LENGTH_EXACT, ROPE_MODES, Rotation, grid_rotation, select

MASK_TOKEN_STD = 0.02


@dataclass(frozen=True)
class ModelConfig:
    """Architecture and input normalisation; the defaults are PupuJEPA Tiny.

    predictor_heads is not published: 16 is our choice. `rope` is "length_exact" or "clip_relative" (see rope.py);
    mel_mean and mel_std are the statistics of the corpus the weights were trained on.
    """

    crop_frames: int = 1024
    mel_bands: int = 128
    patch_frames: int = 4
    patch_bands: int = 16
    width: int = 192
    depth: int = 12
    heads: int = 3
    mlp_ratio: float = 4.0
    predictor_width: int = 512
    predictor_depth: int = 8
    predictor_heads: int = 16
    rope: str = LENGTH_EXACT
    mel_mean: float = RELEASED_MEAN
    mel_std: float = RELEASED_STD

    def __post_init__(self) -> None:
        for name, whole, part in (
            ("crop_frames", self.crop_frames, self.patch_frames),
            ("mel_bands", self.mel_bands, self.patch_bands),
        ):
            if part <= 0 or whole <= 0 or whole % part:
                raise UserError(f"{name}={whole} cannot be cut into patches of {part}; make it a multiple of {part}")
        for name, width, heads in (
            ("heads", self.width, self.heads),
            ("predictor_heads", self.predictor_width, self.predictor_heads),
        ):
            if heads <= 0 or width <= 0 or width % (4 * heads):
                raise UserError(
                    f"{name}={heads} does not divide width {width} into heads of a multiple of 4 dimensions, which the "
                    f"two rotary axes need; try {name}={max(1, width // 64)}"
                )
        if min(self.depth, self.predictor_depth) < 1:
            raise UserError("depth and predictor_depth must be at least 1")
        if self.rope not in ROPE_MODES:
            raise UserError(f"rope={self.rope!r} is unknown; choose one of {', '.join(ROPE_MODES)}")
        if not self.mel_std > 0:
            raise UserError(f"mel_std={self.mel_std} must be positive: it divides the spectrogram")

    @property
    def grid_steps(self) -> int:
        """Patches along the time axis of a training crop."""
        return self.crop_frames // self.patch_frames

    @property
    def grid_bands(self) -> int:
        """Patches along the frequency axis."""
        return self.mel_bands // self.patch_bands

    @property
    def num_patches(self) -> int:
        """Patches of a training crop."""
        return self.grid_steps * self.grid_bands


class PatchEmbed(nn.Module):
    """Cuts a spectrogram into patches and maps each to a token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        patch = (config.patch_frames, config.patch_bands)
        self.proj = PatchConv(1, config.width, kernel_size=patch, stride=patch)
        self.norm = LayerNorm(config.width)

    def forward(self, mel_BTF: Tensor) -> Tensor:
        """Returns tokens [B, N, D] in time-major order."""
        grid_BDTF = self.proj(mel_BTF.unsqueeze(1))  # [B, D, steps, bands]
        return self.norm(grid_BDTF.flatten(2).transpose(1, 2))


class Predictor(nn.Module):
    """Predicts the teacher's output at target positions from the student's output at context positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.predictor_width
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.proj_in = Linear(config.width, width)
        self.blocks = nn.ModuleList(
            Block(width, config.predictor_heads, config.mlp_ratio) for _ in range(config.predictor_depth)
        )
        self.norm = LayerNorm(width)
        self.proj_out = Linear(width, config.width)
        self.activation_checkpointing = False

    def forward(self, context_BKD: Tensor, rotation: Rotation) -> Tensor:
        """Returns predictions [B, M, D].

        Args:
            rotation: of the sequence [K context positions, M target positions], each tensor [B, 1, K + M, R].
        """
        num_context = context_BKD.shape[1]
        x_BNP = self.assemble(context_BKD, rotation.cos.shape[-2] - num_context)
        x_BNP = run_blocks(self.blocks, x_BNP, rotation, recompute=self.activation_checkpointing)[-1]
        return self.proj_out(self.norm(x_BNP[:, num_context:]))

    def assemble(self, context_BKD: Tensor, num_targets: int) -> Tensor:
        """Returns the predictor's input [B, K + M, P]: projected context tokens, then mask tokens."""
        context_BKP = self.proj_in(context_BKD)
        mask_BMP = self.mask_token.to(context_BKP.dtype).expand(len(context_BKP), num_targets, -1)
        return torch.cat([context_BKP, mask_BMP], dim=1)


class PupuJEPA(nn.Module):
    """The whole model. `student` is trained; `teacher` is its moving average and what inference runs.

    Args:
        seed: of the initial weights. On the meta device nothing is initialised.
        frontend: what turns audio into the spectrograms that this model takes; it travels with the weights.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        seed: int = 0,
        frontend: FrontendConfig = FrontendConfig(),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__()
        self.config = config
        if frontend.mel_bands != config.mel_bands:
            raise UserError(f"the front end makes {frontend.mel_bands} mel bands, the model takes {config.mel_bands}")
        self.frontend = frontend
        self.patch_embed = PatchEmbed(config)
        self.student = _transformer(config)
        self.teacher = _transformer(config).requires_grad_(False)
        self.predictor = Predictor(config)
        if not self.predictor.mask_token.is_meta:
            self.init_weights(seed)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fills all parameters from `seed`, alike on every device; the global random state is neither read nor moved.

        Xavier-uniform matrices (the patch convolution as the matrix [D, patch]), zero biases, unit norms, a mask
        token of std 0.02, and a teacher equal to the student. Every tensor has its own stream, keyed by its name.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.fill_(1)
                module.bias.zero_()
            elif isinstance(module, (Linear, PatchConv)) and not name.startswith("teacher."):
                fan_out, fan_in = module.weight.flatten(1).shape
                bound = math.sqrt(6 / (fan_in + fan_out))
                draw = torch.empty(module.weight.shape, device="cpu")
                module.weight.copy_(draw.uniform_(-bound, bound, generator=_stream(seed, name)))
                assert module.bias is not None
                module.bias.zero_()
        token = torch.empty(self.predictor.mask_token.shape, device="cpu")
        self.predictor.mask_token.copy_(token.normal_(0, MASK_TOKEN_STD, generator=_stream(seed, "mask_token")))
        self.teacher.load_state_dict(self.student.state_dict())

    def tokens(self, mel_BTF: Tensor) -> Tensor:
        """Returns the patch embedding [B, N, D] of a normalised log-mel spectrogram.

        Raises:
            UserError: a shape that the patches do not tile.
        """
        check_mel(mel_BTF, self.config)
        return self.patch_embed(mel_BTF)

    def encode(self, mel_BTF: Tensor, *, which: str = "teacher", layers: Sequence[int] | None = None) -> list[Tensor]:
        """Encodes a full, unmasked spectrogram of any whole number of patches.

        Args:
            which: "teacher" (what the released models are probed with) or "student".
            layers: states to return, in this order; None returns all depth + 1. 0 is the patch embedding, i the
                output of block i, and the last, also -1, is normed.

        Returns:
            One tensor [B, N, D] per layer, float32.
        """
        encoder = self.encoder(which)
        tokens_BND = self.tokens(mel_BTF)
        rotation = encoder_rotation(self.config, steps_of(mel_BTF, self.config), mel_BTF.device)
        return encoder.hidden_states(tokens_BND, rotation, layers=resolve_layers(layers, self.config.depth))

    def encoder(self, which: str) -> Transformer:
        """Returns the teacher's or the student's blocks by name."""
        if which not in ("teacher", "student"):
            raise UserError(f"which={which!r} is no encoder of this model; choose teacher or student")
        return self.teacher if which == "teacher" else self.student


def check_mel(mel_BTF: Tensor, config: ModelConfig) -> None:
    """Raises UserError unless the spectrogram is [B, T, mel_bands] with T a positive multiple of patch_frames."""
    shape = tuple(mel_BTF.shape)
    if len(shape) != 3 or shape[2] != config.mel_bands or shape[1] < 1 or shape[1] % config.patch_frames:
        raise UserError(
            f"spectrogram of shape {shape} does not fit the model; it takes [batch, frames, {config.mel_bands}] with "
            f"frames a multiple of {config.patch_frames} (pad or cut the time axis)"
        )


def steps_of(mel_BTF: Tensor, config: ModelConfig) -> int:
    """Returns the time steps of the patch grid of a spectrogram."""
    return mel_BTF.shape[1] // config.patch_frames


def encoder_rotation(config: ModelConfig, steps: int, device: torch.device) -> Rotation:
    """Returns the rotation of a grid of `steps` for student and teacher."""
    return _rotation(config, steps, config.width // config.heads, device)


def predictor_rotation(config: ModelConfig, steps: int, index_BN: Tensor) -> Rotation:
    """Returns the rotation of the predictor's sequence: tokens at positions `index_BN` of a grid of `steps`."""
    head_dim = config.predictor_width // config.predictor_heads
    return select(_rotation(config, steps, head_dim, index_BN.device), index_BN)


def gather_tokens(tokens_BND: Tensor, index_BK: Tensor) -> Tensor:
    """Returns the tokens [B, K, D] at `index_BK`."""
    return tokens_BND.gather(1, index_BK.unsqueeze(-1).expand(-1, -1, tokens_BND.shape[-1]))


def resolve_layers(layers: Sequence[int] | None, depth: int) -> list[int]:
    """Returns layer indices in [0, depth], all of them for None; negative ones count from the end.

    Raises:
        UserError: a layer that the model does not have.
    """
    if layers is None:
        return list(range(depth + 1))
    for layer in layers:
        if not -depth - 1 <= layer <= depth:
            raise UserError(f"layer {layer} does not exist; this model has layers 0 (patch embedding) to {depth}")
    return [layer % (depth + 1) for layer in layers]


def _transformer(config: ModelConfig) -> Transformer:
    return Transformer(config.width, depth=config.depth, heads=config.heads, mlp_ratio=config.mlp_ratio)


def _rotation(config: ModelConfig, steps: int, head_dim: int, device: torch.device) -> Rotation:
    return grid_rotation(
        steps,
        config.grid_bands,
        head_dim=head_dim,
        reference_steps=config.grid_steps,
        mode=config.rope,
        device=device,
    )


def _stream(seed: int, name: str) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(torch_seed("initial weights", seed, name))

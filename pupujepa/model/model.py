"""The PupuJEPA model: patch embedding, student, teacher and predictor, with the released key names.

Student and teacher share the trained patch embedding; there is no EMA copy of it. The teacher is an ordinary submodule
because the released files hold it and inference runs it; training excludes it from the parameters (objective.py).

Shapes: B batch, T frames, F mel bands, N patches, K context patches, M target patches, D width, P predictor width,
V values of a patch (patch_frames * patch_bands). Token index = step * grid_bands + band.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pupujepa.audio.log_mel import FrontendConfig
from pupujepa.errors import UserError
from pupujepa.model.architecture import FLAT_BY_BAND, ROTARY, ModelConfig
from pupujepa.model.blocks import Block, BlockShape, LayerNorm, Linear, PatchConv, Transformer, run_blocks
from pupujepa.model.positions import POSITION_TABLE, absolute_positions
from pupujepa.model.rope import Rotation, grid_rotation, select, sequence_rotation
from pupujepa.randomness import torch_seed

MASK_TOKEN = "mask_token"
DRAWN_STD = 0.02  # of mask token and position tables


class PatchEmbed(nn.Module):
    """Cuts a spectrogram into patches and maps each to a token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        patch = (config.patch_frames, config.patch_bands)
        self.proj = PatchConv(1, config.width, kernel_size=patch, stride=patch)
        self.norm = LayerNorm(config.width)

    def forward(self, mel_BTF: Tensor) -> Tensor:
        """Returns tokens [B, N, D] in time-major order."""
        return self.norm(self.proj(patch_values(mel_BTF, self.config)))


class Predictor(nn.Module):
    """Predicts the teacher's output (V = D), or the patch itself, at target positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.predictor_width
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = absolute_positions(config, width)
        self.proj_in = Linear(config.width, width)
        self.blocks = nn.ModuleList(Block(predictor_shape(config)) for _ in range(config.predictor_depth))
        self.norm = LayerNorm(width)
        self.proj_out = Linear(width, config.predictor_outputs)
        self.activation_checkpointing = False

    def forward(self, context_BKD: Tensor, sequence_BN: Tensor, rotation: Rotation | None) -> Tensor:
        """Returns predictions [B, M, V].

        Args:
            sequence_BN: token indices of the context, then of the targets.
            rotation: of that sequence; each tensor is [B, 1, N, R].
        """
        x_BNP = self.assemble(context_BKD, sequence_BN)
        targets = slice(context_BKD.shape[1], None)  # the last block's outputs at context positions are not needed
        x_BMP = run_blocks(self.blocks, x_BNP, rotation, rows=targets, recompute=self.activation_checkpointing)[-1]
        return self.proj_out(self.norm(x_BMP))

    def assemble(self, context_BKD: Tensor, sequence_BN: Tensor) -> Tensor:
        """Returns the input [B, N, P]: projected context tokens, then mask tokens, with positions."""
        context_BKP = self.proj_in(context_BKD)
        targets = sequence_BN.shape[1] - context_BKP.shape[1]
        # in the dtype of autocast: cat would promote the context to float32
        mask_BMP = self.mask_token.to(context_BKP.dtype).expand(len(context_BKP), targets, -1)
        x_BNP = torch.cat([context_BKP, mask_BMP], dim=1)
        return x_BNP if self.positions is None else x_BNP + self.positions(sequence_BN)


class PupuJEPA(nn.Module):
    """The whole model: `student` is trained, `teacher` is its moving average, which inference runs.

    Args:
        seed: of the initial weights. On the meta device nothing is initialised.
        frontend: the spectrogram's parameters, which are stored with the weights.

    Raises:
        UserError: front end and model differ in the number of mel bands.
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
        """Fills all parameters from `seed`, equally on every device and without the global random state.

        Xavier-uniform matrices (the patch convolution as the matrix [D, patch]), zero biases, unit norms, a mask
        token and learned positions of std 0.02, and a teacher equal to the student. Each tensor's random stream is
        keyed by its name, so a new module changes no other module's weights.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.fill_(1)
                module.bias.zero_()
            elif isinstance(module, (Linear, PatchConv)) and not name.startswith("teacher."):
                fan_out, fan_in = module.weight.flatten(1).shape
                bound = math.sqrt(6 / (fan_in + fan_out))
                draw = torch.empty(module.weight.shape, device="cpu")  # a GPU's generator draws other numbers
                module.weight.copy_(draw.uniform_(-bound, bound, generator=_stream(seed, name)))
                assert module.bias is not None
                module.bias.zero_()
        for name, parameter in self.named_parameters():
            last = name.rpartition(".")[2]
            if last in (MASK_TOKEN, POSITION_TABLE):
                draw = torch.empty(parameter.shape, device="cpu")
                key = MASK_TOKEN if last == MASK_TOKEN else name  # both position tables have the same last name
                parameter.copy_(draw.normal_(0, DRAWN_STD, generator=_stream(seed, key)))
        self.teacher.load_state_dict(self.student.state_dict())

    def tokens(self, mel_BTF: Tensor) -> Tensor:
        """Returns the patch embedding [B, N, D] of a normalised log-mel spectrogram [B, T, F].

        Raises:
            UserError: a shape that the patches do not tile.
        """
        check_mel(mel_BTF, self.config)
        return self.patch_embed(mel_BTF)

    def encode(self, mel_BTF: Tensor, *, which: str = "teacher", layers: Sequence[int] | None = None) -> list[Tensor]:
        """Encodes an unmasked spectrogram [B, T, F] of any whole number of patches.

        Args:
            which: "teacher" (the released models are probed with it) or "student".
            layers: states to return, in this order; None returns all depth + 1. 0 is the patch embedding (with
                absolute positions, if any), i the output of block i, and the last, also -1, is normed.

        Returns:
            One tensor [B, N, D] per layer, float32.

        Raises:
            UserError: a shape that the patches do not tile, an unknown encoder, or a layer that does not exist.
        """
        encoder = self.encoder(which)
        tokens_BND = encoder.placed(self.tokens(mel_BTF))
        rotation = encoder_rotation(self.config, steps_of(mel_BTF, self.config), mel_BTF.device)
        return encoder.hidden_states(tokens_BND, rotation, layers=resolve_layers(layers, self.config.depth))

    def encoder(self, which: str) -> Transformer:
        """Returns the encoder named "teacher" or "student".

        Raises:
            UserError: another name.
        """
        if which not in ("teacher", "student"):
            raise UserError(f"which={which!r} is not an encoder; choose teacher or student")
        return self.teacher if which == "teacher" else self.student


def encoder_rotation(config: ModelConfig, steps: int, device: torch.device) -> Rotation | None:
    """Returns the encoders' rotation of a grid of `steps`, or None if positions are not rotary."""
    return _rotation(config, steps, config.width // config.heads, device)


def predictor_rotation(config: ModelConfig, steps: int, index_BN: Tensor) -> Rotation | None:
    """Returns the rotation of the predictor's tokens at `index_BN` [B, N] of a grid of `steps`."""
    rotation = _rotation(config, steps, config.predictor_width // config.predictor_heads, index_BN.device)
    return None if rotation is None else select(rotation, index_BN)


def visible_to(
    encoder: Transformer, tokens_BND: Tensor, index_BK: Tensor, rotation: Rotation | None
) -> tuple[Tensor, Rotation | None]:
    """Returns the input of an encoder that sees only chosen patches: their tokens [B, K, D] and rotation.

    Args:
        tokens_BND: of the whole grid, without positions.
        rotation: of the whole grid.
    """
    x_BKD = gather_tokens(encoder.placed(tokens_BND), index_BK)
    return x_BKD, None if rotation is None else select(rotation, index_BK)


def patch_values(mel_BTF: Tensor, config: ModelConfig) -> Tensor:
    """Returns the values of each patch [B, N, V], frame by frame, in the order of the tokens."""
    tiles = mel_BTF.unflatten(2, (config.grid_bands, config.patch_bands)).unflatten(1, (-1, config.patch_frames))
    # [B, steps, frames, bands, mel] -> [B, steps, bands, frames * mel] -> [B, N, V]
    return tiles.transpose(2, 3).flatten(3).flatten(1, 2)


def check_mel(mel_BTF: Tensor, config: ModelConfig) -> None:
    """Raises UserError unless a spectrogram is [B, T, mel_bands], T a multiple of patch_frames."""
    shape = tuple(mel_BTF.shape)
    if len(shape) != 3 or shape[2] != config.mel_bands or shape[1] < 1 or shape[1] % config.patch_frames:
        raise UserError(
            f"spectrogram of shape {shape} does not fit the model; give [batch, frames, {config.mel_bands}] with "
            f"frames a multiple of {config.patch_frames}"
        )


def steps_of(mel_BTF: Tensor, config: ModelConfig) -> int:
    """Returns the number of time steps of a spectrogram's [B, T, F] patch grid."""
    return mel_BTF.shape[1] // config.patch_frames


def gather_tokens(tokens_BND: Tensor, index_BK: Tensor) -> Tensor:
    """Returns the tokens [B, K, D] at `index_BK`."""
    return tokens_BND.gather(1, index_BK.unsqueeze(-1).expand(-1, -1, tokens_BND.shape[-1]))


def resolve_layers(layers: Sequence[int] | None, depth: int) -> list[int]:
    """Returns layer indices in [0, depth]; None means all, and negative ones count from the end.

    Raises:
        UserError: a layer that the model does not have.
    """
    if layers is None:
        return list(range(depth + 1))
    for layer in layers:
        if not -depth - 1 <= layer <= depth:
            raise UserError(f"layer {layer} does not exist; this model has layers 0 (patch embedding) to {depth}")
    return [layer % (depth + 1) for layer in layers]


def encoder_shape(config: ModelConfig) -> BlockShape:
    """Returns the block dimensions of student and teacher."""
    return BlockShape(config.width, config.heads, config.mlp_ratio, config.mlp, config.qk_norm)


def predictor_shape(config: ModelConfig) -> BlockShape:
    """Returns the block dimensions of the predictor."""
    return BlockShape(config.predictor_width, config.predictor_heads, config.mlp_ratio, config.mlp, config.qk_norm)


def _transformer(config: ModelConfig) -> Transformer:
    positions = absolute_positions(config, config.width)
    return Transformer(encoder_shape(config), depth=config.depth, positions=positions)


def _rotation(config: ModelConfig, steps: int, head_dim: int, device: torch.device) -> Rotation | None:
    if config.position_code != ROTARY:
        return None
    if config.is_sequence:
        return sequence_rotation(
            _places(config, steps, device),
            head_dim=head_dim,
            reference_length=config.num_patches,
            mode=config.rope,
            device=device,
        )
    return grid_rotation(
        steps,
        config.grid_bands,
        head_dim=head_dim,
        reference_steps=config.grid_steps,
        mode=config.rope,
        device=device,
    )


def _places(config: ModelConfig, steps: int, device: torch.device) -> Tensor:
    """Returns the place of each patch [N] in the sequence; tokens are always stored step by step."""
    places = torch.arange(steps * config.grid_bands, device=device)
    if config.structure == FLAT_BY_BAND:
        return places.unflatten(0, (config.grid_bands, steps)).T.flatten()
    return places


def _stream(seed: int, name: str) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(torch_seed("initial weights", seed, name))

"""Architecture of a PupuJEPA: one frozen record, checked for contradictions.

The defaults are the released architecture; the other values are variants for ablations.
"""

from dataclasses import dataclass

from pupujepa.audio.log_mel import RELEASED_MEAN, RELEASED_STD
from pupujepa.errors import UserError, require_known
from pupujepa.model.rope import LENGTH_EXACT, ROPE_MODES

TWO_DIMENSIONAL, FLAT_BY_BAND, FRAMES = "2d", "flat_by_band", "frames"
STRUCTURES = (TWO_DIMENSIONAL, "flat", FLAT_BY_BAND, FRAMES)
ROTARY, LEARNED, SINCOS = "rotary", "learned", "sincos"
POSITION_CODES = (ROTARY, LEARNED, SINCOS, "none")
SWIGLU, GELU = MLPS = ("swiglu", "gelu")
JEPA, MAE = OBJECTIVES = ("jepa", "mae")
RELEASED_PATCH_BANDS = 16  # of 128 mel bands: 8 patches per time step


@dataclass(frozen=True)
class ModelConfig:
    """Architecture and input normalisation; the defaults are PupuJEPA Tiny.

    predictor_heads is not published: 16 is our choice. mel_mean and mel_std are the statistics of the training corpus.

    structure: "2d", patches of a time-frequency grid. Controls: "flat", the same patches as one sequence, whose
        positions and masks know a patch's place in the sequence only (all bands of a step, then the next step);
        "flat_by_band", the same in the other order (all steps of a band, then the next band); "frames", one token per
        time step with all mel bands.
    patch_bands: 0 means all mel bands in "frames" and else 16; the field then holds the resolved number.
    position_code: "rotary" rotates queries and keys (rope.py); "learned" and "sincos" are added to the input of encoder
        and predictor (positions.py); "none" is a control without positions: all predictions of a crop are equal.
    rope: time axis of rotary positions, "length_exact" or "clip_relative" (rope.py).
    mlp: "swiglu", or "gelu" with hidden layers 1.5 times as wide, so both have equally many matrix entries.
    qk_norm: a LayerNorm over each head's queries and one over its keys, before the rotation. The released args.json
        says true, but the released weights have none.
    predictor_objective: outputs of the predictor: "jepa", `width` features, or "mae", the patch_frames * patch_bands
        values of a patch. An experiment copies it from objective.kind.

    Raises:
        UserError: an unknown name, a crop that the patches do not tile, heads that do not divide their width, or fields
            that contradict each other.
    """

    crop_frames: int = 1024
    mel_bands: int = 128
    patch_frames: int = 4
    patch_bands: int = 0
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
    structure: str = TWO_DIMENSIONAL
    position_code: str = ROTARY
    mlp: str = SWIGLU
    qk_norm: bool = False
    predictor_objective: str = JEPA

    def __post_init__(self) -> None:
        _check_names(self)
        if self.patch_bands == 0:
            resolved = self.mel_bands if self.structure == FRAMES else RELEASED_PATCH_BANDS
            object.__setattr__(self, "patch_bands", resolved)  # the one assignment to a frozen record
        _check_grid(self)
        _check_heads(self)
        if min(self.depth, self.predictor_depth) < 1:
            raise UserError("depth and predictor_depth must be at least 1")
        if not self.mlp_ratio > 0:
            raise UserError(f"mlp_ratio={self.mlp_ratio} must be positive: it sets the width of the MLP's hidden layer")
        if not self.mel_std > 0:
            raise UserError(f"mel_std={self.mel_std} must be positive: it divides the spectrogram")

    @property
    def grid_steps(self) -> int:
        """Patches along the time axis of a training crop."""
        return self.crop_frames // self.patch_frames

    @property
    def grid_bands(self) -> int:
        """Patches along the frequency axis, 1 for "frames"."""
        return self.mel_bands // self.patch_bands

    @property
    def num_patches(self) -> int:
        """Patches of a training crop."""
        return self.grid_steps * self.grid_bands

    @property
    def is_sequence(self) -> bool:
        """True if positions and masks have one axis: the place in a sequence."""
        return is_sequence(self.structure)

    @property
    def patch_values(self) -> int:
        """Values of the spectrogram in one patch."""
        return self.patch_frames * self.patch_bands

    @property
    def predictor_outputs(self) -> int:
        """Outputs of the predictor per target token."""
        return self.patch_values if self.predictor_objective == MAE else self.width


def is_sequence(structure: str) -> bool:
    """Returns True for the structures whose positions and masks have one axis."""
    return structure != TWO_DIMENSIONAL


def _check_names(config: ModelConfig) -> None:
    for name, known in (
        ("structure", STRUCTURES),
        ("position_code", POSITION_CODES),
        ("mlp", MLPS),
        ("predictor_objective", OBJECTIVES),
        ("rope", ROPE_MODES),
    ):
        require_known(name, getattr(config, name), known)
    if config.position_code != ROTARY and config.rope != LENGTH_EXACT:
        raise UserError(
            f"rope={config.rope!r} applies to rotary positions, but position_code={config.position_code!r} has none; "
            f"leave rope at {LENGTH_EXACT!r} or use position_code={ROTARY!r}"
        )


def _check_grid(config: ModelConfig) -> None:
    for name, whole, part in (
        ("crop_frames", config.crop_frames, config.patch_frames),
        ("mel_bands", config.mel_bands, config.patch_bands),
    ):
        if part <= 0 or whole <= 0 or whole % part:
            raise UserError(f"{name}={whole} cannot be cut into patches of {part}; make it a multiple of {part}")
    if config.structure == FLAT_BY_BAND and config.position_code == SINCOS:
        # the place of a patch depends on the clip's length, which AbsolutePositions does not know
        raise UserError(f"structure={FLAT_BY_BAND} has no position_code={SINCOS}; use {ROTARY}, {LEARNED} or none")
    if config.structure == FRAMES and config.patch_bands != config.mel_bands:
        raise UserError(
            f"structure=frames has one token per time step with all {config.mel_bands} mel bands, so "
            f"patch_bands={config.patch_bands} contradicts it; set patch_bands=0"
        )
    if config.structure != FRAMES and config.patch_bands == config.mel_bands:
        raise UserError(
            f"patch_bands={config.patch_bands} puts all mel bands into one patch, which leaves no frequency axis to "
            f"encode; use structure=frames or a smaller patch_bands"
        )


def _check_heads(config: ModelConfig) -> None:
    # each axis needs pairs: of a head's dimensions if rotary, of the width if sincos
    axes = 1 if config.is_sequence else 2
    multiple = 2 * axes if config.position_code == ROTARY else 1
    for name, width, heads in (
        ("heads", config.width, config.heads),
        ("predictor_heads", config.predictor_width, config.predictor_heads),
    ):
        if heads <= 0 or width <= 0 or width % (multiple * heads):
            of = f" of a multiple of {multiple} dimensions, which the rotary axes need" if multiple > 1 else ""
            raise UserError(
                f"{name}={heads} does not divide width {width} into heads{of}; try {name}={max(1, width // 64)}"
            )
        if config.position_code == SINCOS and width % (2 * axes):
            raise UserError(f"width {width} is not a multiple of {2 * axes}, which position_code={SINCOS!r} needs")

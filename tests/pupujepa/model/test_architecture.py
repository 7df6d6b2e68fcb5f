import pytest

from pupujepa.config import compose, from_yaml, to_yaml
from pupujepa.errors import UserError
from pupujepa.model.architecture import ModelConfig


def test_patch_bands_follow_the_structure():
    """By default they are 16 in 2-D and all mel bands in 1-D; the record holds the number, and YAML keeps it."""
    assert ModelConfig().patch_bands == 16
    line = ModelConfig(structure="frames")
    assert (line.patch_bands, line.grid_bands, line.num_patches, line.patch_values) == (128, 1, 256, 512)
    assert from_yaml(ModelConfig, to_yaml(line)) == line
    assert compose(ModelConfig, overrides=["structure=frames", "mel_bands=80"]).patch_bands == 80


def test_predictor_outputs_are_features_or_values():
    """The predictor gives `width` numbers per token for jepa, and a patch's values for mae."""
    assert ModelConfig().predictor_outputs == 192
    assert ModelConfig(predictor_objective="mae").predictor_outputs == 4 * 16
    assert ModelConfig(predictor_objective="mae", structure="frames").predictor_outputs == 4 * 128


def test_each_structure_and_code_needs_only_its_own_multiples():
    """Heads need pairs for each rotary axis, and none without rotation."""
    shape = {"width": 18, "heads": 3, "predictor_width": 18, "predictor_heads": 3}
    assert ModelConfig(**shape, structure="frames").width == 18
    assert ModelConfig(**shape, position_code="learned").width == 18
    with pytest.raises(UserError, match="heads of a multiple of 4 dimensions, which the rotary axes need"):
        ModelConfig(**shape)
    with pytest.raises(UserError, match="width 18 is not a multiple of 4, which position_code='sincos' needs"):
        ModelConfig(**shape, position_code="sincos")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"structure": "3d"}, "structure='3d' is unknown; choose one of 2d, flat, flat_by_band, frames"),
        ({"structure": "frames", "patch_bands": 16}, "patch_bands=16 contradicts it; set patch_bands=0"),
        ({"patch_bands": 128}, "patch_bands=128 puts all mel bands into one patch.*use structure=frames"),
        ({"position_code": "alibi"}, "position_code='alibi' is unknown; choose one of rotary, learned, sincos, none"),
        ({"position_code": "none", "rope": "clip_relative"}, "rope='clip_relative' applies to rotary positions, but"),
        ({"mlp": "relu"}, "mlp='relu' is unknown; choose one of swiglu, gelu"),
        ({"predictor_objective": "dino"}, "predictor_objective='dino' is unknown; choose one of jepa, mae"),
        ({"position_code": "none", "heads": 5}, "heads=5 does not divide width 192 into heads; try heads=3"),
        ({"mlp_ratio": 0.0}, "mlp_ratio=0.0 must be positive"),
    ],
)
def test_contradictions_are_refused_in_a_sentence(change, message):
    """Choices that exclude each other, and names that do not exist, are refused when the config is made."""
    with pytest.raises(UserError, match=message):
        ModelConfig(**change)

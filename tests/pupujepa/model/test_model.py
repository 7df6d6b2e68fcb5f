import re
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from pupujepa.audio.log_mel import FrontendConfig
from pupujepa.cost.cost import PRESETS, model_size, size_names
from pupujepa.errors import UserError
from pupujepa.model.model import ModelConfig, PupuJEPA, encoder_rotation, patch_values, resolve_layers
from tests.pupujepa.models import SMALL, random_mel, random_model
from tests.pupujepa.released import released_shapes


def on_meta(config: ModelConfig) -> PupuJEPA:
    with torch.device("meta"):
        return PupuJEPA(config)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("tiny", 7_117_440), ("small", 28_390_656), ("base", 113_404_416), ("large", 403_073_024)],
)
def test_encoder_parameters_are_the_released_ones(size, parameters):
    """Encoder parameter counts are exactly those of the released files."""
    model = on_meta(model_size(size))
    assert sum(p.numel() for p in model.student.parameters()) == parameters
    assert sum(p.numel() for p in model.teacher.parameters()) == parameters


@pytest.mark.parametrize(("size", "millions"), [("huge", 839.6), ("giant", 1511.0)])
def test_big_encoders_have_the_published_size(size, millions):
    """Huge and Giant have 839.6 and 1,511 million encoder parameters."""
    parameters = sum(p.numel() for p in on_meta(model_size(size)).student.parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.05)


def test_preset_headers_tell_the_true_counts():
    """The parameter counts in the presets' comments are the models'."""
    assert {"demo", "tiny", "small", "base", "large", "huge", "giant"} == set(size_names())
    for name in size_names():
        model = on_meta(model_size(name))
        header = (PRESETS / f"{name}.yaml").read_text()
        told = re.search(r"encoder ([\d,]+) .* embedding ([\d,]+), predictor ([\d,]+)", header)
        assert told, f"{name}.yaml tells no parameter counts"
        counts = [int(group.replace(",", "")) for group in told.groups()]
        modules = (model.student, model.patch_embed, model.predictor)
        assert counts == [sum(p.numel() for p in module.parameters()) for module in modules]


def test_key_names_are_the_released_ones():
    """The state dict has the released names and shapes, and nothing else."""
    found = {name: tuple(t.shape) for name, t in on_meta(model_size("tiny")).state_dict().items()}
    assert found == released_shapes(192, 12)


def test_initial_weights_follow_the_description():
    """Xavier-uniform matrices, zero biases, unit norms, a mask token of std 0.02, teacher = student."""
    model = PupuJEPA(ModelConfig(depth=2, predictor_depth=2), seed=3)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight"))))
        elif name.endswith("bias"):
            assert not parameter.any()
        elif name.endswith("mask_token"):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.15)
        else:
            out, into = parameter.flatten(1).shape
            bound = (6 / (out + into)) ** 0.5
            assert bound * 0.99 < parameter.abs().max() <= bound
            assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    for name, tensor in model.student.state_dict().items():
        assert torch.equal(tensor, model.teacher.state_dict()[name])
    assert not any(p.requires_grad for p in model.teacher.parameters())


def test_initialisation_is_a_pure_function_of_the_seed():
    """Equal seeds give equal weights, other seeds others, and the global random state is unchanged."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = PupuJEPA(SMALL, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = PupuJEPA(SMALL, seed=1).state_dict(), PupuJEPA(SMALL, seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["student.blocks.0.attn.qkv.weight"], other["student.blocks.0.attn.qkv.weight"])
    assert not torch.equal(first["predictor.mask_token"], other["predictor.mask_token"])


def test_hidden_states_are_embedding_blocks_and_normed_end(small_model):
    """Index 0 is the patch embedding, i follows block i, the last is normed; layers selects in the order asked for."""
    mel = random_mel(2, 64, 128)
    with torch.no_grad():
        states = small_model.encode(mel)
        assert len(states) == SMALL.depth + 1
        torch.testing.assert_close(states[0], small_model.tokens(mel))
        turn = encoder_rotation(SMALL, 16, mel.device)
        torch.testing.assert_close(states[1], small_model.teacher.blocks[0](states[0], turn))
        last = small_model.teacher.blocks[2](states[2], turn)
        torch.testing.assert_close(states[3], small_model.teacher.norm(last))
        chosen = small_model.encode(mel, layers=[-1, 0])
    assert torch.equal(chosen[0], states[3])
    assert torch.equal(chosen[1], states[0])


def test_blocks_beyond_the_last_layer_asked_for_do_not_run(small_model):
    """A request for layer 1 runs one block."""
    ran = []
    for number, block in enumerate(small_model.teacher.blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    with torch.no_grad():
        assert len(small_model.encode(random_mel(1, 64, 128), layers=[1])) == 1
    assert ran == [0]


def test_tokens_are_time_major(small_model):
    """Token t * bands + f is the patch at step t and band f."""
    mel = torch.zeros(1, 64, 128)
    quiet = small_model.tokens(mel)
    mel[0, 4 * 5 : 4 * 6, 16 * 3 : 16 * 4] = 1
    changed = (small_model.tokens(mel) != quiet).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [5 * 8 + 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_frames": 1022}, "crop_frames=1022 cannot be cut into patches of 4"),
        ({"heads": 5}, "heads=5 does not divide width 192"),
        ({"predictor_heads": 3}, "predictor_heads=3 does not divide width 512"),
        ({"rope": "learned"}, "rope='learned' is unknown; choose one of length_exact, clip_relative"),
        ({"depth": 0}, "depth and predictor_depth must be at least 1"),
        ({"mel_std": 0.0}, "mel_std=0.0 must be positive"),
    ],
)
def test_impossible_architectures_are_refused(change, message):
    """A config that cannot be built is refused with the value and the remedy."""
    with pytest.raises(UserError, match=message):
        ModelConfig(**change)


def test_wrong_inputs_are_refused(small_model):
    """Shapes and names that the model does not have are errors that say what fits."""
    with pytest.raises(UserError, match=r"shape \(1, 63, 128\) does not fit the model"):
        small_model.encode(torch.zeros(1, 63, 128))
    with pytest.raises(UserError, match=r"shape \(1, 64, 80\)"):
        small_model.encode(torch.zeros(1, 64, 80))
    with pytest.raises(UserError, match="which='predictor' is not an encoder; choose teacher or student"):
        small_model.encode(torch.zeros(1, 64, 128), which="predictor")
    with pytest.raises(UserError, match=r"layer 4 does not exist; this model has layers 0 \(patch embedding\) to 3"):
        small_model.encode(torch.zeros(1, 64, 128), layers=[4])
    with pytest.raises(UserError, match="the front end makes 64 mel bands, the model takes 128"):
        PupuJEPA(SMALL, frontend=FrontendConfig(mel_bands=64))


def test_layers_count_from_either_end():
    """Negative layers count from the end."""
    assert resolve_layers(None, 3) == [0, 1, 2, 3]
    assert resolve_layers([-1, -4, 2], 3) == [3, 0, 2]


def test_large_model_fits_its_description():
    """Grid, tokens and heads of Large are those of the model card."""
    config = model_size("large")
    assert (config.grid_steps, config.grid_bands, config.num_patches) == (256, 8, 2048)
    assert config.width // config.heads == 64


@pytest.mark.parametrize(
    "config",
    [SMALL, replace(SMALL, structure="frames", patch_bands=0), replace(SMALL, patch_frames=8, patch_bands=32)],
    ids=["2d", "frames", "large"],
)
def test_patch_values_are_those_of_the_tokens(config):
    """Token t * bands + f holds the patch at step t and band f, and the embedding is a linear map of its values."""
    mel = random_mel(2, 64, 128)
    values = patch_values(mel, config)
    frames, width = config.patch_frames, config.patch_bands
    for token in (0, 1, config.num_patches - 1):
        step, band = divmod(token, config.grid_bands)
        patch = mel[1, step * frames : (step + 1) * frames, band * width : (band + 1) * width]
        assert torch.equal(values[1, token], patch.flatten())
    embed = random_model(config).patch_embed
    raw = values @ embed.proj.weight.flatten(1).T + embed.proj.bias
    torch.testing.assert_close(embed.norm(raw), embed(mel), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_product_is_the_stored_convolution(dtype):
    """Tokens are those of torch's convolution with the same weights, which is how released files hold them."""
    embed = random_model(SMALL).patch_embed.to(dtype)
    mel = random_mel(2, 64, 128).to(dtype)
    grid = functional.conv2d(mel.unsqueeze(1), embed.proj.weight, embed.proj.bias, stride=embed.proj.stride)
    raw = embed.proj(patch_values(mel, SMALL))
    torch.testing.assert_close(raw, grid.flatten(2).transpose(1, 2))

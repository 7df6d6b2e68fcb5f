import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pupujepa.audio.log_mel import RELEASED_MEAN, RELEASED_STD, FrontendConfig
from pupujepa.errors import UserError
from pupujepa.model.model import ModelConfig, PupuJEPA
from pupujepa.weights.weights import WeightsError, find_weights, load, save_release
from tests.pupujepa.models import SMALL, random_mel, random_model
from tests.pupujepa.released import NAMINGS, RELEASED_ARGS, release


def assert_same(loaded: PupuJEPA, model: PupuJEPA) -> None:
    expected = model.state_dict()
    assert list(loaded.state_dict()) == list(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("naming", NAMINGS)
def test_released_layout_is_read(tmp_path, naming):
    """A released folder loads in spite of trailing commas, with the released statistics and length-exact positions."""
    folder = tmp_path / f"{naming}_tiny"
    model = release(folder, steps=(1000, 500_000))
    loaded = load(folder)
    assert_same(loaded, model)
    assert loaded.config == SMALL
    assert (loaded.config.mel_mean, loaded.config.mel_std) == (RELEASED_MEAN, RELEASED_STD)
    assert loaded.config.rope == "length_exact"
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.teacher.parameters())
    assert all(p.requires_grad for p in loaded.student.parameters())


@pytest.mark.parametrize("layout", ["flat", "released"])
def test_round_trip_is_bit_equal(tmp_path, layout):
    """Config, front end and every bit of the weights survive saving and loading, in both layouts."""
    config = ModelConfig(
        crop_frames=64,
        mel_bands=64,
        width=32,
        depth=2,
        heads=2,
        predictor_width=24,
        predictor_depth=1,
        predictor_heads=3,
        rope="clip_relative",
        mel_mean=-5.123456789012345,
        mel_std=1.9,
    )
    model = random_model(config, frontend=FrontendConfig(mel_bands=64, fmax_hz=11_000.0, floor=1e-6))
    path = save_release(model, config, tmp_path, train={"steps": 7})
    assert path == tmp_path / "model.safetensors"
    if layout == "released":
        (tmp_path / "checkpoint" / "step-0001200_loss-0.250000").mkdir(parents=True)
        path.rename(tmp_path / "checkpoint" / "step-0001200_loss-0.250000" / path.name)
    loaded = load(str(tmp_path))
    assert_same(loaded, model)
    assert loaded.config == config
    assert loaded.frontend == model.frontend
    mel = random_mel(1, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.encode(mel)[-1], model.eval().encode(mel)[-1])
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == sorted(
        ["args.json", "model.safetensors", *(["step-0001200_loss-0.250000"] if layout == "released" else [])]
    )


def test_args_are_strict_json_with_the_released_sections(tmp_path):
    """Our args.json is valid JSON, with the released fields and ours."""
    save_release(random_model(), SMALL, tmp_path, train={"steps": 7})
    args = json.loads((tmp_path / "args.json").read_text())
    released = json.loads(RELEASED_ARGS.replace(",}", "}").replace(",]", "]").replace("},\n}", "}\n}"))
    del released["model"]["note"]
    for section in ("preprocess", "model"):
        assert set(released[section]) <= set(args[section])
    assert args["preprocess"]["mel_mean"] == RELEASED_MEAN
    assert args["model"]["image_size"] == [64, 128]
    assert args["train"] == {"steps": 7}


@pytest.mark.parametrize(
    "variant",
    [
        {"structure": "frames", "patch_bands": 0},
        {"mlp": "gelu"},
        {"qk_norm": True},
        {"position_code": "learned"},
        {"predictor_objective": "mae"},
        {"patch_frames": 8, "patch_bands": 32},
    ],
    ids=lambda variant: "-".join(map(str, variant)),
)
def test_variants_make_the_round_trip(tmp_path, variant):
    """The folder describes any architecture completely."""
    config = replace(SMALL, **variant)
    model = random_model(config)
    save_release(model, config, tmp_path)
    loaded = load(tmp_path)
    assert loaded.config == config
    assert_same(loaded, model)


def told(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.name.startswith("pupujepa")]


def test_weights_are_believed_over_the_description(tmp_path, caplog):
    """args.json claims a qk_norm that the weights lack: the weights win, with one warning."""
    release(tmp_path)
    assert not load(tmp_path).config.qk_norm
    (message,) = told(caplog)
    assert message.endswith("the weights override the description: qk_norm True (they have False)")


def test_all_disagreements_are_one_warning(tmp_path, caplog):
    """The weights also decide the predictor's shape and a qk_norm that is not described."""
    config = replace(SMALL, qk_norm=True)
    save_release(random_model(config), config, tmp_path)
    args = json.loads((tmp_path / "args.json").read_text())
    args["model"] |= {"qk_norm": False, "decoder_embed_dim": 512, "decoder_depth": 8}
    (tmp_path / "args.json").write_text(json.dumps(args))
    assert load(tmp_path).config == config
    (message,) = told(caplog)
    for wrong in (
        "qk_norm False (they have True)",
        "decoder_embed_dim 512 (they have 16)",
        "decoder_depth 8 (they have 2)",
    ):
        assert wrong in message


def test_a_true_description_needs_no_word(tmp_path, caplog):
    """Our own folders load without a warning."""
    save_release(random_model(), SMALL, tmp_path)
    with caplog.at_level(logging.INFO, logger="pupujepa"):
        load(tmp_path)
    assert not told(caplog)


def test_rotary_positions_are_chosen_at_load(tmp_path):
    """length_exact unless the description says otherwise; rope= overrides either."""
    release(tmp_path / "released")
    assert load(tmp_path / "released").config == SMALL
    model = load(tmp_path / "released", rope="clip_relative")
    assert model.config == replace(SMALL, rope="clip_relative")
    save_release(model, model.config, tmp_path / "ours")
    assert load(tmp_path / "ours").config.rope == "clip_relative"
    assert load(tmp_path / "ours", rope="length_exact").config == SMALL
    mel = random_mel(1, 40, 128)
    with torch.no_grad():
        exact, released = (load(tmp_path / "ours", rope=r).encode(mel)[-1] for r in ("length_exact", "clip_relative"))
    assert (exact - released).abs().max() > 0.01
    with pytest.raises(UserError, match="rope='stretched' is unknown; choose one of length_exact, clip_relative"):
        load(tmp_path / "ours", rope="stretched")


def test_a_step_can_be_chosen_by_its_folder(tmp_path):
    """The folder of a step loads that step, described by the args.json two levels above; a parent lists its folders."""
    release(tmp_path / "tiny", steps=(1000, 2000))
    older = load(tmp_path / "tiny" / "checkpoint" / "step-0001000_loss-0.177000")
    assert_same(older, random_model(seed=1000))
    assert find_weights(tmp_path / "tiny").parent.name == "step-0002000_loss-0.177000"
    with pytest.raises(WeightsError, match="give one of its folders tiny"):
        load(tmp_path)
    with pytest.raises(WeightsError, match="is a folder, which has no revision='v1'"):
        load(tmp_path / "tiny", revision="v1")


def test_half_precision_is_widened(tmp_path):
    """Weights saved as float16 or bfloat16 load as float32, without another rounding."""
    for dtype in (torch.float16, torch.bfloat16):
        folder = tmp_path / str(dtype)
        model = release(folder)
        path = find_weights(folder)
        save_file({name: tensor.to(dtype) for name, tensor in model.state_dict().items()}, path)
        for name, tensor in load(folder).state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name].to(dtype).float())


def test_a_missing_number_of_predictor_heads_is_said(tmp_path, caplog):
    """Without decoder_num_heads the predictor has 16 heads, our choice, and the log says so."""
    config = ModelConfig(crop_frames=64, width=32, depth=3, heads=2, predictor_width=64, predictor_depth=2)
    save_release(random_model(config), config, tmp_path)
    args = json.loads((tmp_path / "args.json").read_text())
    for key in ("decoder_num_heads", "decoder_embed_dim", "decoder_depth"):
        del args["model"][key]
    (tmp_path / "args.json").write_text(json.dumps(args))
    with caplog.at_level(logging.INFO, logger="pupujepa"):
        assert load(tmp_path).config == config
    assert "taking 16, our choice" in caplog.text


def test_tensors_that_differ_are_listed(tmp_path):
    """Missing, unknown and misshapen tensors are an error that lists the first ones."""
    release(tmp_path)
    path = next(tmp_path.rglob("model.safetensors"))
    tensors = load_file(path)
    del tensors["student.blocks.1.attn.qkv.bias"]
    tensors["student.blocks.0.ls1.gamma"] = torch.zeros(32)
    tensors["teacher.norm.bias"] = torch.zeros(32, dtype=torch.int32)
    tensors["patch_embed.norm.weight"] = torch.zeros(31)
    save_file(tensors, path)
    with pytest.raises(WeightsError) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert "student.blocks.1.attn.qkv.bias is missing" in message
    assert "student.blocks.0.ls1.gamma is not part of the model" in message
    assert "teacher.norm.bias is of type torch.int32" in message
    assert "patch_embed.norm.weight has shape (31,) instead of (32,)" in message


def test_many_differences_are_counted(tmp_path):
    """A wrong depth lists six differences and the number of the others."""
    release(tmp_path, RELEASED_ARGS.replace('"depth": 3', '"depth": 4'))
    with pytest.raises(WeightsError, match=r"student\.blocks\.3\.norm1\.weight is missing.*; and 18 more"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has no section 'preprocess'"),
        (
            RELEASED_ARGS.replace('"use_swiglu": true', '"use_swiglu": false'),
            "model.use_swiglu is False, but only True",
        ),
        (RELEASED_ARGS.replace('"embed_dim": 32, ', ""), "a field is missing or malformed"),
        (RELEASED_ARGS.replace('"num_heads": 2', '"num_heads": 5', 1), "heads=5 does not divide width 32"),
        (RELEASED_ARGS.replace('"depth": 3', '"depth": "3"'), "depth is '3', not a whole number"),
        (RELEASED_ARGS.replace('"fmin": 0', '"fmin": "low"'), "a field is missing or malformed"),
        (
            RELEASED_ARGS.replace('"normalize": true', '"normalize": false'),
            "preprocess.normalize is False, but only True",
        ),
        (
            RELEASED_ARGS.replace('"layer_scale_init_value": null', '"layer_scale_init_value": 0.1'),
            r"model.layer_scale_init_value is 0\.1, but only None",
        ),
    ],
)
def test_bad_descriptions_are_refused(tmp_path, args, message):
    """An args.json of another model is an error with the reason."""
    release(tmp_path, args)
    with pytest.raises(WeightsError, match=message):
        load(tmp_path)


def test_missing_and_broken_files_are_named(tmp_path):
    """A missing folder, args.json or weights file, and truncated weights, are errors with the path."""
    with pytest.raises(WeightsError, match="is not a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match=r"holds neither model\.safetensors nor checkpoint/step-\*"):
        load(tmp_path)
    path = save_release(random_model(), SMALL, tmp_path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WeightsError, match=r"model\.safetensors cannot be read .* truncated"):
        load(tmp_path)
    (tmp_path / "args.json").unlink()
    with pytest.raises(WeightsError, match=r"args\.json is missing"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["args.json", "model.safetensors"])
def test_weights_that_cannot_be_read_now_are_not_called_truncated(tmp_path, monkeypatch, name):
    """Missing rights are told with their errno, not as a damaged copy."""
    save_release(random_model(), SMALL, tmp_path)
    open_file = Path.open

    def fail(self, *args, **kwargs):
        if self == tmp_path / name:
            raise PermissionError(13, "Permission denied", str(self))
        return open_file(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(UserError, match=rf"{name} cannot be read now \(Permission denied, errno 13\)"):
        load(tmp_path)


def test_a_misspelt_folder_is_not_asked_of_the_network(tmp_path, monkeypatch):
    """`runs/demo` beside an existing `runs` is an error at once, not a repository."""
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"runs/demo is not a folder"):
        load("runs/demo")


def test_description_of_another_model_is_not_written(tmp_path):
    """Saving with another config than the model's is an error before a file is written."""
    with pytest.raises(WeightsError, match="pass the model's own config"):
        save_release(random_model(), ModelConfig(), tmp_path)
    assert not list(tmp_path.iterdir())

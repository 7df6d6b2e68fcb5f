import json
import logging
import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

from pupujepa.frontend import RELEASED_MEAN, RELEASED_STD, FrontendConfig
from pupujepa.model import ModelConfig, PupuJEPA
from pupujepa.weights import WeightsError, load, save_release
from tests.pupujepa.models import SMALL, random_mel, random_model

# The released args.json: trailing commas, qk_norm true, nothing of ours.
RELEASED_ARGS = """{
  "preprocess": {"sample_rate": 24000, "cut_mel_frame": 64, "hop_size": 240, "n_fft": 1024, "win_size": 1024,
                 "fmin": 0, "fmax": 12000, "n_mels": 128, "normalize": true, "flip_ft": true,},
  "model": {"image_size": [64, 128,], "patch_size": [4, 16], "embed_dim": 32, "depth": 3, "num_heads": 2,
            "mlp_ratio": 4.0, "use_swiglu": true, "qk_norm": true, "norm_layer": "layer", "frequency_first": false,
            "in_chans": 1, "drop_path_rate": 0.0, "drop_path_uniform": false, "layer_scale_init_value": null,
            "decoder_embed_dim": 16, "decoder_depth": 2, "decoder_num_heads": 2, "note": "a, ] and , } in text",},
  "train": {"steps": 500000,},
}
"""


def release(directory, args: str = RELEASED_ARGS, *, steps: tuple[int, ...] = (500_000,)) -> PupuJEPA:
    """Lays a folder out as the released ones are; the newest step holds the returned model."""
    (directory / "args.json").write_text(args)
    for step in steps:
        model = random_model(seed=step)
        folder = directory / "checkpoint" / f"step-{step:07d}_loss-0.177000"
        folder.mkdir(parents=True)
        save_file(model.state_dict(), folder / "model.safetensors")
    return model


def assert_same(loaded: PupuJEPA, model: PupuJEPA) -> None:
    expected = model.state_dict()
    assert list(loaded.state_dict()) == list(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


def test_released_layout_is_read(tmp_path):
    """Trailing commas and all, a released folder loads, with the released statistics and length-exact positions."""
    model = release(tmp_path, steps=(1000, 500_000))
    loaded = load(tmp_path)
    assert_same(loaded, model)
    assert loaded.config == SMALL
    assert (loaded.config.mel_mean, loaded.config.mel_std) == (RELEASED_MEAN, RELEASED_STD)
    assert loaded.config.rope == "length_exact"
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.teacher.parameters())
    assert all(p.requires_grad for p in loaded.student.parameters())


@pytest.mark.parametrize("step", [None, 1200])
def test_round_trip_is_bit_equal(tmp_path, step):
    """Saved and loaded again, config, front end and every bit of the weights are the same, in both layouts."""
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
    path = save_release(model, config, tmp_path, step=step, loss=None if step is None else 0.25, train={"steps": 7})
    assert path.parent == (tmp_path if step is None else tmp_path / "checkpoint" / "step-0001200_loss-0.250000")
    loaded = load(str(tmp_path))
    assert_same(loaded, model)
    assert loaded.config == config
    assert loaded.frontend == model.frontend
    mel = random_mel(1, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.encode(mel)[-1], model.eval().encode(mel)[-1])
    assert not list(tmp_path.rglob("*.partial"))


def test_args_are_strict_json_with_the_released_sections(tmp_path):
    """What we write any JSON reader reads, with the released fields and ours beside them."""
    save_release(random_model(), SMALL, tmp_path, train={"steps": 7})
    args = json.loads((tmp_path / "args.json").read_text())
    released = json.loads(RELEASED_ARGS.replace(",}", "}").replace(",]", "]").replace("},\n}", "}\n}"))
    del released["model"]["note"]
    for section in ("preprocess", "model"):
        assert set(released[section]) <= set(args[section])
    assert args["preprocess"]["mel_mean"] == RELEASED_MEAN
    assert args["model"]["image_size"] == [64, 128]
    assert args["train"] == {"steps": 7}


def test_weights_are_believed_over_qk_norm(tmp_path, caplog):
    """args.json claims qk_norm; the file has none; the weights win and the log says so once."""
    release(tmp_path)
    with caplog.at_level(logging.INFO, logger="pupujepa.weights"):
        load(tmp_path)
    told = [record.message for record in caplog.records if "qk_norm" in record.message]
    assert len(told) == 1
    assert "the weights are believed" in told[0]


def test_a_missing_number_of_predictor_heads_is_said(tmp_path, caplog):
    """Without decoder_num_heads the predictor has 16 heads, our choice, and the log says so."""
    config = ModelConfig(crop_frames=64, width=32, depth=3, heads=2, predictor_width=64, predictor_depth=2)
    save_release(random_model(config), config, tmp_path)
    args = json.loads((tmp_path / "args.json").read_text())
    for key in ("decoder_num_heads", "decoder_embed_dim", "decoder_depth"):
        del args["model"][key]
    (tmp_path / "args.json").write_text(json.dumps(args))
    with caplog.at_level(logging.INFO, logger="pupujepa.weights"):
        assert load(tmp_path).config == config
    assert "taking 16, our choice" in caplog.text


def test_tensors_that_differ_are_listed(tmp_path):
    """Missing, unknown and misshapen tensors are an error that lists the first of them."""
    release(tmp_path)
    path = next(tmp_path.rglob("model.safetensors"))
    tensors = load_file(path)
    del tensors["student.blocks.1.attn.qkv.bias"]
    tensors["student.blocks.0.attn.q_norm.weight"] = torch.zeros(16)
    tensors["patch_embed.norm.weight"] = torch.zeros(31)
    save_file(tensors, path)
    with pytest.raises(WeightsError) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert "student.blocks.1.attn.qkv.bias is missing" in message
    assert "student.blocks.0.attn.q_norm.weight is not part of the model" in message
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
    ],
)
def test_bad_descriptions_are_refused(tmp_path, args, message):
    """An args.json that cannot be this model says why."""
    release(tmp_path, args)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_missing_and_broken_files_are_named(tmp_path):
    """No folder, no args.json, no weights, cut weights: each says what is wrong and where."""
    with pytest.raises(WeightsError, match="is no folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match=r"holds neither model\.safetensors nor checkpoint/step-\*"):
        load(tmp_path)
    path = save_release(random_model(), SMALL, tmp_path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WeightsError, match=r"model\.safetensors cannot be read .* cut short"):
        load(tmp_path)
    (tmp_path / "args.json").unlink()
    with pytest.raises(WeightsError, match=r"args\.json is missing"):
        load(tmp_path)


def test_a_misspelt_folder_is_not_asked_of_the_network(tmp_path, monkeypatch):
    """`runs/demo` beside an existing `runs` is an error at once, not a repository."""
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"runs/demo is no folder"):
        load("runs/demo")


def test_description_of_another_model_is_not_written(tmp_path):
    """Saving under a config that is not the model's is refused before a file is written."""
    with pytest.raises(WeightsError, match="pass the model's own config"):
        save_release(random_model(), ModelConfig(), tmp_path)
    assert not list(tmp_path.iterdir())


def fake_hub(monkeypatch, snapshot_download) -> None:
    """Puts a hub client in the place of huggingface_hub."""
    hub, errors = ModuleType("huggingface_hub"), ModuleType("huggingface_hub.errors")
    hub.snapshot_download = snapshot_download
    errors.HfHubHTTPError = type("HfHubHTTPError", (OSError,), {})
    errors.LocalEntryNotFoundError = type("LocalEntryNotFoundError", (OSError,), {})
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)


def test_hub_ids_are_downloaded(tmp_path, monkeypatch):
    """owner/repository/folder asks the hub for that folder's two files and loads them."""
    folder = tmp_path / "pupujepaV2_25hz_tiny"
    folder.mkdir()
    model = release(folder)
    asked = []

    def snapshot_download(repository, *, allow_patterns):
        asked.append((repository, allow_patterns))
        return str(tmp_path)

    fake_hub(monkeypatch, snapshot_download)
    assert_same(load("owner/weights/pupujepaV2_25hz_tiny"), model)
    name = "pupujepaV2_25hz_tiny"
    patterns = [f"{name}/args.json", f"{name}/model.safetensors", f"{name}/checkpoint/*/model.safetensors"]
    assert asked == [("owner/weights", patterns)]


def test_hub_failures_are_one_sentence(monkeypatch):
    """What the hub refuses, and a missing client, are errors that say what to do."""

    def snapshot_download(repository, *, allow_patterns):
        raise sys.modules["huggingface_hub.errors"].HfHubHTTPError("404 for owner/weights")

    fake_hub(monkeypatch, snapshot_download)
    with pytest.raises(WeightsError, match="the hub does not give it either: 404 for owner/weights"):
        load("owner/weights")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r"needs huggingface_hub: pip install 'pupujepa\[hub\]'"):
        load("owner/weights")

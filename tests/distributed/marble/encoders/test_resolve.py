from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file

from distributed.marble.encoders.hidden_states import Description, HiddenStates, HowToEncode, spread_layers
from distributed.marble.encoders.resolve import resolve_encoders, supports
from distributed.marble.tasks.tasks import TASKS
from pupujepa.audio.log_mel import log_mel, normalise
from pupujepa.embedding.encoder import Encoder
from pupujepa.embedding.readout import pool_region
from pupujepa.errors import UserError
from pupujepa.model.model import PupuJEPA
from pupujepa.weights.weights import load, save_release

ROOT = Path(__file__).resolve().parents[4]

FP32 = HowToEncode(precision="fp32")
ROWS = {t.name: t for t in TASKS}


def audio(frames: int) -> torch.Tensor:
    return 0.1 * torch.randn(2, frames * 240, generator=torch.Generator().manual_seed(0))


def test_features_are_the_teachers_states_crop_by_crop(run_folder: Path):
    """A slice of two crops and a rest gives all layers and their time mean, each crop encoded alone."""
    [encoder] = resolve_encoders([str(run_folder)], FP32)
    audio_BS = audio(64 + 64 + 32)
    features = encoder.embed(audio_BS, frame_layers=(0, 2))
    model = load(run_folder / "export")
    mel_BTF = normalise(log_mel(audio_BS), model.config.mel_mean, model.config.mel_std)
    reference = Encoder(model)
    crops = [reference.encode_mel(mel_BTF[:, start:stop]) for start, stop in ((0, 64), (64, 128), (128, 160))]
    states = [torch.cat(layer, dim=1) for layer in zip(*crops, strict=True)]
    assert features.frames_BMTD is not None
    torch.testing.assert_close(features.frames_BMTD[:, 0], states[0])
    torch.testing.assert_close(features.frames_BMTD[:, 1], states[2])
    torch.testing.assert_close(features.pooled_BLD, torch.stack([s.mean(1) for s in states], dim=1))
    assert features.pooled_BLD.shape == (2, 3, 8 * 16)
    assert encoder.frame_rate_hz == 25.0


def test_random_init_is_the_same_network_untrained(run_folder: Path):
    """random_init has the run's shape, layers and front end; only weights and digest differ."""
    trained, untrained = resolve_encoders([str(run_folder), "random_init"], FP32)
    assert (trained.name, untrained.name) == ("tiny", "random_init")
    assert trained.layer_names == untrained.layer_names == ("patch embedding", "block 1", "last block, normed")
    assert trained.front_end == untrained.front_end
    assert trained.digest != untrained.digest
    again = resolve_encoders([str(run_folder), "random_init"], FP32)[1]
    audio_BS = audio(64)
    features = [e.embed(audio_BS, frame_layers=()).pooled_BLD for e in (trained, untrained, again)]
    assert torch.equal(features[1], features[2])
    assert not torch.allclose(features[0], features[1])


def test_the_digest_tells_apart_what_changes_features(run_folder: Path):
    """Teacher and student, bf16 and fp32 never share a feature cache."""
    ways = [FP32, HowToEncode(precision="bf16"), HowToEncode(which="student", precision="fp32")]
    encoders = [resolve_encoders([str(run_folder)], how)[0] for how in ways]
    assert len({e.digest for e in encoders}) == 3
    assert encoders[2].name == "tiny:student"


def test_bf16_features_stay_close(run_folder: Path):
    """Autocast changes features by its rounding, no more."""
    exact, rounded = (
        resolve_encoders([str(run_folder)], HowToEncode(precision=p))[0].embed(audio(64), frame_layers=()).pooled_BLD
        for p in ("fp32", "bf16")
    )
    assert rounded.dtype == torch.float32
    assert ((exact - rounded).norm() / exact.norm()) < 0.02


def test_each_encoder_states_what_it_can_be_asked(run_folder: Path):
    """Chroma supports key tasks only; other encoders have frames."""
    encoders = resolve_encoders([str(run_folder), "random_init", "log_mel", "chroma"], FP32)
    able = {e.name: [name for name, task in ROWS.items() if supports(e, task)] for e in encoders}
    assert able["chroma"] == ["key"]
    assert able["tiny"] == able["random_init"] == able["log_mel"] == list(ROWS)


def test_a_folder_without_weights_names_the_remedy(tmp_path: Path):
    with pytest.raises(UserError, match=r"no model.safetensors in .*python -m distributed export"):
        resolve_encoders([str(tmp_path)], FP32)


def test_random_init_needs_something_to_copy():
    with pytest.raises(UserError, match=r"none is given.*--encoders"):
        resolve_encoders(["random_init", "log_mel"], FP32)


def test_two_encoders_of_one_name_are_refused(run_folder: Path):
    with pytest.raises(UserError, match="two encoders are called 'log_mel'"):
        resolve_encoders(["log_mel", str(run_folder), "log_mel"], FP32)


def test_layers_for_frames_are_spread_over_the_network():
    assert spread_layers(5, 3) == (0, 2, 4)
    assert spread_layers(25, 3) == (0, 12, 24)
    assert spread_layers(2, 3) == (0, 1)
    assert spread_layers(9, 1) == (8,)


def changed_student(run_folder: Path, tmp_path: Path) -> Path:
    """A run with different student and teacher."""
    folder = tmp_path / "apart"
    copytree(run_folder, folder)
    weights = load_file(folder / "export" / "model.safetensors")
    for name, tensor in weights.items():
        if name.startswith("student.") and tensor.ndim == 2:
            weights[name] = tensor * 1.5
    save_file(weights, folder / "export" / "model.safetensors")
    return folder


def test_one_table_may_hold_a_student_and_its_teacher(run_folder: Path, tmp_path: Path):
    """The option after the folder selects teacher or student, and the name shows it."""
    folder = changed_student(run_folder, tmp_path)
    teacher, student, again = resolve_encoders(
        [str(folder), f"{folder}:student", f"{folder}:teacher:mean"], HowToEncode(precision="fp32")
    )
    assert [e.name for e in (teacher, student, again)] == ["apart", "apart:student", "apart:mean"]
    features = [e.embed(audio(64), frame_layers=()).pooled_BLD for e in (teacher, student)]
    assert not torch.allclose(features[0], features[1])
    assert len({teacher.digest, student.digest, again.digest}) == 3


def test_readouts_are_those_of_the_embedding(run_folder: Path):
    """mean and region equal the embedding readouts of every layer; regions in time have no frames."""
    specs = [f"{run_folder}{suffix}" for suffix in ("", ":mean", ":region:4x1", ":region:8x1", ":region:2x3")]
    encoders = resolve_encoders(specs, FP32)
    frames, mean, quarter, whole, region = (
        e.embed(audio(64 + 32), frame_layers=(0, 2) if e.frame_rate_hz else ()) for e in encoders
    )
    assert [e.frame_rate_hz for e in encoders] == [25.0, 25.0, 25.0, 25.0, None]
    assert frames.frames_BMTD is not None and mean.frames_BMTD is not None and quarter.frames_BMTD is not None
    grid = frames.frames_BMTD.unflatten(-1, (8, 16))
    torch.testing.assert_close(mean.frames_BMTD, grid.mean(-2))
    torch.testing.assert_close(mean.pooled_BLD[:, 2], grid[:, 1].mean((1, 2)))
    torch.testing.assert_close(quarter.frames_BMTD, grid.unflatten(-2, (4, 2)).mean(-2).flatten(-2))
    torch.testing.assert_close(whole.pooled_BLD, frames.pooled_BLD)
    assert region.frames_BMTD is None
    tokens_BND = grid[:, 1].flatten(1, 2)
    expected = pool_region(tokens_BND, bands=8, frequency_blocks=2, time_blocks=3)
    torch.testing.assert_close(region.pooled_BLD[:, 2], expected)
    assert not supports(encoders[-1], ROWS["beats"]) and supports(encoders[-1], ROWS["key"])


def test_weights_are_found_wherever_they_lie(run_folder: Path, tmp_path: Path):
    """A run, its export, the file, a release and a step of it give equal features; only the newest step counts."""
    model = load(run_folder / "export")
    release = tmp_path / "pupujepaV2_25hz_small"
    for step in (1000, 2000):
        path = save_release(PupuJEPA(model.config, seed=9) if step == 1000 else model, model.config, release)
        folder = release / "checkpoint" / f"step-{step:07d}"
        folder.mkdir(parents=True)
        path.rename(folder / path.name)
    specs = [run_folder, run_folder / "export", run_folder / "export" / "model.safetensors", release]
    specs.append(release / "checkpoint" / "step-0002000")
    found = [resolve_encoders([str(s)], FP32)[0] for s in specs]
    assert [e.name for e in found] == ["tiny", "tiny", "tiny", "pupujepaV2_25hz_small", "step-0002000"]
    features = [e.embed(audio(64), frame_layers=()).pooled_BLD for e in found]
    assert all(torch.equal(features[0], f) for f in features[1:])
    assert len({e.digest for e in found[:3]}) == 1
    [older] = resolve_encoders([str(release / "checkpoint" / "step-0001000")], FP32)
    assert not torch.equal(older.embed(audio(64), frame_layers=()).pooled_BLD, features[0])


def test_random_init_has_a_readout_too(run_folder: Path):
    """The baseline of a readout is the untrained network with the same readout."""
    _, plain, mean = resolve_encoders([str(run_folder), "random_init", "random_init:mean"], FP32)
    assert mean.name == "random_init:mean"
    torch.testing.assert_close(
        mean.embed(audio(64), frame_layers=()).pooled_BLD,
        plain.embed(audio(64), frame_layers=()).pooled_BLD.unflatten(-1, (8, 16)).mean(-2),
    )


def test_what_cannot_be_understood_is_refused(run_folder: Path):
    with pytest.raises(
        UserError, match=r"'flat' is not a readout \(frames, mean, region:FxT\) and 'mrt' is not an adapter"
    ):
        resolve_encoders(["mrt:flat"], FP32)
    with pytest.raises(UserError, match="region:9x1 needs 1 to 8 blocks"):
        resolve_encoders([f"{run_folder}:region:9x1"], FP32)


def test_adding_an_encoder_is_one_file(tmp_path: Path):
    """The example of the documentation, saved as a user's file, is an encoder."""
    text = (ROOT / "docs" / "encoders.md").read_text()
    example = text.split("```python\n")[1].split("```")[0]
    (tmp_path / "my_encoder.py").write_text(example)
    torch.save({"weight": torch.eye(4, 480), "bias": torch.zeros(4)}, tmp_path / "filters.pt")
    spec = f"{tmp_path / 'my_encoder.py'}:{tmp_path / 'filters.pt'}"
    [encoder] = resolve_encoders([spec], FP32)
    features = encoder.embed(torch.ones(2, 16_000), frame_layers=(0, 1))
    assert features.pooled_BLD.shape == (2, 2, 4)
    assert features.frames_BMTD is not None and features.frames_BMTD.shape[2] == 16_000 // 480
    assert encoder.frame_rate_hz == pytest.approx(100 / 3)
    before = encoder.digest
    torch.save({"weight": 2 * torch.eye(4, 480), "bias": torch.zeros(4)}, tmp_path / "filters.pt")
    assert resolve_encoders([spec], FP32)[0].digest != before


def test_a_file_that_gives_no_encoder_says_what_it_lacks(tmp_path: Path):
    file = tmp_path / "mine.py"
    with pytest.raises(UserError, match="there is no file"):
        resolve_encoders([str(file)], FP32)
    file.write_text("x = 1\n")
    with pytest.raises(UserError, match="has no function open_encoder"):
        resolve_encoders([str(file)], FP32)
    file.write_text("class E:\n    name = digest = 'e'\n\ndef open_encoder(argument, how):\n    return E()\n")
    with pytest.raises(UserError, match=r"has no front_end, sample_rate_hz, .*embed, which the evaluator reads"):
        resolve_encoders([str(file)], FP32)


def test_states_and_their_names_must_agree():
    """A wrong number of states is refused: scores would have wrong layer names."""
    description = Description("e", lambda: "", "", 16_000, 25.0, ("one", "two"))
    encoder = HiddenStates(lambda audio_BS: [audio_BS[:, :, None]], description, FP32)
    with pytest.raises(UserError, match="names 2 layers but gives the states of 1"):
        encoder.embed(audio(64), frame_layers=())


def test_positions_and_window_are_part_of_how_a_model_is_looked_at(run_folder):
    """The default window is the trained length; at twice the length the two layouts differ."""
    window = 2 * resolve_encoders([str(run_folder)], FP32)[0].model.config.crop_frames
    words = ["", f":window={window}", f":rope=clip_relative:window={window}"]
    encoders = resolve_encoders([f"{run_folder}{word}" for word in words], FP32)
    assert [e.name.partition(":")[2] for e in encoders] == [word[1:] for word in words]
    assert len({e.digest for e in encoders}) == 3
    plain, exact, stretched = (e.embed(audio(window), frame_layers=()).pooled_BLD for e in encoders)
    torch.testing.assert_close(exact[:, 0], plain[:, 0])  # the patch embedding knows no positions
    assert not torch.allclose(exact[:, -1], plain[:, -1])
    assert not torch.allclose(exact[:, -1], stretched[:, -1])
    with pytest.raises(UserError, match="window=x is not a number of frames"):
        resolve_encoders([f"{run_folder}:window=x"], FP32)
    with pytest.raises(UserError, match="a window of 3 frames cannot be cut into patches"):
        resolve_encoders([f"{run_folder}:window=3"], FP32)

"""The room's commands, through its front door."""

import json

import matplotlib.image
import numpy as np
import pytest
import soundfile

import pupujepa
from pupujepa.__main__ import COMMANDS
from pupujepa.embed_files import fingerprint
from pupujepa.encoder import Encoder
from pupujepa.front_door import enter
from pupujepa.weights import load, save_release
from tests.pupujepa.models import SMALL, random_model


def run(*arguments: object) -> int:
    return enter("pupujepa", COMMANDS, manual="", argv=[str(a) for a in arguments])


def tone(seconds: float, rate: int = 24_000, hz: float = 330) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.fixture
def weights(tmp_path):
    save_release(random_model(), SMALL, tmp_path / "weights")
    return tmp_path / "weights"


@pytest.fixture
def songs(tmp_path):
    folder = tmp_path / "songs"
    (folder / "live").mkdir(parents=True)
    soundfile.write(folder / "a.wav", tone(1.0), 24_000)
    soundfile.write(folder / "a.flac", tone(0.5, 44_100), 44_100)
    soundfile.write(folder / "live" / "b.ogg", tone(0.8, 16_000), 16_000)
    (folder / "notes.txt").write_text("not audio")
    return folder


def test_embed_writes_what_the_library_gives(weights, songs, tmp_path, capsys):
    """Each audio file in a folder becomes one .npz at the same place, with the encoder's own values."""
    assert run("embed", weights, songs, "--out", tmp_path / "out", "--device", "cpu") == 0
    written = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*"))
    assert written == ["a.flac.npz", "a.wav.npz", "live/b.ogg.npz"]
    expected = Encoder(load(weights)).encode(songs / "a.wav", layers=[-1])
    with np.load(tmp_path / "out" / "a.wav.npz") as file:
        np.testing.assert_array_equal(file["values"], expected.values)
        np.testing.assert_array_equal(file["times_s"], expected.times_s)
        assert file["layers"].tolist() == [3]
        assert json.loads(str(file["settings"]))["readout"] == "frames"
    assert "3 files embedded" in capsys.readouterr().err


def test_embed_continues_where_it_stopped(weights, songs, tmp_path, capsys):
    """Finished files are kept as they are; a missing one is made again; nothing is computed twice."""
    arguments = ("embed", weights, songs, "--out", tmp_path / "out", "--readout", "mean", "--device", "cpu")
    assert run(*arguments) == 0
    kept = tmp_path / "out" / "a.wav.npz"
    before = kept.stat().st_mtime_ns
    (tmp_path / "out" / "a.flac.npz").unlink()
    capsys.readouterr()
    assert run(*arguments) == 0
    assert "3 files: 2 already embedded, 1 to do" in capsys.readouterr().err
    assert kept.stat().st_mtime_ns == before
    assert (tmp_path / "out" / "a.flac.npz").is_file()


def test_embed_lists_failures_and_says_so_to_the_shell(weights, songs, tmp_path, capfd):
    """A corrupt file does not stop the others; it is named at the end and the exit code is 1."""
    (songs / "bad.wav").write_bytes(b"RIFFnonsense")
    soundfile.write(songs / "short.wav", tone(0.01), 24_000)
    assert run("embed", weights, songs, "--out", tmp_path / "out", "--device", "cpu") == 1
    told = capfd.readouterr().err
    assert "failed: " in told
    assert "bad.wav: cannot be decoded" in told
    assert "short.wav: 10.0 ms of audio is shorter than one patch" in told
    assert len(list((tmp_path / "out").rglob("*.npz"))) == 3


def test_embed_refuses_to_mix_settings(weights, songs, tmp_path, capsys):
    """Vectors of another readout or other weights are not mixed in unless asked for."""
    base = ("embed", weights, songs, "--out", tmp_path / "out", "--device", "cpu")
    assert run(*base) == 0
    assert run(*base, "--readout", "mean") == 2
    assert "was made with another readout; choose another --out, or pass --overwrite" in capsys.readouterr().err
    assert run(*base, "--readout", "mean", "--overwrite") == 0
    with np.load(tmp_path / "out" / "a.wav.npz") as file:
        assert file["values"].shape == (1, SMALL.width)
    save_release(random_model(seed=9), SMALL, tmp_path / "other")
    assert run("embed", tmp_path / "other", *base[2:], "--readout", "mean") == 2
    assert "made with another weights" in capsys.readouterr().err


def test_embed_refuses_wrong_inputs(weights, songs, tmp_path, capsys):
    """A missing file, an empty folder, clashing names and a wrong readout are each one sentence and exit code 2."""
    (tmp_path / "empty").mkdir()
    soundfile.write(tmp_path / "a.wav", tone(0.5), 24_000)
    cases = {
        "no such file or folder": (tmp_path / "nowhere.wav",),
        "holds no audio files": (tmp_path / "empty",),
        "would both be written to": (tmp_path / "a.wav", songs / "a.wav"),
        "readout 'median' is unknown": (songs, "--readout", "median"),
        "layer 7 does not exist": (songs, "--layers", "7"),
    }
    for message, inputs in cases.items():
        assert run("embed", weights, *inputs, "--out", tmp_path / "out", "--device", "cpu") == 2
        told = capsys.readouterr().err
        assert message in told
        assert "error: " in told


def test_fingerprints_tell_models_apart():
    """Other weights, another rotary mode or another front end have another fingerprint; the same model has the same."""
    config = type(SMALL)(**{**SMALL.__dict__, "rope": "clip_relative"})
    prints = {fingerprint(model) for model in (random_model(), random_model(seed=2), random_model(config))}
    assert len(prints) == 3
    assert fingerprint(random_model()) in prints


def test_attend_draws_a_picture(weights, songs, tmp_path, capsys):
    """The command writes a PNG of plausible size and says from how many patches it looked."""
    out = tmp_path / "pictures" / "a.png"
    assert run("attend", weights, songs / "a.wav", "--out", out, "--time", 0.2, 0.28, "--bands", 0, 2) == 0
    image = matplotlib.image.imread(out)
    assert min(image.shape[:2]) > 300
    assert len(np.unique(image.reshape(-1, image.shape[-1]), axis=0)) > 100
    assert "6 patches looked from" in capsys.readouterr().err


def test_attend_refuses_regions_outside_the_crop(weights, songs, tmp_path, capsys):
    """Regions and starts that the audio does not have are errors."""
    base = ("attend", weights, songs / "a.wav", "--out", tmp_path / "a.png")
    assert run(*base, "--time", 0.5, 9) == 2
    assert "region 0.5-9 s does not lie in the crop of 0-0.64 s" in capsys.readouterr().err
    assert run(*base, "--bands", 3, 8) == 2
    assert "bands 3 to 8 do not lie in 0 to 7" in capsys.readouterr().err
    assert run(*base, "--start", 0.99) == 2
    assert "less than two patches of audio" in capsys.readouterr().err


def test_info_tells_the_counts(weights, capsys):
    """A size by name and a folder of weights are described; the numbers are the model's."""
    assert run("info", "large") == 0
    told = capsys.readouterr().out
    assert "403,073,024" in told
    assert "256 steps x 8 bands = 2048 tokens, 25 steps/s" in told
    assert "410 context, 1638 targets" in told
    assert run("info", weights) == 0
    assert f"{sum(p.numel() for p in random_model().student.parameters()):,}" in capsys.readouterr().out


def test_info_offers_the_nearest_size(capsys):
    """A misspelt size is one sentence with the right one."""
    assert run("info", "larg") == 2
    assert "did you mean large" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["embed", "attend", "info"])
def test_help_teaches_by_example(command, capsys):
    """The help of each command shows how it is typed."""
    with pytest.raises(SystemExit) as end:
        run(command, "--help")
    assert end.value.code == 0
    assert f"python -m pupujepa {command}" in capsys.readouterr().out


def test_the_package_offers_its_main_names():
    """load, Encoder, PupuJEPA and ModelConfig come from the package itself; other names are errors."""
    assert pupujepa.load is load
    assert pupujepa.Encoder is Encoder
    assert pupujepa.ModelConfig is type(SMALL)
    assert pupujepa.PupuJEPA.__module__ == "pupujepa.model"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = pupujepa.nonsense

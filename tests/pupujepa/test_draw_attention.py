"""The attend command."""

import matplotlib.image
import numpy as np

from tests.pupujepa.commands import run


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

import pytest
import soundfile

from pupujepa.model.model import PupuJEPA
from pupujepa.weights.weights import save_release
from tests.pupujepa.models import SMALL, random_model
from tests.pupujepa.tones import tone


@pytest.fixture
def small_model() -> PupuJEPA:
    """A model with a grid of 16 x 8 and random weights; a fresh one for each test."""
    return random_model()


@pytest.fixture
def weights(tmp_path):
    """A folder of weights of the small model."""
    save_release(random_model(), SMALL, tmp_path / "weights")
    return tmp_path / "weights"


@pytest.fixture
def songs(tmp_path):
    """Three audio files of three formats and rates, one of them in a subfolder, and a file that is not audio."""
    folder = tmp_path / "songs"
    (folder / "live").mkdir(parents=True)
    soundfile.write(folder / "a.wav", tone(1.0), 24_000)
    soundfile.write(folder / "a.flac", tone(0.5, 44_100), 44_100)
    soundfile.write(folder / "live" / "b.ogg", tone(0.8, 16_000), 16_000)
    (folder / "notes.txt").write_text("not audio")
    return folder

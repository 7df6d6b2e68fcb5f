import pytest

from pupujepa.model import PupuJEPA
from tests.pupujepa.models import random_model


@pytest.fixture
def small_model() -> PupuJEPA:
    """A model with a grid of 16 x 8 and random weights; a fresh one for each test."""
    return random_model()

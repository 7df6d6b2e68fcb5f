"""A small corpus and a small model, made once for all tests of the evaluator."""

from pathlib import Path

import pytest

from pupujepa.model.model import ModelConfig, PupuJEPA
from pupujepa.weights.weights import save_release
from tests.distributed.marble.corpora import Recipe, make_corpus


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pieces of 10.24 s with all labels."""
    return make_corpus(tmp_path_factory.mktemp("corpus") / "tones", Recipe())


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with the export of a tiny network (8 bands of 16, two blocks)."""
    config = ModelConfig(
        crop_frames=64, width=16, depth=2, heads=2, predictor_width=16, predictor_depth=1, predictor_heads=2
    )
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    save_release(PupuJEPA(config, seed=3), config, folder / "export")
    return folder

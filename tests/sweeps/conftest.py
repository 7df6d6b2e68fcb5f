"""Small shards and a small labelled corpus for all tests of sweeps, and sweeps that run a stand-in command."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.data.shardsets import build_shard_set
from tests.distributed.marble.corpora import Recipe, make_corpus

PRESET = Path(__file__).parents[1] / "distributed" / "small.yaml"
STAND_IN = Path(__file__).with_name("stand_in.py")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training split of a shard set."""
    folder = tmp_path_factory.mktemp("shards") / "train"
    build_shard_set(str(folder), (8, 8, 8, 8), num_frames=lambda number: 64 + number % 9)
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen labelled pieces of 10.24 s."""
    return make_corpus(tmp_path_factory.mktemp("labelled") / "corpus", Recipe())


@pytest.fixture
def write_sweep(tmp_path: Path) -> Callable[..., Path]:
    """Writes a sweep file: the smallest preset, the task collection, 5 steps, and what is given."""

    def write(**fields) -> Path:
        sweep = {"base": {"preset": str(PRESET)}, "tasks": ["collection"], "budget": {"steps": 5}} | fields
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(sweep))
        return path

    return write


@pytest.fixture
def stand_in_commands(tmp_path: Path) -> dict[str, list[str]]:
    """Argv templates of the stand-in; it behaves once `tmp_path/behave` exists."""
    return {
        phase: ["{python}", str(STAND_IN), phase, "{run_dir}", str(tmp_path / "behave"), "{overrides}"]
        for phase in ("train", "evaluate")
    }

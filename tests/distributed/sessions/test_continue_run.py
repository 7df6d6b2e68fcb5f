"""Before training starts: the generation is taken, and the checkpoints will fit and may be written."""

import shutil
from collections import namedtuple
from types import SimpleNamespace

import pytest

from distributed.checkpoints.config import CheckpointConfig
from distributed.checkpoints.manifest import CheckpointError
from distributed.processes.topology import Topology
from distributed.run.directory import RunDirectory
from distributed.sessions import continue_run as module
from distributed.sessions.continue_run import begin_generation, open_checkpoints, require_disk_space
from pupujepa.errors import UserError
from pupujepa.model.model import ModelConfig, PupuJEPA
from pupujepa.training.objective import ObjectiveConfig, TrainingStep

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def session(tmp_path):
    def make(**settings):
        experiment = SimpleNamespace(checkpoint=CheckpointConfig(**settings))
        return SimpleNamespace(experiment=experiment, directory=RunDirectory(tmp_path / "run"), topology=Topology())

    return make


@pytest.fixture(scope="module")
def step():
    small = {"crop_frames": 64, "width": 32, "depth": 2, "heads": 2}
    predictor = {"predictor_width": 16, "predictor_depth": 1, "predictor_heads": 1}
    model = PupuJEPA(ModelConfig(**small, **predictor), seed=0)
    return TrainingStep(model, ObjectiveConfig(target_layers=2), None)


def free(monkeypatch, mib):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(0, 0, mib << 20))


def test_each_start_takes_a_generation_that_its_checkpoints_carry(session):
    """The second start of a run is generation 2, and says so in the manifest."""
    for generation in (1, 2):
        here = session()
        store = open_checkpoints(here)
        begin_generation(here, store)
        saved = store.save(5 * generation, lambda directory: (directory / "a").write_text("a") and None, {})
        assert saved.facts["generation"] == generation


def test_a_disk_that_will_be_full_is_said_before_training(session, step, monkeypatch):
    """Three checkpoints (two stay, one more while it is written) must fit, those that are there taken off."""
    here = session(keep=2)
    store = open_checkpoints(here)
    size_mib = module._expected_bytes(step) / 2**20
    free(monkeypatch, 3 * int(size_mib) + 4)
    require_disk_space(here, store, step)
    free(monkeypatch, 1)
    with pytest.raises(
        CheckpointError, match=r"1 MiB free, and 3 more of \d+ MiB each must fit.*lower checkpoint.keep"
    ):
        require_disk_space(here, store, step)
    for number in (5, 10):
        store.save(number, lambda directory: (directory / "a").write_bytes(b"a" * (3 << 20)) and None, {})
    with pytest.raises(CheckpointError, match="1 MiB free, and 1 more of 3 MiB each must fit"):
        require_disk_space(here, store, step)


def test_the_expected_size_is_that_of_a_checkpoint(step):
    """16 bytes a trained number and 4 a number of the teacher, to a few per cent of what torch writes for it."""
    trained = sum(p.numel() for p in step.parameters())
    teacher = sum(p.numel() for p in step.student.parameters())
    assert module._expected_bytes(step) == 16 * trained + 4 * teacher + 2**20


def test_a_folder_that_cannot_be_written_to_is_said_before_training(session, step):
    """A file where the folder should be stands for a refusal that root meets too."""
    here = session()
    here.directory.root.mkdir(parents=True)
    here.directory.checkpoints.write_text("in the way")
    with pytest.raises(CheckpointError, match="checkpoints cannot be made: File exists"):
        require_disk_space(here, open_checkpoints(here), step)
    (here.directory.root / "generations").write_text("in the way")
    with pytest.raises(UserError, match="generations"):
        begin_generation(here, open_checkpoints(here))


def test_nothing_is_left_of_the_look(session, step):
    """The probe of the folder leaves no file behind."""
    here = session()
    require_disk_space(here, open_checkpoints(here), step)
    assert list(here.directory.checkpoints.iterdir()) == []
    shutil.rmtree(here.directory.root)

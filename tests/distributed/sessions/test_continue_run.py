"""Before training starts: the generation is taken, and the checkpoints will fit and may be written."""

import errno
import shutil
from collections import namedtuple
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from distributed.checkpoints.config import CheckpointConfig
from distributed.checkpoints.manifest import CheckpointError
from distributed.experiment import load_experiment
from distributed.processes.topology import Topology
from distributed.run.directory import RunDirectory, RunDirectoryError
from distributed.sessions import continue_run as module
from distributed.sessions.continue_run import SameRun, begin_generation, open_checkpoints, require_disk_space
from pupujepa.config import to_yaml
from pupujepa.errors import UserError
from pupujepa.model.model import ModelConfig, PupuJEPA
from pupujepa.training.objective import ObjectiveConfig, TrainingStep
from tests.distributed.launch import PRESET

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


@pytest.fixture
def start(tmp_path):
    """A start of a run in `tmp_path / "run"`, and its experiment."""

    def make(*overrides, fresh=False):
        experiment = load_experiment([str(PRESET)], overrides=["stream.url=/shards", *overrides])
        return SameRun(RunDirectory(tmp_path / "run"), experiment, fresh=fresh), experiment

    return make


def written_by(experiment, run):
    """What another start has written by now."""
    run.root.mkdir(exist_ok=True)
    run.config.write_text(to_yaml(experiment))


OTHER = ("train.seed=5", "schedule.peak_lr=0.001")
DIFFERENCES = r"run holds another run: schedule\.peak_lr: 0\.002 -> 0\.001; train\.seed: 0 -> 5; continuing would mix"


@pytest.mark.parametrize("running", [True, False])
def test_two_starts_at_once_do_not_mix_two_experiments(start, tmp_path, running):
    """Both saw an empty directory; the second is refused with the keys, whether the first runs or has ended."""
    run = RunDirectory(tmp_path / "run")
    (first, experiment), (second, _) = start(), start(*OTHER)
    first.check()
    second.check()
    with ExitStack() as of_first, ExitStack() as of_second:
        if running:
            first.lock(of_first)
        written_by(experiment, run)
        with pytest.raises(RunDirectoryError, match=DIFFERENCES):
            second.lock(of_second)
    assert [path.name for path in run.root.iterdir()] == ["config.yaml"]


def test_two_fresh_starts_at_once_are_one(start, tmp_path):
    """--fresh is asked again with the lock: the second start does not continue the run of the first."""
    (first, experiment), (second, _) = start(fresh=True), start(fresh=True)
    with ExitStack() as stack:
        first.lock(stack)
        second.check()
    written_by(experiment, RunDirectory(tmp_path / "run"))
    with ExitStack() as stack, pytest.raises(RunDirectoryError, match="--fresh was asked for, but"):
        second.lock(stack)


def test_the_second_of_two_equal_starts_continues_with_the_precision_of_the_first(start, tmp_path):
    """Neither "auto" nor a free key is a difference; what the first start chose is kept."""
    (second, _), (_, chosen) = start("engine.precision=auto"), start("engine.precision=bf16", "checkpoint.every=3")
    assert second.check().engine.precision == "auto"
    written_by(chosen, RunDirectory(tmp_path / "run"))
    with ExitStack() as stack:
        assert second.lock(stack).engine.precision == "bf16"


def test_a_configuration_that_cannot_be_read_now_is_no_new_run(start, tmp_path, monkeypatch):
    """A stale handle of config.yaml stops the start, with the errno; nothing is begun over the run."""
    run = RunDirectory(tmp_path / "run")
    first, experiment = start()
    written_by(experiment, run)

    def fail(self):
        raise OSError(errno.ESTALE, "Stale file handle", str(self))

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(UserError, match=r"config\.yaml cannot be read now \(Stale file handle, errno 116\)"):
        first.check()


def test_a_running_writer_is_named(start, tmp_path, monkeypatch):
    """The same experiment, still running: the second start waits its time, and says who writes."""
    monkeypatch.setattr("distributed.run.directory.WRITER_WAIT_S", 0.0)
    (first, _), (second, _) = start(), start()
    refused = pytest.raises(RunDirectoryError, match=r"run is being written by process \d+ on ")
    with ExitStack() as stack:
        first.lock(stack)
        with refused:
            second.lock(stack)

"""A run chooses its precision once, by its hardware, says so, and keeps it wherever it continues."""

import subprocess
import sys

import pytest
import yaml

from distributed.experiment import load_experiment
from distributed.run.directory import RunDirectory
from distributed.sessions.continue_run import SameRun
from distributed.sessions.history import keep_precision
from tests.distributed.launch import ROOT, TIMEOUT_S, environment, interrupted_copy, launch, losses, train_command

WITHOUT_BF16 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def train(run_dir, shards, *overrides, **variables):
    """Trains to the end and returns the log."""
    done = subprocess.run(
        train_command(run_dir, shards, *overrides),
        check=False,
        env=environment() | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def engine_of(run_dir):
    return yaml.safe_load(RunDirectory(run_dir).config.read_text())["engine"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory, shards):
    """A run with engine.precision=auto that began on a processor without bf16, and its log."""
    run_dir = tmp_path_factory.mktemp("begun") / "run"
    return run_dir, train(run_dir, shards, "engine.precision=auto", **WITHOUT_BF16)


def test_the_choice_and_its_reason_are_logged_and_kept(begun):
    """One line of the log and two of config.yaml hold them."""
    run_dir, log = begun
    assert log.count("has no bf16 instructions") == 1
    assert "stage 1, fp32 (the processor" in log
    engine = engine_of(run_dir)
    assert engine["precision"] == "fp32"
    assert engine["precision_reason"].endswith("has no bf16 instructions")


def test_a_run_continues_with_the_precision_it_began_with(begun, shards, tmp_path):
    """Continued by the same command on a processor that may have bf16: still float32, and so the same losses.

    Not to the bit: AVX2 and AVX512 add up in another order. Rounding to bf16 would move them by a thousand times more.
    """
    run_dir, _ = begun
    copy = interrupted_copy(run_dir, tmp_path / "run", keep_step=7)
    log = train(copy, shards, "engine.precision=auto")
    assert "stage 1, fp32 (the processor" in log
    assert losses(copy) == pytest.approx(losses(run_dir), rel=1e-6)
    assert engine_of(copy) == engine_of(run_dir)


def test_a_branch_takes_the_precision_of_its_parent(begun, tmp_path):
    """The choice was the parent's: another processor does not make the branch another experiment."""
    parent, _ = begun
    run_dir = tmp_path / "branch"
    words = ("--cooldown-from", f"{parent}:14", "--run-dir", str(run_dir), "train.steps=16")
    done = launch([sys.executable, "-m", "distributed", "train", *words])
    assert done.returncode == 0, done.stderr
    assert engine_of(run_dir) == engine_of(parent)


def test_a_reason_is_true_of_the_run_that_gives_it(begun, tmp_path):
    """Another run's config.yaml brings no reason along, and a precision by name needs none."""
    parent, _ = begun
    for override in ("engine.precision=bf16", "engine.precision=fp32"):
        experiment = load_experiment(file=RunDirectory(parent).config, overrides=[override])
        assert experiment.engine.precision_reason
        assert keep_precision(RunDirectory(tmp_path), experiment).engine.precision_reason == ""
    same = keep_precision(RunDirectory(parent), load_experiment(file=RunDirectory(parent).config))
    assert same.engine.precision_reason.endswith("has no bf16 instructions")


def test_a_config_that_leaves_the_choice_open_is_this_run(begun, tmp_path):
    """config.yaml written by hand with precision: auto can be continued."""
    parent, _ = begun
    experiment = load_experiment(file=RunDirectory(parent).config)
    directory = RunDirectory(tmp_path)
    text = RunDirectory(parent).config.read_text()
    directory.config.write_text(text.replace("precision: fp32", "precision: auto"))
    SameRun(directory, experiment, fresh=False).check()


def test_bf16_by_name_is_kept_and_warned_of_where_it_is_emulated(shards, tmp_path):
    """The run goes on in bf16, and the log gives the slowdown."""
    log = train(tmp_path / "run", shards, "engine.precision=bf16", "train.steps=2", **WITHOUT_BF16)
    assert "bf16 is emulated here (the processor" in log
    assert engine_of(tmp_path / "run")["precision"] == "bf16"

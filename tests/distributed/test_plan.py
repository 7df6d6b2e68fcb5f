"""The plan: memory, operations and hours agree with what is built and measured."""

from distributed.__main__ import COMMANDS
from distributed.engine import batch_sizes
from distributed.experiment import load_experiment
from distributed.plan import memory_per_gpu
from pupujepa.cost import count_parameters
from pupujepa.front_door import enter


def test_each_stage_shards_more():
    """From stage 1 on the optimiser's share falls with the ranks, from 2 the gradients', at 3 the parameters'."""
    by_stage = {}
    for stage in (0, 1, 2, 3):
        experiment = load_experiment(["demo"], overrides=[f"engine.zero_stage={stage}"])
        sizes = batch_sizes(16, micro_batch=0, world_size=4)
        by_stage[stage] = memory_per_gpu(experiment, sizes, world_size=4)
    counts = count_parameters(load_experiment(["demo"]).model)
    trained, teacher = counts.trained, counts.encoder
    assert [m.optimizer for m in by_stage.values()] == [8 * trained] + [3 * trained] * 3
    assert [m.gradients for m in by_stage.values()] == [4 * trained] * 2 + [trained] * 2
    assert [m.parameters for m in by_stage.values()] == [4 * trained] * 3 + [trained]
    assert {m.teacher for m in by_stage.values()} == {4 * teacher}


def test_the_command_prints_a_plan_and_draws(tmp_path, capsys):
    """The text names memory by part, the verdict, operations and hours; the drawing is a picture."""
    words = ["plan", "--preset", "demo", "--gpus", "2", "--gpu-memory-gb", "0.01", "--plot", str(tmp_path / "p.png")]
    assert enter("distributed", COMMANDS, manual="", argv=words) == 0
    text = capsys.readouterr().out
    for words in ("teacher", "DOES NOT FIT", "TFLOP per crop", "crops/s at MFU", "16 crops = 8 x 1 accumulation x 2"):
        assert words in text
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_batch_that_does_not_fit_the_gpus_is_refused(capsys):
    """Before anything waits in a queue."""
    words = ["plan", "--preset", "demo", "--gpus", "3"]
    assert enter("distributed", COMMANDS, manual="", argv=words) == 2
    assert "cannot be shared by 3 ranks" in capsys.readouterr().err

"""The plan: memory, operations, bytes and hours agree with what is built and measured."""

import pytest
import torch

from data.building.features import FeatureConfig
from distributed.__main__ import COMMANDS
from distributed.engine.engine import batch_sizes, parameter_groups
from distributed.experiment import load_experiment
from distributed.plan.plan import USABLE, fits, step_config, store_bytes_per_s
from pupujepa.cost.cost import count_parameters, training_cost
from pupujepa.cost.memory import peak_memory
from pupujepa.front_door import enter
from pupujepa.model.model import PupuJEPA
from pupujepa.training.objective import TrainingStep


def plan(capsys, *words):
    code = enter("distributed", COMMANDS, manual="", argv=["plan", *words])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_the_command_prints_a_plan_and_draws(tmp_path, capsys):
    """The text names memory by part, the verdict, operations and hours; the drawing is a picture."""
    code, text, _ = plan(
        capsys, "--preset", "demo", "--gpus", "2", "--gpu-memory-gb", "0.01", "--plot", str(tmp_path / "p.png")
    )
    assert code == 0
    for words in ("teacher", "DOES NOT FIT", "TFLOP per crop", "crops/s at MFU", "8 crops = 4 x 1 accumulation x 2"):
        assert words in text
    assert "nothing fits: take more GPUs" in text
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_nodes_times_gpus_are_the_ranks_and_a_device_is_known_by_name(capsys):
    """Two nodes of four H200: eight ranks, 141 GB each, and the peak of the data sheet gives crops and GPU-hours."""
    code, text, _ = plan(
        capsys,
        *("--preset", "paper", "model=tiny", "--nodes", "2", "--gpus-per-node", "4", "--device", "h200"),
        *("--mfu", "0.1"),
    )
    assert code == 0
    assert "= 128 x 1 accumulation x 8 GPUs" in text
    assert "of 141 GB: fits" in text
    experiment = load_experiment(["paper"], overrides=["model=tiny"])
    flops = training_cost(experiment.model, experiment.masks, experiment.objective).total
    crops_per_s = 8 * 989.4e12 * 0.1 / flops
    assert f"{crops_per_s:,.0f} crops/s at MFU 0.1" in text
    hours = 500_000 * 1024 / crops_per_s / 3600
    assert f"{hours:,.1f} h = {8 * hours:,.0f} GPU-hours" in text
    bytes_per_s = crops_per_s * FeatureConfig().part_frames * 128
    assert f"{bytes_per_s / 1e6:,.0f} MB/s of shards in uint8, {bytes_per_s / 2e6:,.0f} MB/s a node" in text


def test_a_sample_is_read_once_for_all_its_crops():
    """Three crops of a sample need a third of the bytes; float16 twice those of codes."""
    one, three = (load_experiment(["paper"], overrides=[f"stream.crops_per_sample={n}"]) for n in (1, 3))
    assert store_bytes_per_s(one, 9.0, dtype="uint8") == 9 * 3072 * 128
    assert store_bytes_per_s(three, 9.0, dtype="uint8") == 3 * 3072 * 128
    assert store_bytes_per_s(one, 9.0, dtype="float16") == 2 * 9 * 3072 * 128


def test_settings_that_fit_are_named(capsys):
    """What does not fit as asked is refused a verdict, and the table says which micro-batch of which stage would do."""
    words = ("--preset", "paper", "--gpus", "8", "--gpu-memory-gb", "10", "model=tiny", "engine.micro_batch=128")
    code, text, _ = plan(capsys, *words)
    assert code == 0
    assert "DOES NOT FIT" in text
    kept, recomputed = (
        next(line for line in text.splitlines() if line.strip().startswith(name)).split(name)[1].split()
        for name in ("blocks kept", "activation_checkpointing")
    )
    assert int(kept[0]) < 128
    # by stage, and what is recomputed need not be kept
    assert all(int(more) > int(less) > 0 for less, more in zip(kept[::2], recomputed[::2], strict=True))


def test_what_is_said_to_fit_fits_and_the_next_does_not():
    """The largest micro-batch of each setting, of those that divide the batch."""
    bucket = "engine.deepspeed.zero_optimization.reduce_bucket_size=200000"
    experiment = load_experiment(["demo"], overrides=["stream.global_batch=256", "engine.zero_stage=1", bucket])
    limit = 0.12e9
    found = list(fits(experiment, world_size=4, device_bytes=limit))
    assert [(fit.zero_stage, fit.recomputed) for fit in found] == [(s, r) for r in (False, True) for s in (1, 2, 3)]
    for fit in found:
        assert 0 < fit.micro_batch <= 64
        assert fit.peak_bytes <= USABLE * limit
    kept = found[0]
    sizes = batch_sizes(256, micro_batch=2 * kept.micro_batch, world_size=4)
    assert peak_memory(step_config(experiment, sizes, world_size=4))[1].total > USABLE * limit


def test_the_rank_is_what_the_experiment_says():
    """Stage, crops, accumulation, bucket, precision and the teacher's parts arrive in what the formulas take."""
    words = ["stream.global_batch=64", "engine.zero_stage=3", "engine.precision=fp32"]
    experiment = load_experiment(["demo"], overrides=words)
    rank = step_config(experiment, batch_sizes(64, micro_batch=8, world_size=4), world_size=4)
    assert (rank.zero_stage, rank.ranks, rank.crops, rank.accumulates) == (3, 4, 8, True)
    assert (rank.bucket, rank.autocast_dtype, rank.shard_teacher) == (count_parameters(rank.model).trained, None, True)
    added = "engine.deepspeed.zero_optimization.reduce_bucket_size=1000"
    experiment = load_experiment(["demo"], overrides=[*words, added])
    assert step_config(experiment, batch_sizes(64, micro_batch=8, world_size=4), world_size=4).bucket == 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--gpus", "3"), "cannot be shared by 3 ranks"),
        (("--gpus", "8"), "lanes"),
        (("--nodes", "0"), "must all be positive"),
        (("--mfu", "0"), "must all be positive"),
    ],
)
def test_what_no_cluster_can_do_is_refused(capsys, words, message):
    """Before anything waits in a queue."""
    code, _, err = plan(capsys, "--preset", "demo", *words)
    assert code == 2
    assert message in err


def test_the_picture_of_a_branch_begins_where_it_does(tmp_path, capsys):
    """Its rate falls from the branch on; steps before are the parent's."""
    branch = ["branch.step=400", "branch.rate=0.001", "branch.horizon_steps=1000", "train.steps=500"]
    code, _, _ = plan(capsys, "--preset", "demo", "--gpus", "2", "--plot", str(tmp_path / "b.png"), *branch)
    assert code == 0
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("size", ["demo", "tiny", "large"])
def test_weight_decay_by_name(size):
    """At every size matrices decay, by name; biases, norms, the mask token and learned positions do not."""
    experiment = load_experiment(["paper"], overrides=[f"model={size}", "model.position_code=learned"])
    with torch.device("meta"):
        step = TrainingStep(PupuJEPA(experiment.model), experiment.objective)
    names = {id(p): name for name, p in step.named_parameters()}
    decayed, plain = ([names[id(p)] for p in g["params"]] for g in parameter_groups(step, 0.05))
    matrices = ("proj.weight", "qkv.weight", "fc1.weight", "fc2.weight", "proj_in.weight", "proj_out.weight")
    assert all(name.endswith(matrices) for name in decayed)
    assert all(name.endswith(("bias", "mask_token", "position_table")) or "norm" in name for name in plain)
    assert len(decayed) + len(plain) == len(names)

"""Whole trainings on a device, by DeepSpeed on one rank: what may change where numbers lie changes no number.

Kernels that add in a fixed order are asked for throughout, so that what is left of a difference is the setting's own.
"""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.launch import ROOT, deterministic_rows, losses, slowed, train_command
from tests.gpu.trainings import TIMEOUT_S, device_environment

# Sums in another order: of float32 the last digits differ, and grow over the steps; GPUs add in more ways than a CPU.
# bf16 has eight bits: of a loss, a mean over thousands of values, about three digits are left.
FP32_TOLERANCE = {"cpu": 1e-5, "cuda": 1e-4}
BF16_TOLERANCE = 2e-3
FIXED_ORDER, BF16 = "engine.deterministic=true", "engine.precision=bf16"
QUICK = (FIXED_ORDER, "train.steps=6", "schedule.peak_lr=0.005", "diagnostics.every=0")
KILLED_AT = 7


def stage(number):
    return f"engine.zero_stage={number}"


def jobs(device):
    """The trainings of a device; stage 3 comes last, as DeepSpeed then replaces torch's linear function."""
    compiler = "inductor" if device.type == "cuda" else "aot_eager"
    overrides = {
        "plain": (stage(1),),
        "accumulated": (stage(1), "engine.micro_batch=2"),
        "bf16": (stage(1), BF16),
        "recomputed": (stage(1), "engine.activation_checkpointing=true"),
        "offload": (stage(1), "engine.offload_optimizer=true"),
        "stage-2": (stage(2),),
        "compiled": (stage(1), f"engine.compile={compiler}"),
        "never-waits": (stage(1), "engine.micro_batch=4", *((BF16,) if device.type == "cuda" else ())),
        "stage-3": (stage(3),),
    }
    made = {name: {"overrides": [*QUICK, *own], "shadow": name in SHADOWED} for name, own in overrides.items()}
    made["never-waits"]["never_waits"] = True
    straight = {"overrides": [FIXED_ORDER, stage(1), BF16, "stream.workers=1"]}
    return {"straight": straight, **made}


SHADOWED = ("plain", "stage-2", "stage-3")


def same(trainings, name, *, rel):
    plain = losses(trainings.of("plain"))
    assert plain[-1] < 0.95 * plain[0]
    assert losses(trainings.of(name)) == pytest.approx(plain, rel=rel)


def test_a_device_learns_what_the_cpu_learns(trainings_on, device):
    """Six losses in float32 are those of the CPU, whose batches are divided into micro-batches besides."""
    # on the CPU they have run with the others
    only = () if device.type == "cpu" else ("accumulated",)
    cpu = losses(trainings_on(torch.device("cpu"), *only).of("accumulated"))
    assert losses(trainings_on(device).of("plain")) == pytest.approx(cpu, rel=FP32_TOLERANCE[device.type])


@pytest.mark.parametrize("number", [2, 3])
def test_stages_learn_the_same(trainings_on, device, number):
    """ZeRO's stages 2 and 3 have the losses of stage 1."""
    same(trainings_on(device), f"stage-{number}", rel=FP32_TOLERANCE[device.type])


def test_bf16_learns_what_float32_learns(trainings_on, device):
    """The six losses are those of float32 within 2e-3, relative, and are seen to be other numbers."""
    same(trainings_on(device), "bf16", rel=BF16_TOLERANCE)
    assert losses(trainings_on(device).of("bf16")) != losses(trainings_on(device).of("plain"))


def test_a_compiled_step_learns_the_same(trainings_on, device):
    """By kernels that inductor makes on a GPU; on the CPU it is traced and run as it is."""
    same(trainings_on(device), "compiled", rel=FP32_TOLERANCE[device.type])


def test_offloaded_states_learn_the_same(trainings_on, device):
    """The optimiser in the host's memory, by AdamW's kernel for CPUs."""
    same(trainings_on(device), "offload", rel=FP32_TOLERANCE[device.type])


def test_recomputing_changes_nothing(trainings_on, device):
    """Blocks are computed again in the backward pass by the kernels of the forward pass."""
    same(trainings_on(device), "recomputed", rel=1e-6)


@pytest.mark.parametrize("name", SHADOWED)
def test_the_teacher_is_the_average_of_the_student(trainings_on, device, name):
    """It equals an average that the CPU takes of copies of the student, and it has moved."""
    report = json.loads((trainings_on(device).of(name) / "shadow.json").read_text())
    assert report["gap"] < 1e-6
    assert report["moved"] > 1e-3


def test_the_host_never_waits_between_forward_and_backward(trainings_on, device):
    """Not in logged steps either, to the end of DeepSpeed's backward pass: torch raises where one would wait."""
    assert len(losses(trainings_on(device).of("never-waits"))) == 6


def test_a_killed_run_resumes_bit_for_bit(trainings_on, device, shards, tmp_path):
    """Killed after its first checkpoint, at no agreed place, in bf16, with workers: losses and weights to the last bit.

    Diagnostics, which look and do not train, agree within rounding.
    """
    straight = trainings_on(device).of("straight")
    run = tmp_path / "killed"
    command = train_command(run, shards, FIXED_ORDER, stage(1), BF16, "stream.workers=1")
    kill_after_checkpoint(command, run, device)
    resumed = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        env=device_environment(device.type),
        capture_output=True,
        timeout=TIMEOUT_S[device.type],
    )
    assert resumed.returncode == 0, resumed.stderr[-4000:].decode()
    (start,) = json.loads((run / "facts.json").read_text())["resumed"]
    assert start["step"] == KILLED_AT
    for ours, theirs in zip(deterministic_rows(run), deterministic_rows(straight), strict=True):
        if "loss" in theirs:
            assert ours == theirs
        assert ours == pytest.approx(theirs, rel=1e-5, nan_ok=True)
    weights, expected = (load_file(path / "export" / "model.safetensors") for path in (run, straight))
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor), name


def kill_after_checkpoint(command, run: Path, device):
    """Starts a training, slow after its first checkpoint, and kills it when that is there."""
    slow, _ = slowed(command, from_step=KILLED_AT)
    environ = device_environment(device.type) | {"SLOW_FROM": str(KILLED_AT)}
    log = run.with_suffix(".log")
    with log.open("w") as said:
        process = subprocess.Popen(slow, cwd=ROOT, env=environ, stdout=said, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + TIMEOUT_S[device.type]
        while not (run / "checkpoints" / f"step-{KILLED_AT:07d}").exists():
            assert process.poll() is None, f"it ended by itself: {log.read_text()[-4000:]}"
            assert time.monotonic() < deadline, f"no checkpoint in time: {log.read_text()[-4000:]}"
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()

"""Rates of a run: from crops and seconds to tokens, audio and the share of a device's peak."""

import pytest
import torch
import torch.distributed as dist

from distributed.run.log import TelemetryConfig
from distributed.run.speed import Pace, Yardstick, peak_flops_of, peak_memory_of_ranks, yardstick
from pupujepa.audio.log_mel import FrontendConfig
from pupujepa.cost.cost import training_cost
from pupujepa.errors import UserError
from pupujepa.model.model import ModelConfig
from pupujepa.training.masks import MaskConfig
from pupujepa.training.objective import ObjectiveConfig


def test_rates_by_hand():
    """Four steps of 8 crops in 2 s are 16 crops/s; a crop has 10 tokens, 0.5 s of audio and 3 operations."""
    window = Pace()
    for seconds in (0.4, 0.4, 0.4, 0.8):
        window.add(seconds, waited_s=0.1)
    rates = Yardstick(8, tokens_per_crop=10, seconds_per_crop=0.5, flops_per_crop=3, peak_flops=96.0).rates(window)
    assert rates["crops_per_s"] == pytest.approx(16)
    assert rates["speed/tokens_per_s"] == pytest.approx(160)
    assert rates["speed/audio_hours_per_hour"] == pytest.approx(8)
    assert rates["speed/mfu"] == pytest.approx(0.5)
    assert rates["step_s"] == pytest.approx(0.5)
    assert rates["data_wait_s"] == pytest.approx(0.1)
    assert rates["speed/step_s_p50"] == pytest.approx(0.4)
    assert rates["speed/step_s_p95"] == pytest.approx(0.4 + 0.4 * 0.85)
    assert rates["speed/step_s_p99"] == pytest.approx(0.4 + 0.4 * 0.97)


def test_without_a_peak_there_is_no_share_of_it():
    """An invented peak would give a number that means nothing."""
    window = Pace()
    window.add(1.0, waited_s=0.0)
    assert "speed/mfu" not in Yardstick(1, 1, 1.0, 1).rates(window)


def test_a_crop_is_what_the_model_makes_of_it():
    """1024 frames of the released front end: 2048 patches, 10.24 s, and the operations that cost.py counts."""
    model, masks, objective = ModelConfig(), MaskConfig(), ObjectiveConfig()
    found = yardstick(model, masks, objective, frontend=FrontendConfig(), global_batch=4, peak_flops=0.0)
    assert (found.tokens_per_crop, found.seconds_per_crop) == (2048, pytest.approx(10.24))
    assert found.flops_per_crop == training_cost(model, masks, objective).total


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10G", 70.0),
        ("Some other card", 0.0),
        ("", 0.0),
    ],
)
def test_the_peak_of_known_devices(name, tflops):
    """By the name that CUDA gives; what is not known has none."""
    assert peak_flops_of(name, precision="bf16") == tflops * 1e12


def test_the_user_knows_better():
    """A peak that is given counts, on a CPU too; the table's is for bf16 alone."""
    assert peak_flops_of("", precision="fp32", given_tflops=0.1) == pytest.approx(1e11)
    assert peak_flops_of("NVIDIA H200", precision="fp32") == 0
    with pytest.raises(UserError, match="peak_tflops=-1 must be 0"):
        TelemetryConfig(peak_tflops=-1)


def test_memory_is_that_of_the_largest_rank(monkeypatch):
    """Here another rank has twice as much; a CPU has no accelerator."""
    asked = []

    def all_reduce(tensor, op):
        asked.append(op)
        tensor.mul_(2)

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    found = peak_memory_of_ranks(torch.device("cpu"))
    assert asked == [dist.ReduceOp.MAX]
    assert found.keys() == {"memory/rss_bytes"}
    assert found["memory/rss_bytes"] > 2 * 50e6, "torch alone is larger"

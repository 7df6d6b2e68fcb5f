"""Precision: bf16 where the hardware multiplies it, float32 elsewhere, and a warning where it would be emulated."""

import logging
import re
import subprocess
import sys

import pytest
import torch

from pupujepa import precision
from pupujepa.embedding.encoder import Encoder
from pupujepa.errors import UserError
from pupujepa.precision import (
    AUTO,
    ChosenPrecision,
    HardwareBf16,
    autocast_dtype,
    bf16_slowdown,
    choose_precision,
    hardware_bf16,
    usable_device,
    warn_of_emulation,
)
from pupujepa.weights.weights import load
from tests.pupujepa.models import random_model

CPU = torch.device("cpu")


def processor(monkeypatch, *, one_dnn: bool, capability: str = "AVX512", avx512_bf16: bool = False, amx: bool = False):
    """Torch's answers on another processor."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: one_dnn)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)


@pytest.mark.parametrize(
    ("answers", "supported", "reason"),
    [
        ({"one_dnn": True, "avx512_bf16": True}, True, "AVX512-BF16"),
        ({"one_dnn": True, "avx512_bf16": True, "amx": True}, True, "AMX"),
        ({"one_dnn": True}, False, "neither AVX512-BF16 nor AMX"),
        ({"one_dnn": False, "capability": "AVX2"}, False, "used as AVX2, has no bf16 instructions"),
        # a processor with bf16 that ATEN_CPU_CAPABILITY holds back
        ({"one_dnn": False, "capability": "AVX2", "avx512_bf16": True}, False, "used as AVX2"),
        ({"one_dnn": True, "capability": "SVE256"}, True, "bf16 instructions (SVE256)"),
    ],
)
def test_processors(monkeypatch, answers, supported, reason):
    """AVX512-BF16, AMX and ARM's instructions count; AVX512 alone does not, though oneDNN says yes to it."""
    processor(monkeypatch, **answers)
    found = hardware_bf16(CPU)
    assert found.supported is supported
    assert reason in found.reason


@pytest.mark.parametrize(("capability", "supported"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_from_ampere(monkeypatch, capability, supported):
    """GPUs older than Ampere emulate bf16."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert hardware_bf16(torch.device("cuda")).supported is supported


def test_auto_follows_the_hardware(monkeypatch):
    """ "auto" is bf16 where it is multiplied and fp32 elsewhere; a name is taken as it is."""
    for supported, name, dtype in ((True, "bf16", torch.bfloat16), (False, "fp32", None)):
        monkeypatch.setattr(precision, "hardware_bf16", lambda device, s=supported: HardwareBf16(s, "because"))
        assert choose_precision(AUTO, CPU) == ChosenPrecision(name, "because")
        assert autocast_dtype(AUTO, CPU) == dtype
        assert choose_precision("bf16", CPU).name == "bf16"
        assert choose_precision("fp32", CPU).name == "fp32"
    with pytest.raises(UserError, match=r"precision='fp16' is unknown; choose one of auto, fp32, bf16"):
        choose_precision("fp16", CPU)


def test_emulation_is_said_with_its_cost(monkeypatch, caplog):
    """The warning gives the missing instructions, the measured slowdown and the remedy; elsewhere there is none."""
    monkeypatch.setattr(precision, "hardware_bf16", lambda device: HardwareBf16(False, "no instructions"))
    monkeypatch.setattr(precision, "bf16_slowdown", lambda device: 61.7)
    with caplog.at_level(logging.WARNING):
        warn_of_emulation("fp32", CPU)
        assert not caplog.records
        warn_of_emulation("bf16", CPU)
    assert "bf16 is emulated here (no instructions): a matrix product takes 61.7 times" in caplog.text
    assert "use fp32 or auto" in caplog.text
    caplog.clear()
    monkeypatch.setattr(precision, "hardware_bf16", lambda device: HardwareBf16(True, "it has them"))
    warn_of_emulation("bf16", CPU)
    assert not caplog.records


def test_the_slowdown_is_measured():
    """The slowdown is a positive ratio of two times."""
    assert 0 < bf16_slowdown(CPU) < 10_000


def test_a_processor_held_back_to_avx2_takes_fp32():
    """Torch's real answer where ATEN_CPU_CAPABILITY leaves AVX2: fp32, and the reason says AVX2 (x86) or lacks bf16."""
    code = "import torch; from pupujepa.precision import *; print(choose_precision('auto', torch.device('cpu')))"
    environ = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environ)
    assert re.search(r"name='fp32', reason='.*has no bf16 instructions'", done.stdout)


def test_the_cpu_can_be_used():
    """By name or as a device."""
    assert usable_device("cpu") == usable_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_one_sentence(name):
    """A wrong name and a GPU that no machine has are refused alike, whatever the build of torch."""
    with pytest.raises(UserError, match=rf"device '{name}' cannot be used here \(.+\); choose cpu, or cuda"):
        usable_device(name)


def test_loading_and_encoding_refuse_it(weights):
    """`load` and `Encoder` check what they are given."""
    with pytest.raises(UserError, match="device 'gpu' cannot be used here"):
        load(weights, device="gpu")
    with pytest.raises(UserError, match="device 'gpu' cannot be used here"):
        Encoder(random_model(), device="gpu")

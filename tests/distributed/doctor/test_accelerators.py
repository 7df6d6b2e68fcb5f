"""GPUs, NCCL, bf16 and the compiler, from facts of machines that these tests do not have."""

import pytest

from distributed.doctor.accelerators import SmiGpu, accelerator_findings, compiler_finding, read_driver_gpus
from distributed.doctor.findings import ABSENT, FAILED, OK, WARNING
from distributed.doctor.trial import ImportTrial

H100 = {"name": "NVIDIA H100", "capability": "9.0", "memory_mib": 81_559}
IN_DRIVER = SmiGpu("NVIDIA H100", "580.95.05", 81_559, 4)
FACTS = {
    "torch": "2.15.0+cu132",
    "cuda": "13.2",
    "no_gpu": "",
    "gpus": [],
    "bf16": {"supported": True, "reason": "the processor has AMX", "slowdown": None},
    "gloo": True,
    "nccl": None,
}


def judged(facts, driver=(), *, aim="train", environ=None):
    found = accelerator_findings(ImportTrial(facts=FACTS | facts), driver, aim=aim, environ=environ or {})
    assert [finding.name for finding in found] == ["GPUs", "NCCL", "bf16"]
    return found


def test_a_machine_without_gpus():
    """Nothing is missing: ranks use gloo."""
    gpus, nccl, bf16 = judged({})
    assert (gpus.level, nccl.level, bf16.level) == (ABSENT, ABSENT, OK)
    assert "gloo" in nccl.found
    assert judged({"gloo": False})[1].level == FAILED


def test_gpus_that_work():
    """Number, name, memory, CUDA, driver and NCCL."""
    gpus, nccl, _ = judged({"gpus": [H100, H100], "nccl": "2.30.7"}, [IN_DRIVER, IN_DRIVER])
    assert (gpus.level, gpus.found) == (OK, "2 x NVIDIA H100, 80 GiB, CUDA 13.2, driver 580.95.05")
    assert (nccl.level, nccl.found) == (OK, "2.30.7, for 2 GPUs")


def test_gpus_without_nccl_cannot_train():
    """Ranks on GPUs have no other way to meet."""
    assert judged({"gpus": [H100]}, [IN_DRIVER])[1].level == FAILED


def test_unequal_and_used_gpus_are_warned_of():
    """A slower one holds the others up, and a full one has no room."""
    a10 = {"name": "NVIDIA A10", "capability": "8.6", "memory_mib": 23_028}
    gpus = judged({"gpus": [H100, a10], "nccl": "2"})[0]
    assert gpus.level == WARNING
    assert "NVIDIA A10 and NVIDIA H100, 22 GiB" in gpus.found
    full = SmiGpu("NVIDIA H100", "580", 81_559, 40_960)
    gpus = judged({"gpus": [H100, H100], "nccl": "2"}, [IN_DRIVER, full])[0]
    assert gpus.level == WARNING
    assert gpus.found.endswith("1 in use already, up to 40 GiB")


@pytest.mark.parametrize(
    ("facts", "reason", "remedy"),
    [
        ({"cuda": None}, "built without CUDA", "requirements.lock"),
        (
            {"no_gpu": "CUDA initialization: the driver is too old"},
            "cannot use CUDA 13.2 (CUDA init",
            "update the driver",
        ),
        ({}, "it does not say why", "update the driver"),
    ],
)
def test_a_gpu_that_torch_cannot_use(facts, reason, remedy):
    """A training would run on the CPU without a word, so it fails; the demo runs there anyway."""
    gpus = judged(facts, [IN_DRIVER])[0]
    assert gpus.level == FAILED
    assert reason in gpus.found
    assert remedy in gpus.remedy
    assert judged(facts, [IN_DRIVER], aim="demo")[0].level == WARNING


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_are_meant_to_be(hidden):
    """CUDA_VISIBLE_DEVICES takes them away on purpose."""
    gpus = judged({}, [IN_DRIVER], environ={"CUDA_VISIBLE_DEVICES": hidden})[0]
    assert gpus.level == ABSENT
    assert "hidden by CUDA_VISIBLE_DEVICES" in gpus.found


def test_a_gpu_that_kills_what_touches_it():
    """The trial's reason is told, and the rest is not guessed."""
    trial = ImportTrial("RuntimeError: CUDA error: no kernel image is available for execution on the device")
    gpus, nccl, bf16 = accelerator_findings(trial, [IN_DRIVER], aim="train", environ={})
    assert gpus.level == FAILED
    assert "no kernel image" in gpus.found
    assert nccl.level == bf16.level == ABSENT


def test_without_torch_nothing_is_known():
    """Each line says why."""
    for finding in accelerator_findings(None, [IN_DRIVER], aim="train", environ={}):
        assert finding.level == ABSENT
        assert "torch does not work here" in finding.found


def test_emulated_bf16_says_how_slow_it_is():
    """No failure: `auto` takes float32."""
    bf16 = judged({"bf16": {"supported": False, "reason": "the processor has AVX2", "slowdown": 61.26}})[2]
    assert bf16.level == ABSENT
    assert bf16.found == "emulated: the processor has AVX2; a matrix product takes 61.3 times as long as in float32"
    assert "auto" in bf16.remedy


def test_rows_of_nvidia_smi(tmp_path, monkeypatch):
    """Rows as the driver prints them; unknown memory is 0, and what is no row is left out; no program, no GPUs."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_driver_gpus() == []
    program = tmp_path / "nvidia-smi"
    rows = ("NVIDIA H100, 580.95.05, 81559, 4", "NVIDIA GB10, 580.95.05, [N/A], [N/A]", "No devices were found")
    program.write_text("#!/bin/sh\n" + "".join(f'echo "{row}"\n' for row in rows))
    program.chmod(0o755)
    assert read_driver_gpus() == [IN_DRIVER, SmiGpu("NVIDIA GB10", "580.95.05", 0, 0)]


def test_a_compiler_is_only_for_inductor(tmp_path):
    """Compiler and headers both have to be there; nothing fails without them."""
    (tmp_path / "Python.h").touch()
    compiler = tmp_path / "c++"
    compiler.touch(mode=0o755)
    environ = {"CXX": "c++", "PATH": str(tmp_path)}
    assert compiler_finding(environ, headers=tmp_path).level == OK
    lacking = compiler_finding({"PATH": str(tmp_path)}, headers=tmp_path / "none")
    assert lacking.level == ABSENT
    assert lacking.found.startswith("no C++ compiler and no Python.h: only engine.compile=inductor")
    assert compiler_finding(environ, headers=tmp_path / "none").found.startswith("no Python.h:")

"""Versions of packages, and the one sentence about a torchaudio that cannot be loaded."""

import re
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest
import torchaudio

from distributed.marble.encoders import hidden_states
from distributed.marble.encoders.hidden_states import need_package
from distributed.run import installed
from distributed.run.installed import TorchaudioError, installed_versions, torchaudio_functional
from tests.broken_torchaudio import MESSAGE

ANOTHER_TORCH = OSError(MESSAGE)
ANOTHER_CUDA = RuntimeError("Detected that PyTorch and TorchAudio were compiled with different CUDA versions.")
ABSENT = ModuleNotFoundError("No module named 'torchaudio'", name="torchaudio")


@pytest.fixture
def failing(monkeypatch):
    """Makes the late imports of both modules die of an error; an absent package has no version either."""

    def fail(error):
        def die(name):
            raise error

        def version_of(package):
            if error is ABSENT and package == "torchaudio":
                raise PackageNotFoundError(package)
            return {"torch": "2.12.1+cpu", "torchaudio": "2.11.1"}[package]

        monkeypatch.setattr(installed, "version", version_of)
        for module in (installed, hidden_states):
            monkeypatch.setattr(module, "import_module", die)

    return fail


def test_the_one_that_fits_is_returned():
    """Beside the torch of the lock it is torchaudio's own module."""
    assert torchaudio_functional(without="nothing works") is torchaudio.functional


@pytest.mark.parametrize("error", [ANOTHER_TORCH, ANOTHER_CUDA])
def test_two_versions_that_do_not_fit_are_named(failing, error):
    """One sentence: both versions, the consequence, and the pair of the lock; the cause stays attached."""
    failing(error)
    with pytest.raises(
        TorchaudioError,
        match=r"^torchaudio 2\.11\.1 cannot be loaded beside torch 2\.12\.1\+cpu, so the page has no sound; "
        r"install a pair that fits: pip install torch==\S+ torchaudio==\S+$",
    ) as raised:
        torchaudio_functional(without="the page has no sound")
    assert raised.value.__cause__ is error
    assert len(str(raised.value).split()) <= 25


def test_an_absent_one_is_named(failing):
    """Nothing is said of a version that is not there."""
    failing(ABSENT)
    with pytest.raises(
        TorchaudioError, match=r"^torchaudio is not installed beside torch 2\.12\.1\+cpu, so it is quiet;"
    ):
        torchaudio_functional(without="it is quiet")


def test_the_remedy_is_what_the_lock_holds(failing):
    """The pair to install is that of requirements.lock, which the tests run on."""
    failing(ANOTHER_TORCH)
    with pytest.raises(TorchaudioError) as raised:
        torchaudio_functional(without="it is quiet")
    pins = [line.split()[0] for line in installed.LOCK.read_text().splitlines() if re.match("torch(audio)?==", line)]
    assert len(pins) == 2
    assert str(raised.value).endswith("pip install " + " ".join(pins))


@pytest.mark.parametrize("error", [ANOTHER_TORCH, ANOTHER_CUDA, ABSENT])
def test_encoders_that_need_it_say_so(failing, error):
    """A package whose import dies of torchaudio is not told as missing: the remedy would be the wrong one."""
    failing(error)
    with pytest.raises(TorchaudioError, match="so encoder 'dasheng' cannot be measured; install a pair that fits"):
        need_package("dasheng", encoder="dasheng")


def test_another_failure_of_an_encoders_package_is_not_put_down_to_it(monkeypatch):
    """Where torchaudio loads, the package's own error is raised."""

    def die(name):
        raise OSError("libsomething.so: cannot open shared object file")

    monkeypatch.setattr(hidden_states, "import_module", die)
    with pytest.raises(OSError, match="libsomething"):
        need_package("dasheng", encoder="dasheng")


def test_packages_that_are_not_installed_are_left_out():
    """facts.json of a training without torchaudio names no version of it, instead of failing at the end."""
    found = installed_versions(["torch", "no-such-package", "numpy"])
    assert found == {"python": sys.version.split()[0], "torch": version("torch"), "numpy": version("numpy")}
    assert list(found) == ["python", "torch", "numpy"]

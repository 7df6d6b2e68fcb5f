"""Packages: what an aim needs, what is missing, what does not fit together, and what differs from the lock."""

import tomllib
from dataclasses import replace

import pytest

from distributed.doctor.findings import ABSENT, FAILED, OK, WARNING
from distributed.doctor.packages import (
    Environment,
    Package,
    needed_packages,
    package_findings,
    python_finding,
    read_environment,
    read_lock,
)
from distributed.doctor.trial import DEEPSPEED_START, ROOT, TORCH_FACTS, ImportTrial

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEALTHY = Environment(
    needed=tuple(
        map(Package, ("deepspeed", "numpy", "torch", "torchaudio", "webdataset"), ("0.19", "", "2.11", "", ""))
    ),
    missing=frozenset(),
    installed={"deepspeed": "0.19.8", "numpy": "2.4.6", "torch": "2.15.0+cpu", "torchaudio": "2.11.1", "foreign": "1"},
    locked={
        "deepspeed": frozenset({"0.19.8"}),
        "numpy": frozenset({"2.4.6", "2.5.5"}),
        "torch": frozenset({"2.15.0"}),
        "torchaudio": frozenset({"2.11.1"}),
        "absent": frozenset({"1.0"}),
    },
)
LOADED = dict.fromkeys([*HEALTHY.steps_with_torch, *HEALTHY.other_steps], ImportTrial())


def judged(environment=HEALTHY, **trials):
    """The findings by name, with some trials that ended otherwise."""
    return {f.name: f for f in package_findings(environment, LOADED | trials, aim="train")}


def test_a_healthy_environment_is_three_lines():
    """A build's suffix, a version for another Python and packages that the lock does not name are no difference."""
    found = judged()
    assert list(found) == ["packages", "torch", "lock"]
    assert {finding.level for finding in found.values()} == {OK}
    assert found["torch"].found == "torch 2.15.0+cpu, torchaudio 2.11.1, webdataset, deepspeed 0.19.8 load together"
    assert found["lock"].found == "all 4 packages have the versions of requirements.lock"


def test_steps_are_what_is_needed_and_there():
    """Torch comes first, its users behind it, and nothing is tried without it."""
    assert HEALTHY.steps_with_torch == ["torch", TORCH_FACTS, "torchaudio", "webdataset", "deepspeed", DEEPSPEED_START]
    assert HEALTHY.other_steps == ["numpy"]
    assert replace(HEALTHY, missing=frozenset({"deepspeed"})).steps_with_torch[-1] == "webdataset"
    assert replace(HEALTHY, missing=frozenset({"torch", "numpy"})).steps_with_torch == []
    assert replace(HEALTHY, missing=frozenset({"torch", "numpy"})).other_steps == []


def test_a_torchaudio_that_does_not_fit_names_both_versions_and_a_pair_that_does():
    """The remedy installs the lock's two."""
    found = judged(torchaudio=ImportTrial("OSError: libtorchaudio.so: undefined symbol: torch_x"))
    assert "torch" not in found
    assert found["torchaudio"].level == FAILED
    assert found["torchaudio"].found == (
        "torchaudio 2.11.1 does not load beside torch 2.15.0+cpu: OSError: libtorchaudio.so: undefined symbol: torch_x"
    )
    assert found["torchaudio"].remedy.endswith("python -m pip install torch==2.15.0 torchaudio==2.11.1")


def test_a_torch_that_does_not_load_stands_for_its_users():
    """What builds upon it is not tried, and says so."""
    environment = replace(HEALTHY, installed=HEALTHY.installed | {"torch": "2.15.0"})
    trials = {"torch": ImportTrial("ImportError: libcudart.so.13: cannot open"), "numpy": ImportTrial()}
    found = {f.name: f for f in package_findings(environment, trials, aim="train")}
    assert found["torch"].level == FAILED
    assert "torch 2.15.0 is installed but does not load: ImportError: libcudart.so.13" in found["torch"].found
    assert "--require-hashes --no-deps -r requirements.lock" in found["torch"].remedy
    assert {name for name, finding in found.items() if finding.level == ABSENT} == {
        "torchaudio",
        "webdataset",
        "deepspeed",
    }


def test_others_that_do_not_load_are_named():
    """A broken numpy, and a DeepSpeed that our preparations do not know."""
    found = judged(numpy=ImportTrial("ImportError: x"), **{DEEPSPEED_START: ImportTrial("AttributeError: no compiler")})
    assert found["numpy"].level == found["deepspeed"].level == FAILED
    assert found["numpy"].found == "numpy 2.4.6 is installed but does not load: ImportError: x"
    assert "distributed/engine/deepspeed_settings.py: AttributeError: no compiler" in found["deepspeed"].found


def test_missing_packages_fail():
    """All in one line, with the command that installs them."""
    found = judged(replace(HEALTHY, missing=frozenset({"numpy", "deepspeed"})))["packages"]
    assert (found.level, found.found) == (FAILED, "missing for train: deepspeed, numpy")
    assert found.remedy.startswith("make setup, or: python -m pip install")


def test_older_than_the_lowest_fails():
    """Lower bounds are pyproject.toml's; versions are compared as numbers."""
    found = judged(replace(HEALTHY, installed=HEALTHY.installed | {"torch": "2.9.1"}))["torch"]
    assert (found.level, found.found[:21]) == (FAILED, "2.9.1 is older than 2")


def test_other_versions_than_the_lock_are_a_warning():
    """Each is named with both versions, up to six."""
    found = judged(replace(HEALTHY, installed=HEALTHY.installed | {"torch": "2.12.1", "numpy": "2.4.5"}))["lock"]
    assert found.level == WARNING
    assert found.found == "2 of 4 differ: numpy 2.4.5 (lock: 2.4.6 or 2.5.5), torch 2.12.1 (lock: 2.15.0)"
    many = {f"p{i}": frozenset({"1"}) for i in range(9)}
    found = judged(replace(HEALTHY, locked=many, installed=dict.fromkeys(many, "2")))["lock"]
    assert found.found.endswith("p5 2 (lock: 1) and 3 more")


def test_no_lock_is_said():
    """A checkout without one, and an environment that holds nothing of it."""
    assert judged(replace(HEALTHY, locked={}))["lock"].level == ABSENT
    assert judged(replace(HEALTHY, installed={}))["lock"].level == ABSENT


@pytest.mark.parametrize("aim", ["embed", "train", "demo"])
def test_needed_modules_are_those_of_pyproject(aim):
    """This environment has all of them under the names that are looked for, and each version is in the lock."""
    environment = read_environment(aim)
    assert environment.missing == frozenset()
    assert {package.name for package in environment.needed} <= environment.locked.keys()


def test_aims_need_more_and_more():
    """Embedding needs the dependencies, a training the extras of training and evaluation, the demo everything."""
    embed, train, demo = ({p.name for p in needed_packages(PYPROJECT, aim)} for aim in ("embed", "train", "demo"))
    assert {"torch", "numpy", "soundfile"} <= embed
    assert {"deepspeed", "s3fs", "scikit-learn"} <= train - embed
    assert {"ray", "music21", "tinysoundfont"} <= demo - train
    assert embed < train < demo


def test_the_first_distribution_on_the_path_counts(tmp_path, monkeypatch):
    """A version in front of the environment's is found, and differs from the lock."""
    (tmp_path / "torch-2.12.1.dist-info").mkdir()
    (tmp_path / "torch-2.12.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torch\nVersion: 2.12.1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    environment = read_environment("embed")
    assert environment.installed["torch"] == "2.12.1"
    (lock,) = (f for f in package_findings(environment, {"torch": ImportTrial()}, aim="embed") if f.name == "lock")
    assert lock.level == WARNING
    assert "torch 2.12.1 (lock: " in lock.found


def test_a_folder_of_a_package_s_name_is_not_the_package(tmp_path, monkeypatch):
    """wandb keeps its logs in a folder `wandb` of the working directory."""
    (tmp_path / "dasheng_logs").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("distributed.doctor.packages._MODULES", {"torch": "dasheng_logs"})
    assert "torch" in read_environment("embed").missing


def test_a_lock_s_lines(tmp_path):
    """Hashes, comments and markers are left out; two lines for one package allow both versions."""
    (tmp_path / "lock").write_text(
        "# by a tool\nNumPy==2.4.6 ; python_full_version < '3.12' \\\n    --hash=sha256:00\n    # via torch\n"
        "numpy==2.5.5 ; python_full_version >= '3.12'\nruamel.yaml==1.0\\\n"
    )
    assert read_lock(tmp_path / "lock") == {"numpy": {"2.4.6", "2.5.5"}, "ruamel-yaml": {"1.0"}}
    assert read_lock(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("version", "level"),
    [((3, 10, 13), FAILED), ((3, 11, 0), OK), ((3, 13, 9), OK), ((3, 14, 0), WARNING)],
)
def test_pythons(version, level):
    """3.11 to 3.13 are tested; an older one fails, a newer one may work."""
    found = python_finding(version)
    assert found.level == level
    assert found.found.startswith(".".join(map(str, version)))
    assert bool(found.remedy) == (level != OK)


@pytest.mark.parametrize("aim", ["embed", "train", "demo"])
def test_every_needed_package_is_known_by_its_module(aim):
    """All that pyproject.toml asks for is installed where tests run, so a name without its module would show here."""
    environment = read_environment(aim)
    assert environment.needed
    assert environment.missing == frozenset()

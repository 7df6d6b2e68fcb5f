"""`pip install .` beside any torch: the wheel in a clean environment that holds its dependencies, and no torchaudio."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path
from zipfile import ZipFile

import pytest
import soundfile
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pupujepa.weights.weights import save_release
from tests.pupujepa.models import SMALL, random_model
from tests.pupujepa.tones import tone

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
EMBED = """
import pupujepa

encoder = pupujepa.Encoder(pupujepa.load("weights"))
embedding = encoder.encode("song.wav")

import importlib.util, json, numpy, sys
absent = ("torchaudio", "librosa", "scipy", "webdataset", "deepspeed", "pytest", "data", "distributed")
print(json.dumps({
    "shape": embedding.values.shape,
    "finite": bool(numpy.isfinite(embedding.values).all()),
    "spread": float(embedding.values.std()),
    "home": pupujepa.__file__,
    "importable": [name for name in absent if importlib.util.find_spec(name)],
    "loaded": [name for name in absent if name in sys.modules],
}))
"""


def run(*words: object, cwd: Path) -> str:
    """Runs a command that must succeed, without any variable of this process, and returns what it printed."""
    command, environment = [str(word) for word in words], {"PATH": os.defpath}
    done = subprocess.run(command, check=False, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy of what goes into it."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "pupujepa", source / "pupujepa", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    dist = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-c", BUILD, dist, cwd=source)
    return next(dist.glob("pupujepa-*.whl"))


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of a fresh environment: the wheel, and links to exactly what it requires, as it is installed here."""
    home = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", home, cwd=home)
    site = Path(sysconfig.get_path("purelib", vars={"base": home, "platbase": home}))
    for needed in closure(requirements(wheel)):
        link(needed, site)
    # pip looks for nothing elsewhere, so a requirement that is not linked fails
    run(home / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-index", wheel, cwd=home)
    return home / "bin" / "python"


def requirements(wheel: Path, extra: str = "") -> list[Requirement]:
    """What the metadata of a wheel of ours requires on this platform, with one extra or none."""
    with ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    declared = [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ")]
    found = applicable(declared, {extra})
    # an extra of ours may be made of others
    inner = [more for r in found if r.name == "pupujepa" for e in r.extras for more in requirements(wheel, e)]
    return [r for r in found if r.name != "pupujepa"] + inner


def applicable(declared: Iterable[str], extras: set[str]) -> list[Requirement]:
    """Those of the requirements that hold on this platform, for any of the extras; "" is none."""
    read = [Requirement(line) for line in declared]
    return [r for r in read if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in extras)]


def closure(required: list[Requirement]) -> list[Distribution]:
    """The installed distributions that fulfil the requirements, and theirs in turn."""
    found: dict[str, Distribution] = {}
    seen, rest = set(), list(required)
    while rest:
        requirement = rest.pop()
        name = canonicalize_name(requirement.name)
        if (name, *sorted(requirement.extras)) in seen:
            continue
        seen.add((name, *sorted(requirement.extras)))
        found[name] = distribution(name)
        rest += applicable(found[name].requires or (), {"", *requirement.extras})
    return list(found.values())


def link(needed: Distribution, site: Path) -> None:
    """Links the top-level packages, modules and metadata of a distribution into a folder of site-packages."""
    tops = {file.parts[0] for file in needed.files or ()} - {"..", "__pycache__"}
    assert tops, needed.name
    for top in sorted(tops):
        target = Path(str(needed.locate_file(top)))
        # several distributions may share a folder, as those of CUDA do
        if target.exists() and not (site / top).exists():
            (site / top).symlink_to(target)


def test_the_wheel_requires_no_torchaudio(wheel: Path):
    """Embedding needs torch and five small packages; data, training and evaluation bring torchaudio."""
    assert {r.name for r in requirements(wheel)} == {"numpy", "omegaconf", "safetensors", "soundfile", "torch", "tqdm"}
    with_it = {
        extra
        for extra in ("hub", "parquet", "data", "train", "eval", "dev")
        if "torchaudio" in {r.name for r in requirements(wheel, extra)}
    }
    assert with_it == {"data", "train", "eval", "dev"}


def test_three_lines_embed_a_file_without_torchaudio(clean: Path, tmp_path: Path):
    """The README's three lines: 2 s at 44.1 kHz give 50 rows of all bands, finite and no constant."""
    save_release(random_model(), SMALL, tmp_path / "weights")
    soundfile.write(tmp_path / "song.wav", tone(2.0, 44_100), 44_100)
    said = json.loads(run(clean, "-c", EMBED, cwd=tmp_path))
    assert said["shape"] == [50, SMALL.grid_bands * SMALL.width]
    assert said["finite"]
    assert said["spread"] > 0.01
    assert said["importable"] == said["loaded"] == []
    assert Path(said["home"]).is_relative_to(clean.parents[1])

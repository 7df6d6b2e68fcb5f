"""Beside a torchaudio that does not load, everything works but the sound of the page, which says why in a sentence."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.broken_torchaudio import MESSAGE, write_broken_torchaudio
from tests.data.songs import write_song
from tests.distributed.launch import PRESET, ROOT, environment
from tests.distributed.marble.corpora import Recipe, make_corpus

Run = Callable[..., subprocess.CompletedProcess]

EVERY_MODULE = """
import importlib, pkgutil, sys
for room in ("pupujepa", "data", "distributed", "sweeps", "examples", "docs"):
    names = [module.name for module in pkgutil.walk_packages([room], f"{room}.")]
    assert names
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
assert "torchaudio" not in sys.modules
"""


@pytest.fixture
def python(tmp_path: Path) -> Run:
    """Runs python in the checkout, beside a broken torchaudio."""
    broken = write_broken_torchaudio(tmp_path / "broken")
    path = {"PYTHONPATH": os.pathsep.join([str(broken), str(ROOT)])}

    def run(*words: object) -> subprocess.CompletedProcess:
        command = [sys.executable, *map(str, words)]
        return subprocess.run(
            command, check=False, env=environment() | path, cwd=ROOT, capture_output=True, text=True, timeout=900
        )

    return run


def test_every_module_can_be_imported(python: Run):
    """None of our modules imports torchaudio, nor anything that does; the import itself dies as it should."""
    dead = python("-c", "import torchaudio")
    assert dead.returncode == 1
    assert dead.stderr.rstrip().endswith(f"OSError: {MESSAGE}")
    done = python("-c", EVERY_MODULE)
    assert done.returncode == 0, done.stderr


def test_from_two_songs_to_a_page_without_sound(python: Run, tmp_path: Path):
    """Build, train, embed, evaluate and report, as a user types them; the page and the log of the report say why."""

    def succeed(*words: object) -> str:
        done = python("-m", *words)
        assert done.returncode == 0, done.stderr
        return done.stderr

    songs, shards, run = (tmp_path / name for name in ("songs", "shards", "run"))
    for seed in (1, 2):
        write_song(songs / f"{seed}.wav", 12.0, rate_hz=44_100, seed=seed)
    succeed("data", "build", songs, shards, "--part-frames=100", "--min-frames=64", "--split-fractions=1,0,0")
    training = ("--preset", PRESET, "--run-dir", run, f"stream.url={shards}/train", "train.steps=3")
    succeed("distributed", "train", *training)
    facts = json.loads((run / "facts.json").read_text())
    assert facts["steps"] == 3
    # the version in the metadata is that of the real one, and needs no import
    assert facts["versions"]["torchaudio"] == version("torchaudio")
    succeed("pupujepa", "embed", run / "export", songs, "--out", tmp_path / "vectors", "--device", "cpu")
    assert sorted(p.name for p in (tmp_path / "vectors").glob("*.npz")) == ["1.wav.npz", "2.wav.npz"]
    corpus = make_corpus(tmp_path / "corpus", Recipe(pieces=24))
    quick = ("--quick", "--tasks", "key", "--encoders", run, "--data", corpus, "--out", run, "--resamples", 20)
    succeed("distributed", "evaluate", *quick)
    assert (run / "quick.jsonl").stat().st_size
    said = succeed("distributed", "report", run)
    found, torch = (re.escape(version(name)) for name in ("torchaudio", "torch"))
    sentence = (
        rf"torchaudio {found} cannot be loaded beside torch {torch}, so the page has no sound; "
        r"install a pair that fits: pip install torch==[\d.]+ torchaudio==[\d.]+"
    )
    assert len(re.findall(f"^{sentence}$", said, re.MULTILINE)) == 1, said
    page = unescape((run / "report.html").read_text())
    assert re.search(rf"No sound: {sentence}\.</p>", page)
    assert "<audio" not in page
    assert "The sound is rebuilt from the spectrogram" not in page

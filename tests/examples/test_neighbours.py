"""The neighbours example: clips of one kind are neighbours in the table, the file and the picture."""

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import soundfile

from examples.neighbours import draw, main, nearest, side_by_side, similarities
from pupujepa.errors import UserError
from pupujepa.weights.weights import save_release
from tests.pupujepa.models import SMALL, random_model

ROOT = Path(__file__).parents[2]
RATE_HZ = 24_000
KINDS = ("clicks", "drone", "hiss", "melody")


def clip(kind: str, take: int) -> np.ndarray:
    """Returns two seconds of one kind; takes differ in pitch, loudness, onset and noise."""
    rng = np.random.default_rng(take)
    time_s = np.arange(2 * RATE_HZ) / RATE_HZ + rng.uniform(0, 0.2)
    hz = 110 * 2 ** (rng.uniform(-2, 2) / 12)
    if kind == "hiss":
        audio = 0.2 * rng.standard_normal(len(time_s))
    elif kind == "clicks":
        audio = (np.sin(2 * np.pi * 9 * time_s) > 0.995) * rng.standard_normal(len(time_s))
    elif kind == "drone":
        audio = sum(0.2 / k * np.sin(2 * np.pi * k * hz * time_s) for k in range(1, 6))
    else:
        note = hz * 8 * 2 ** (np.floor(4 * time_s) * 5 % 12 / 12)
        audio = 0.4 * np.sin(2 * np.pi * np.cumsum(note) / RATE_HZ) * np.exp(-6 * (time_s % 0.25))
    return (rng.uniform(0.5, 1) * audio).astype(np.float32)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Runs the example on three takes of each of four kinds, and on a file that is not audio."""
    home = tmp_path_factory.mktemp("neighbours")
    save_release(random_model(), SMALL, home / "weights")
    for kind in KINDS:
        (home / "songs" / kind).mkdir(parents=True)
        for take in range(3):
            soundfile.write(home / "songs" / kind / f"{take}.flac", clip(kind, take), RATE_HZ)
    (home / "songs" / "broken.wav").write_bytes(b"RIFFnonsense")
    words = [sys.executable, "examples/neighbours.py", home / "weights", home / "songs", "--out", home / "out"]
    run = subprocess.run(
        [*map(str, words), "--neighbours", "2", "--device", "cpu"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return home / "out", run


def test_takes_of_one_kind_find_each_other(ran):
    """Even untrained features separate a hiss from a melody: both neighbours of every clip are of its own kind."""
    out, _ = ran
    rows = list(csv.DictReader((out / "neighbours.csv").read_text().splitlines()))
    assert len(rows) == 2 * 3 * len(KINDS)
    assert all(Path(row["file"]).parent == Path(row["neighbour"]).parent for row in rows)
    assert all(row["file"] != row["neighbour"] for row in rows)
    by_file = {}
    for row in rows:
        by_file.setdefault(row["file"], []).append(float(row["similarity"]))
    assert all(first >= second for first, second in by_file.values())


def test_the_table_is_printed_and_the_broken_file_named(ran):
    """The table has a line per file with its neighbours, and the output names files that could not be embedded."""
    out, run = ran
    line = r"^(\w+)/\d\.flac  +\1/\d\.flac \(\+[01]\.\d\d\), \1/\d\.flac \(\+[01]\.\d\d\)$"
    assert len(re.findall(line, run.stdout, re.MULTILINE)) == 3 * len(KINDS)
    assert "skipped: " in run.stderr and "broken.wav: cannot be decoded" in run.stderr
    assert (out / "vectors" / "broken.jsonl").is_file()


def test_a_file_that_is_gone_is_nobodys_neighbour(ran, tmp_path, capsys):
    """Another layer replaces the vectors, and the table omits rows of files outside the request."""
    songs = tmp_path / "songs"
    shutil.copytree(ran[0].parent / "songs", songs)
    words = [str(ran[0].parent / "weights"), str(songs), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(words) == 0
    assert "melody/0.flac" in capsys.readouterr().out
    shutil.rmtree(songs / "melody")
    assert main([*words, "--layer", "1"]) == 0
    told = capsys.readouterr()
    assert "9 files embedded" in told.err
    assert "melody" not in told.out
    assert "melody" not in (tmp_path / "out" / "neighbours.csv").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [(("hiss/0.flac", "hiss/1.flac"), "2 usable audio files are too few"), (("nowhere",), "no such file or folder")],
)
def test_wrong_inputs_are_refused_before_anything_is_embedded(ran, tmp_path, words, message):
    """Too few files, or none, are an error, and nothing is written."""
    weights, songs = str(ran[0].parent / "weights"), ran[0].parent / "songs"
    with pytest.raises(UserError, match=message):
        main([weights, *(str(songs / word) for word in words), "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match="--neighbours 0: give at least one"):
        main([weights, str(songs), "--out", str(tmp_path / "out"), "--neighbours", "0"])
    assert list(tmp_path.iterdir()) == []


def test_the_picture_shows_the_kinds_as_blocks(ran):
    """The picture contains both red (similar) and blue (dissimilar)."""
    image = matplotlib.image.imread(ran[0] / "neighbours.png")
    red, blue = image[..., 0], image[..., 2]
    assert min(image.shape[:2]) > 300
    assert (red - blue > 0.3).mean() > 0.02
    assert (blue - red > 0.3).mean() > 0.02


def test_names_are_no_formulas(tmp_path):
    """Two dollar signs in a name are drawn as they are."""
    draw(["Ke$ha - Tik_$.wav", "$\\frac$", "c"], np.eye(3), tmp_path / "a.png")
    assert min(matplotlib.image.imread(tmp_path / "a.png").shape[:2]) > 300


def test_similarities_are_about_the_mean():
    """The common mean does not count: opposite deviations from a distant mean are opposites."""
    vectors = np.array([[100.0, 1.0], [100.0, -1.0], [100.0, 2.0], [100.0, -2.0]])
    np.testing.assert_allclose(similarities(vectors)[0], [1, -1, 1, -1], atol=1e-12)


def test_nobody_is_their_own_neighbour():
    """No file is its own neighbour, also among equal ones; a count above the number of files gives all others."""
    found = nearest(["a", "b", "c"], np.ones((3, 3)), count=9)
    assert [(one.name, one.neighbour) for one in found] == [
        ("a", "b"), ("a", "c"), ("b", "a"), ("b", "c"), ("c", "a"), ("c", "b"),
    ]  # fmt: skip


def test_the_order_puts_alike_files_next_to_each_other():
    """Two shuffled groups come out one after the other."""
    kind = np.array([0, 1, 0, 1, 0, 1])
    order = side_by_side((kind[:, None] == kind).astype(float))
    assert kind[order].tolist() == [0, 0, 0, 1, 1, 1]
    assert sorted(order) == list(range(6))

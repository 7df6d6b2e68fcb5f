"""The embed command: every format holds the library's values, survives a kill, and is independent of the workers."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import soundfile

from pupujepa.embedding.embed import model_fingerprint
from pupujepa.embedding.encoder import Encoder
from pupujepa.locks import only_writer
from pupujepa.weights.weights import load, save_release
from tests.pupujepa.commands import run
from tests.pupujepa.models import SMALL, random_model
from tests.pupujepa.tones import tone

ROOT = Path(__file__).parents[3]
FORMATS = ("npz", "parquet")


def contents(folder: Path) -> dict[str, bytes]:
    """Returns every file below a folder, hidden ones too."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def rows_of(folder: Path, form: str) -> dict[str, dict]:
    """Reads all rows with the format's own reader instead of ours."""
    rows = {}
    if form == "npz":
        for path in folder.rglob("*.npz"):
            with np.load(path) as file:
                rows[str(file["name"])] = {key: file[key] for key in file.files}
    else:
        for path in sorted(folder.glob("*.parquet")):
            for row in pyarrow.parquet.read_table(path).to_pylist():
                row["values"] = np.asarray(row["values"], np.float32).reshape(row["shape"])
                rows[row["name"]] = row
    return rows


# The command, which stops for ever before its thirteenth file and says so in a file: the kill cannot come too late.
STALLED = """
import sys, time
from pathlib import Path

from pupujepa.embedding import embed
from pupujepa.__main__ import COMMANDS, enter

embed_clip, embedded = embed._embed_clip, []


def stalling(*args):
    if len(embedded) == 12:
        Path(sys.argv[1]).touch()
        time.sleep(3600)
    embedded.append(args)
    return embed_clip(*args)


embed._embed_clip = stalling
enter("pupujepa", COMMANDS, manual="", argv=sys.argv[2:])
"""


@pytest.fixture
def many_songs(tmp_path):
    """Sixteen files of four seconds."""
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(16):
        soundfile.write(folder / f"{i:02d}.wav", tone(4.0, hz=200 + 10 * i), 24_000)
    return folder


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("readout", ["frames", "mean", "region:2x3"])
def test_rows_hold_what_the_library_gives(weights, songs, tmp_path, form, readout):
    """One row per file, with its name, readout and layers, and the encoder's own values and times, bit for bit."""
    out = tmp_path / "out"
    words = ("embed", weights, songs, "--out", out, "--readout", readout, "--layers", 0, -1, "--format", form)
    assert run(*words, "--device", "cpu") == 0
    rows = rows_of(out, form)
    assert sorted(rows) == ["a.flac", "a.wav", "live/b.ogg"]
    encoder = Encoder(load(weights))
    for name, row in rows.items():
        expected = encoder.encode(songs / name, readout=readout, layers=[0, -1])
        np.testing.assert_array_equal(row["values"], expected.values)
        np.testing.assert_array_equal(row["times_s"], expected.times_s)
        assert str(row["readout"]) == readout
        assert list(row["layers"]) == [0, SMALL.depth]


def test_an_npz_lies_where_its_file_lay(weights, songs, tmp_path, capsys):
    """The folder below --out mirrors the searched folder, file by file, without files that are not audio."""
    assert run("embed", weights, songs, "--out", tmp_path / "out", "--device", "cpu") == 0
    assert sorted(contents(tmp_path / "out")) == ["a.flac.npz", "a.wav.npz", "live/b.ogg.npz"]
    told = capsys.readouterr().err
    assert "3 files embedded" in told
    assert "wav, flac, ogg or mp3): 1 .txt\n" in told


def test_a_name_as_long_as_file_systems_allow_is_embedded(weights, tmp_path, capsys):
    """83 letters of three bytes and .wav leave no room for .npz: the row is there all the same, and found again."""
    names = ["\u97f3" * 83 + ".wav", "\u97f3" * 82 + "\u697d.wav"]
    for name in names:
        (tmp_path / "songs").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "songs" / "x.wav", tone(0.5), 24_000)
        (tmp_path / "songs" / "x.wav").rename(tmp_path / "songs" / name)
    words = ("embed", weights, tmp_path / "songs", "--out", tmp_path / "out", "--readout", "mean", "--device", "cpu")
    assert run(*words) == 0
    assert sorted(rows_of(tmp_path / "out", "npz")) == sorted(names)
    assert run(*words) == 0
    assert "2 files: 2 already embedded, 0 to do" in capsys.readouterr().err


def test_all_layers_can_be_asked_for(weights, songs, tmp_path, capsys):
    """--layers all writes the patch embedding and every block; other words are errors."""
    words = ("embed", weights, songs / "a.wav", "--out", tmp_path / "out", "--readout", "mean", "--device", "cpu")
    assert run(*words, "--layers", "all") == 0
    with np.load(tmp_path / "out" / "a.wav.npz") as file:
        assert file["values"].shape == (SMALL.depth + 1, SMALL.width)
        assert file["layers"].tolist() == list(range(SMALL.depth + 1))
    assert run(*words, "--layers", "last") == 2
    assert "--layers last: give numbers or the single word all" in capsys.readouterr().err


def test_the_released_positions_can_be_had(weights, songs, tmp_path):
    """--rope clip_relative embeds as the release does: equal for a crop's length, different for a shorter clip."""
    for mode in ("clip_relative", "length_exact"):
        soundfile.write(songs / "crop.wav", tone(0.64), 24_000)
        assert run("embed", weights, songs, "--out", tmp_path / mode, "--rope", mode, "--device", "cpu") == 0
    released, exact = (rows_of(tmp_path / mode, "npz") for mode in ("clip_relative", "length_exact"))
    np.testing.assert_allclose(released["crop.wav"]["values"], exact["crop.wav"]["values"], atol=1e-5)
    assert np.abs(released["a.flac"]["values"] - exact["a.flac"]["values"]).max() > 1e-3
    expected = Encoder(load(weights, rope="clip_relative")).encode(songs / "a.flac", layers=[-1])
    np.testing.assert_array_equal(released["a.flac"]["values"], expected.values)


@pytest.mark.parametrize("form", FORMATS)
def test_the_result_does_not_depend_on_the_workers(weights, many_songs, tmp_path, form):
    """One thread and five threads of decoding write the same bytes."""
    for workers in (1, 5):
        words = ("embed", weights, many_songs, "--out", tmp_path / str(workers), "--format", form, "--part-mb", 1)
        assert run(*words, "--workers", workers, "--device", "cpu") == 0
    one, five = contents(tmp_path / "1"), contents(tmp_path / "5")
    assert one == five
    assert len(one) > 1


@pytest.mark.parametrize("form", FORMATS)
def test_a_killed_run_goes_on_where_it_was(weights, many_songs, tmp_path, form):
    """After SIGKILL and the same command again, the bytes are those of a straight run, and finished rows are kept."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    words = ["embed", weights, many_songs, "--format", form, "--part-mb", 0.9, "--device", "cpu"]
    assert run(*words, "--out", straight) == 0
    stalled = tmp_path / "stalled"
    process = subprocess.Popen(
        [sys.executable, "-c", STALLED, str(stalled), *map(str, words), "--out", str(killed)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    while not stalled.exists():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=300) == -signal.SIGKILL
    left = {name: (killed / name).stat().st_mtime_ns for name in contents_so_far(killed) if "part-" in name}
    assert contents(straight).keys() != contents(killed).keys(), "the kill came too late to prove anything"
    assert run(*words, "--out", killed) == 0
    assert contents(killed) == contents(straight)
    for name, modified in left.items():
        if not name.endswith(".part"):
            assert (killed / name).stat().st_mtime_ns == modified


def contents_so_far(folder: Path) -> list[str]:
    """Returns the file names of a folder while another process writes to it."""
    return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix]


@pytest.mark.parametrize("form", FORMATS)
def test_only_what_is_missing_is_embedded(weights, songs, tmp_path, capsys, form):
    """A later file gets its row; existing rows are neither computed nor written again."""
    words = ("embed", weights, songs, "--out", tmp_path / "out", "--readout", "mean", "--format", form)
    assert run(*words, "--device", "cpu") == 0
    before = contents(tmp_path / "out")
    times = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before}
    soundfile.write(songs / "a0.wav", tone(0.7), 24_000)
    capsys.readouterr()
    assert run(*words, "--device", "cpu") == 0
    assert "4 files: 3 already embedded, 1 to do" in capsys.readouterr().err
    after = contents(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before} == times
    assert sorted(rows_of(tmp_path / "out", form)) == ["a.flac", "a.wav", "a0.wav", "live/b.ogg"]


@pytest.mark.parametrize("form", FORMATS)
def test_a_repaired_file_gets_its_row(weights, songs, tmp_path, form):
    """The next run tries a failed file again."""
    (songs / "bad.wav").write_bytes(b"RIFFnonsense")
    words = ("embed", weights, songs, "--out", tmp_path / "out", "--format", form, "--device", "cpu")
    assert run(*words) == 1
    assert "bad.wav" not in rows_of(tmp_path / "out", form)
    soundfile.write(songs / "bad.wav", tone(0.7), 24_000)
    assert run(*words) == 0
    assert "bad.wav" in rows_of(tmp_path / "out", form)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("part_mb", [256, 0.01])
def test_a_changed_file_is_noticed(weights, songs, tmp_path, capsys, form, part_mb):
    """Only files with another size or time are embedded again, the log says so, and each file has one row."""
    out = tmp_path / "out"
    words = ("embed", weights, songs, "--out", out, "--format", form, "--part-mb", part_mb, "--device", "cpu")
    assert run(*words) == 0
    before = rows_of(out, form)
    longer, later = songs / "a.wav", songs / "live" / "b.ogg"
    soundfile.write(longer, tone(1.5), 24_000)
    status = later.stat()
    os.utime(later, ns=(status.st_atime_ns, status.st_mtime_ns + 10**10))
    capsys.readouterr()
    assert run(*words) == 0
    assert "3 files: 1 already embedded, 2 to do, 2 of them again because they were changed" in capsys.readouterr().err
    after = rows_of(out, form)
    assert sorted(after) == sorted(before) == ["a.flac", "a.wav", "live/b.ogg"]
    encoder = Encoder(load(weights))
    for name, row in after.items():
        np.testing.assert_array_equal(row["values"], encoder.encode(songs / name, layers=[-1]).values)
        np.testing.assert_array_equal(row["times_s"], encoder.encode(songs / name, layers=[-1]).times_s)
    parts = sorted(int(path.stem.removeprefix("part-")) for path in out.glob("part-*"))
    assert parts == list(range({"npz": 0}.get(form, 2 if part_mb == 256 else 3))), "numbered without gaps"
    assert int(after["a.wav"]["size_bytes"]) == longer.stat().st_size != int(before["a.wav"]["size_bytes"])
    assert run(*words) == 0
    assert "3 files: 3 already embedded, 0 to do\n" in capsys.readouterr().err


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_broke_loses_its_row(weights, songs, tmp_path, form):
    """A file that no longer decodes loses its outdated row, and the others keep theirs."""
    words = ("embed", weights, songs, "--out", tmp_path / "out", "--format", form, "--device", "cpu")
    assert run(*words) == 0
    (songs / "a.wav").write_bytes(b"RIFFnonsense")
    assert run(*words) == 1
    assert sorted(rows_of(tmp_path / "out", form)) == ["a.flac", "live/b.ogg"]


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_changed_while_a_killed_run_had_it_staged(weights, songs, tmp_path, capsys, monkeypatch, form):
    """Staged rows of a killed command are checked like packed ones."""
    words = ("embed", weights, songs, "--out", tmp_path / "out", "--format", form, "--device", "cpu")
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr("pupujepa.embedding.stores.VectorStore.close", interrupted)
        patch.setattr("pupujepa.embedding.parquet.ParquetFolder.close", interrupted)
        run(*words)
    soundfile.write(songs / "a.wav", tone(1.5), 24_000)
    capsys.readouterr()
    assert run(*words) == 0
    assert "2 already embedded, 1 to do, 1 of them again" in capsys.readouterr().err
    rows = rows_of(tmp_path / "out", form)
    assert len(rows) == 3
    assert len(rows["a.wav"]["times_s"]) == 38  # 1.5 s at 25 Hz


def interrupted(store):
    raise KeyboardInterrupt


def damage(songs: Path) -> list[str]:
    """Adds five files that cannot be embedded and returns their names."""
    (songs / "bad.wav").write_bytes(b"RIFFnonsense")
    (songs / "empty.flac").write_bytes(b"")
    soundfile.write(songs / "short.wav", tone(0.01), 24_000)
    soundfile.write(songs / "nan.wav", np.full(24_000, np.nan, np.float32), 24_000, subtype="FLOAT")
    whole = io.BytesIO()
    soundfile.write(whole, tone(100.0, 8_000), 8_000, format="FLAC")
    flipped = bytearray(whole.getvalue())
    flipped[len(flipped) // 2] ^= 0x55  # within a file: a cut one is used as far as it goes
    (songs / "flipped.flac").write_bytes(flipped)
    return ["bad.wav", "empty.flac", "flipped.flac", "nan.wav", "short.wav"]


@pytest.mark.parametrize("workers", [1, 4])
def test_broken_files_are_named_and_the_shell_is_told(weights, songs, tmp_path, capfd, workers):
    """Corrupt, empty, damaged, short and non-finite files do not stop the others; the exit code is 1."""
    broken = damage(songs)
    words = ("embed", weights, songs, "--out", tmp_path / "out", "--device", "cpu", "--workers", workers)
    assert run(*words) == 1
    told = capfd.readouterr().err
    assert re.findall(r"failed: \S*/songs/(\S+?): ", told) == broken
    assert "bad.wav: cannot be decoded" in told
    assert "short.wav: 10.0 ms of audio is shorter than one patch" in told
    assert "3 files embedded" in told
    assert sorted(rows_of(tmp_path / "out", "npz")) == ["a.flac", "a.wav", "live/b.ogg"]
    assert not (tmp_path / "out" / "broken.jsonl").exists()


def test_broken_files_can_be_skipped_but_not_silently(weights, songs, tmp_path, capfd):
    """With --skip-broken the exit code is 0 and broken.jsonl lists files and reasons, until all are repaired."""
    broken = damage(songs)
    words = ("embed", weights, songs, "--out", tmp_path / "out", "--device", "cpu", "--skip-broken")
    assert run(*words) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "broken.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == broken
    assert [line["path"] for line in lines] == [str(songs / name) for name in broken]
    assert all(len(line["reason"]) > 20 for line in lines)
    assert capfd.readouterr().err.count("skipped: ") == len(broken)
    for name in broken:
        (songs / name).unlink()
    assert run(*words) == 0
    assert not (tmp_path / "out" / "broken.jsonl").exists()


def test_files_of_another_length_are_named_and_counted(weights, songs, tmp_path, capfd):
    """A cut file has its row, of what is there, and a line with both lengths; the exit code is 0."""
    soundfile.write(songs / "cut.wav", tone(4.0), 24_000)
    whole = (songs / "cut.wav").read_bytes()
    (songs / "cut.wav").write_bytes(whole[: len(whole) // 2])
    assert run("embed", weights, songs, "--out", tmp_path / "out", "--device", "cpu") == 0
    told = capfd.readouterr().err
    assert "1 of them have another length than they announce:" in told
    assert re.search(r"cut\.wav: announces 4\.00 s but holds 2\.00 s, which are used", told)
    assert len(rows_of(tmp_path / "out", "npz")["cut.wav"]["times_s"]) == 50


def test_a_file_that_cannot_be_read_now_is_not_broken(weights, songs, tmp_path, capfd):
    """An error of the disk stops no other file, and --skip-broken does not make it a success."""
    (songs / "failing.wav").symlink_to("/proc/self/mem")
    words = ("embed", weights, songs, "--out", tmp_path / "out", "--device", "cpu", "--skip-broken")
    assert run(*words) == 1
    told = capfd.readouterr().err
    assert re.search(
        r"unreadable: \S*failing\.wav cannot be read now \(.*\), so nothing was changed; make it readable", told
    )
    assert "3 files embedded" in told
    assert not (tmp_path / "out" / "broken.jsonl").exists()
    (songs / "failing.wav").unlink()
    assert run(*words) == 0


def test_the_longest_names_are_embedded(weights, songs, tmp_path):
    """A name of 255 bytes leaves no room for .npz: the row's file is shortened, its name is not, and it is found."""
    name = "\u97f3" * 83 + "ab.wav"
    (songs / "a.wav").rename(songs / name)
    words = ("embed", weights, songs, "--out", tmp_path / "out", "--device", "cpu")
    assert run(*words) == 0
    before = contents(tmp_path / "out")
    assert name in rows_of(tmp_path / "out", "npz")
    assert run(*words) == 0
    assert contents(tmp_path / "out") == before


def test_a_clip_too_short_for_the_readout_stops_no_other(weights, songs, tmp_path, capfd):
    """A readout of 20 blocks in time needs 0.8 s: the file of half a second is named, the others have their rows."""
    words = ("embed", weights, songs, "--out", tmp_path / "out", "--device", "cpu", "--readout", "region:1x20")
    assert run(*words) == 1
    assert re.search(r"failed: \S+a\.flac: readout region:1x20 asks for more blocks", capfd.readouterr().err)
    assert sorted(rows_of(tmp_path / "out", "npz")) == ["a.wav", "live/b.ogg"]


def test_values_that_are_not_finite_are_no_embedding(songs, tmp_path, capfd):
    """Weights that produce NaN give errors, not rows."""
    model = random_model()
    model.teacher.norm.weight.data.fill_(float("nan"))
    save_release(model, SMALL, tmp_path / "weights")
    assert run("embed", tmp_path / "weights", songs, "--out", tmp_path / "out", "--device", "cpu") == 1
    assert capfd.readouterr().err.count("the embedding is not finite") == 3
    assert rows_of(tmp_path / "out", "npz") == {}


@pytest.mark.parametrize("form", FORMATS)
def test_settings_are_not_mixed(weights, songs, tmp_path, capsys, form):
    """Rows of another readout or other weights are an error, and are replaced with --overwrite."""
    base = ("embed", weights, songs, "--out", tmp_path / "out", "--device", "cpu", "--format", form)
    assert run(*base) == 0
    assert run(*base, "--readout", "mean") == 2
    assert (
        "was made with other settings (readout frames and not mean); choose another --out, or pass"
        in capsys.readouterr().err
    )
    assert run(*base, "--readout", "mean", "--overwrite") == 0
    rows = rows_of(tmp_path / "out", form)
    assert {row["values"].shape for row in rows.values()} == {(1, SMALL.width)}
    assert len(rows) == 3
    save_release(random_model(seed=9), SMALL, tmp_path / "other")
    assert run("embed", tmp_path / "other", *base[2:], "--readout", "mean") == 2
    assert "made with other settings (weights " in capsys.readouterr().err


@pytest.mark.parametrize(("form", "suffix"), [("npz", "a.wav.npz"), ("parquet", "part-00000.parquet")])
def test_foreign_files_are_not_touched(weights, songs, tmp_path, capsys, form, suffix):
    """A file of another program stops the command before it writes anything."""
    out = tmp_path / "out"
    out.mkdir()
    (out / suffix).write_bytes(b"somebody's work")
    assert run("embed", weights, songs, "--out", out, "--device", "cpu", "--format", form) == 2
    assert f"{suffix} is not a file of this command" in capsys.readouterr().err
    assert contents(out) == {suffix: b"somebody's work"}


def test_parquet_without_pyarrow_says_what_to_install(weights, songs, tmp_path, capsys, monkeypatch):
    """The error names the extra before any work."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pupujepa.embedding.parquet", raising=False)
    assert run("embed", weights, songs, "--out", tmp_path / "out", "--device", "cpu", "--format", "parquet") == 2
    assert "pip install 'pupujepa[parquet]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_writers_are_one_too_many(weights, songs, tmp_path, capsys):
    """A second command for the same folder is an error while the first one runs."""
    with only_writer(tmp_path / "out"):
        assert run("embed", weights, songs, "--out", tmp_path / "out", "--device", "cpu") == 2
    assert f"out is being written by process {os.getpid()} on " in capsys.readouterr().err
    assert run("embed", weights, songs, "--out", tmp_path / "out", "--device", "cpu") == 0


def test_wrong_inputs_are_refused(weights, songs, tmp_path, capsys):
    """A missing file, an empty folder, clashing names, a wrong readout or layer: one sentence and exit code 2."""
    (tmp_path / "empty").mkdir()
    soundfile.write(tmp_path / "a.wav", tone(0.5), 24_000)
    cases = {
        "no such file or folder": (tmp_path / "nowhere.wav",),
        "holds no audio files": (tmp_path / "empty",),
        "would both be stored as a.wav": (tmp_path / "a.wav", songs / "a.wav"),
        "readout 'median' is unknown": (songs, "--readout", "median"),
        "layer 7 does not exist": (songs, "--layers", "7"),
        "--workers 0: give at least one thread to decode": (songs, "--workers", "0"),
        "--part-mb 0 must be positive": (songs, "--part-mb", "0"),
        "readout region:9x1 needs 1 to 8 blocks along frequency": (songs, "--readout", "region:9x1"),
    }
    for message, inputs in cases.items():
        assert run("embed", weights, *inputs, "--out", tmp_path / "out", "--device", "cpu") == 2
        told = capsys.readouterr().err
        assert message in told
        assert "error: " in told


def test_a_device_that_is_not_there_is_refused(weights, songs, tmp_path, capsys):
    """One sentence before the weights are read."""
    assert run("embed", weights, songs, "--out", tmp_path / "out", "--device", "gpu") == 2
    assert "error: device 'gpu' cannot be used here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_refused(weights, songs, tmp_path, capsys):
    """An --out that is a file, or below one, gives one sentence."""
    (tmp_path / "out").write_text("a file")
    for out in (tmp_path / "out", tmp_path / "out" / "below"):
        assert run("embed", weights, songs, "--out", out, "--device", "cpu") == 2
        assert f"error: the folder {out} is not writable" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "a file"


def test_progress_tells_rate_and_remaining_time(weights, many_songs, tmp_path, capfd):
    """Without a terminal the log shows progress, rate and duration."""
    assert run("embed", weights, many_songs, "--out", tmp_path / "out", "--device", "cpu") == 0
    told = capfd.readouterr().err
    assert re.search(r"embed: 4/4 MB in \d+ s, 16/16 files, [\d.]+ files/s, \d+ times real time", told)


def test_fingerprints_tell_models_apart():
    """Weights, rotary mode and front end change the fingerprint; equal models have equal ones."""
    config = type(SMALL)(**{**SMALL.__dict__, "rope": "clip_relative"})
    prints = {model_fingerprint(model) for model in (random_model(), random_model(seed=2), random_model(config))}
    assert len(prints) == 3
    assert model_fingerprint(random_model()) in prints

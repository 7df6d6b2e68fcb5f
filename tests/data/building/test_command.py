"""The command `data build`: every file is accounted for, one build at a time, and an orderly end on signals."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.__main__ import COMMANDS
from data.building import command
from data.building.build import Build
from data.building.config import BuildConfig
from data.building.shares import only_build
from data.building.spool import spooled_facts
from data.shards.manifest import read_manifest
from pupujepa.errors import UserError
from pupujepa.front_door import enter
from tests.data.building.test_build import content_of
from tests.data.dying import ROOT
from tests.data.songs import write_song
from tests.processes import members, wait_until_gone

OPTIONS = ["--min-frames=100", "--workers=1"]


def run(*arguments: str | Path) -> int:
    return enter("data", COMMANDS, manual="", argv=["build", *map(str, arguments), *OPTIONS])


def test_every_file_of_a_person_s_folder_is_accounted_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Links, odd names and suffixes, a Mac's files, short and silent sounds: built, or counted by reason and named."""
    folder, far, name = tmp_path / "songs", tmp_path / "far", "\u97f3" * 83
    for number, file in enumerate(("Ke$ha - Tik_$.wav", f"{name}.wav", "loud.WAVE", "b.mp2")):
        write_song(folder / "x.wav", 2.0, seed=number)
        (folder / "x.wav").rename(folder / file)
    write_song(far / "album" / "a.flac", 2.0, seed=9)
    write_song(folder / "door.wav", 0.5)
    (folder / "linked").symlink_to(far)
    (folder / "linked" / "loop").symlink_to(far)
    (folder / "gone.wav").symlink_to(far / "nothing.wav")
    for passed in ("._door.wav", "cover.jpg", "a.m4a", "b.M4A", os.fsdecode(b"caf\xe9.wav")):
        (folder / passed).write_bytes(b"x")
    assert run(folder, tmp_path / "out") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("train: 5 tracks, 0.00 h, 5 samples in 1 shard, ")
    assert lines[1:] == [
        f"6 tracks in the input: 5 built, 1 too short; see {tmp_path}/out/rejected.jsonl",
        "passed over, not audio that is read (convert music to wav, flac, ogg or mp3): 2 .m4a, 1 .jpg",
        "passed over, links that lead nowhere: 1 (gone.wav)",
        "passed over, links to a folder that is searched already: 1 (linked/loop)",
        "passed over, ._ files of macOS: 1 (._door.wav)",
        r"passed over, names that are not valid Unicode, rename them: 1 (caf\udce9.wav)",
    ]
    assert read_manifest(str(tmp_path / "out" / "train")).tracks == 5


def test_a_folder_of_one_build_is_closed_to_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """While a build of another input runs into OUT or into its work folder, a second is refused and changes nothing."""
    monkeypatch.setattr("data.building.shares._ENTRY_S", 0.0)
    write_song(tmp_path / "in" / "a.wav", 2.0)
    for folder, options in ((tmp_path / "out", ()), (tmp_path / "work", (f"--work-dir={tmp_path}/work",))):
        with only_build(folder, digest="0" * 64, is_part=False):
            before = content_of(tmp_path)
            for more in ((), ("--part=1/2",), ("--merge=2",)):
                assert run(tmp_path / "in", tmp_path / "out", *options, *more) == 2
                assert f"{folder} is being written by process {os.getpid()} on " in capsys.readouterr().err
            assert content_of(tmp_path) == before
    assert run(tmp_path / "in", tmp_path / "out", f"--work-dir={tmp_path}/work") == 0
    assert not (tmp_path / "work").exists()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("build.json", "duplicates.jsonl", "rejected.jsonl", "train"),
    }


def test_parts_of_one_build_run_together_and_no_other_beside_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """While a part runs, another part of its build may; a part of another build, a whole one and a merge may not."""
    write_song(tmp_path / "in" / "a.wav", 2.0)
    out = tmp_path / "out"
    tracks = command.read_inputs(tmp_path / "in", seed=0)
    config = BuildConfig(features=command.FeatureConfig(min_frames=100))
    digest = Build(tracks, str(out), config=config, work="", workers=1).digest
    with only_build(out, digest=digest, is_part=True):
        assert run(tmp_path / "in", out, "--part=2/2") == 0
        for more in (("--part=1/2", "--seed=5"), (), ("--merge=2",)):
            capsys.readouterr()
            assert run(tmp_path / "in", out, *more) == 2
            assert f"parts of a build are being made in {out}; another build would mix" in capsys.readouterr().err
    assert run(tmp_path / "in", out, "--part=1/2") == 0
    assert run(tmp_path / "in", out, "--merge=2") == 0
    assert not list(out.glob(".*"))


def test_a_killed_build_frees_its_folder(tmp_path: Path):
    """The reservation ends with its process, by SIGKILL too."""
    code = (
        "import sys; from pathlib import Path; from data.building.shares import only_build\n"
        "with only_build(Path(sys.argv[1]), digest='0' * 64, is_part=sys.argv[2] == 'part'):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    for kind in ("part", "whole"):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), kind], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(UserError), only_build(tmp_path, digest="1" * 64, is_part=False):
                pytest.fail("two builds")
            holder.kill()
        with only_build(tmp_path, digest="1" * 64, is_part=False):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_a_signal_ends_a_build_in_order(number: signal.Signals, tmp_path: Path):
    """One line, the exit code of the signal, no worker left, and finished tracks stay in the spool."""
    write_song(tmp_path / "in" / "00.wav", 60.0)
    for song in range(1, 40):
        (tmp_path / "in" / f"{song:02d}.wav").hardlink_to(tmp_path / "in" / "00.wav")
    spool = tmp_path / "out" / ".work" / "spool"
    started = [sys.executable, "-m", "data", "build", str(tmp_path / "in"), str(tmp_path / "out"), "--workers=2"]
    with subprocess.Popen(started, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as build:
        while not list(spool.glob("*.json")):
            assert build.poll() is None
            time.sleep(0.01)
        group = members(build.pid)
        os.killpg(build.pid, number)  # as a terminal does
        said = build.communicate()[1]
    assert build.returncode == 128 + number
    lines = [line for line in said.splitlines() if not line.startswith("features: ")]
    assert lines == [f"stopped by {number.name}; finished tracks are kept: run the same command to continue"]
    wait_until_gone(group)
    done = spooled_facts(str(spool), [path.stem for path in spool.glob("*.json")])
    assert 0 < len(done) < 40
    assert all(facts.frames == 6000 for facts in done.values())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".work"]


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A worker that cannot write ends the build in order; with room, the same command finishes it."""
    for number in range(3):
        write_song(tmp_path / "in" / f"{number}.wav", 2.0, seed=number)
    code = (  # files of up to 20 kB: facts, but no features
        "import resource, sys; from data.__main__ import COMMANDS; from pupujepa.front_door import enter\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\n"
        "sys.exit(enter('data', COMMANDS, manual='', argv=sys.argv[1:]))"
    )
    words = ["build", str(tmp_path / "in"), str(tmp_path / "out"), *OPTIONS]
    full = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, check=False, capture_output=True, text=True)
    assert full.returncode == 2, full.stderr
    assert full.stderr.splitlines()[-1] == (
        f"error: no room for {tmp_path}/out or its intermediate files in {tmp_path}/out/.work (File too large); free "
        "some, then run the same command again, which keeps what is done"
    )
    assert run(tmp_path / "in", tmp_path / "out") == 0
    assert "3 tracks in the input: 3 built\n" in capsys.readouterr().out


def test_a_second_signal_ends_a_build_at_once():
    """While the first one still tidies up, the second has its default action; a hang-up under nohup has none."""
    code = (
        "import os, signal, time; from data.building.command import _stoppable\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with _stoppable():\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    try:\n        print('at work', flush=True); time.sleep(600)\n"
        "    finally:\n        print('tidying', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as build:
        assert build.stdout is not None
        for said in ("at work\n", "tidying\n"):
            assert build.stdout.readline() == said
            build.send_signal(signal.SIGINT)
    assert build.returncode == -signal.SIGINT


def test_work_outside_of_the_corpus_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """For a bucket, the work folder is found again, belongs to this user alone, and nobody can put a link there."""
    monkeypatch.setattr(command.tempfile, "gettempdir", lambda: str(tmp_path))
    build = Build([], "s3://bucket/corpus", config=BuildConfig(), work="", workers=1)
    folder = Path(command._work(build, is_shared=False))
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert command._work(build, is_shared=False) == str(folder)
    folder.chmod(0o777)
    with pytest.raises(UserError, match="open to others, who could change its files; remove it, or set TMPDIR"):
        command._work(build, is_shared=False)
    folder.rmdir()
    (tmp_path / "theirs").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match="is open to others"):
        command._work(build, is_shared=False)


def test_a_corpus_published_during_the_feature_pass_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where folders cannot be reserved, a build looks again before it publishes: the other corpus stays."""
    for name in "ab":
        write_song(tmp_path / name / "song.wav", 2.0, seed=ord(name))
    assert run(tmp_path / "b", tmp_path / "elsewhere") == 0
    other, make_features = content_of(tmp_path / "elsewhere"), Build._make_features

    def overtaken(build: Build, *arguments):
        shutil.copytree(tmp_path / "elsewhere" / "train", tmp_path / "out" / "train")
        return make_features(build, *arguments)

    monkeypatch.setattr(Build, "_make_features", overtaken)
    assert run(tmp_path / "a", tmp_path / "out") == 2
    published = content_of(tmp_path / "out" / "train")
    assert published == {name.removeprefix("train/"): c for name, c in other.items() if name.startswith("train/")}

"""A build shared by machines has the bytes of a single build, after any kills; missing parts are named."""

from pathlib import Path

import pytest

from data.__main__ import COMMANDS
from data.building.shares import Share, parse_share
from data.store.store import open_store
from pupujepa.errors import UserError
from pupujepa.front_door import enter
from tests.data.building.test_build import OPTIONS, content_of
from tests.data.dying import run_and_die
from tests.data.songs import write_album, write_song
from tests.data.test_build_inputs import song_bytes, write_tar


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of seven songs, one of them twice, and a file that cannot be used."""
    folder = tmp_path_factory.mktemp("album") / "in"
    write_album(folder)
    (folder / "two" / "again.wav").write_bytes((folder / "top.wav").read_bytes())
    write_song(folder / "short.wav", 0.2)
    return folder


@pytest.fixture(scope="module")
def built(album: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """All files of the corpus, built without parts by two workers."""
    out = tmp_path_factory.mktemp("built") / "out"
    assert run(album, out, "--workers=2") == 0
    return content_of(out)


def run(folder: Path, out: Path | str, *more: str) -> int:
    return enter("data", COMMANDS, manual="", argv=arguments(folder, out, *more))


def arguments(folder: Path, out: Path | str, *more: str) -> list[str]:
    """The command line; one worker per machine by default."""
    options = [*OPTIONS, "--max-rejected=1", "--drop-duplicates", "--workers=1"]
    return ["build", str(folder), str(out), *options, *more]


@pytest.mark.parametrize("parts", [1, 3, 12])
def test_parts_make_the_bytes_of_one_go(parts: int, album: Path, built: dict[str, bytes], tmp_path: Path):
    """Any number of parts in any order, even more than tracks; no intermediate file stays."""
    for number in reversed(range(1, parts + 1)):
        assert run(album, tmp_path, f"--part={number}/{parts}") == 0
        assert not list(tmp_path.glob("*/manifest.json"))
    assert run(album, tmp_path, f"--merge={parts}", "--workers=2") == 0
    assert content_of(tmp_path) == built


def test_a_missing_part_is_named_and_nothing_is_published(
    album: Path, built: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A merge after one of three parts names the others, and how to run them; then it succeeds."""
    assert run(album, tmp_path, "--part=2/3") == 0
    assert run(album, tmp_path, "--merge=3") == 2
    assert "2 of 3 parts have not finished: 1/3, 3/3; run each again" in capsys.readouterr().err
    assert not list(tmp_path.glob("*/*.tar"))
    for part in ("1/3", "3/3"):
        assert run(album, tmp_path, f"--part={part}") == 0
    assert run(album, tmp_path, "--merge=3") == 0
    assert content_of(tmp_path) == built


def test_a_part_of_other_settings_is_named(album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The merge names parts that ran with another seed."""
    assert run(album, tmp_path, "--part=1/2") == 0
    assert run(album, tmp_path, "--part=2/2", "--seed=9") == 0
    assert run(album, tmp_path, "--merge=2") == 2
    assert "of 2 parts, 2/2 were made of another input" in capsys.readouterr().err


def test_a_killed_part_and_a_killed_merge_go_on(album: Path, built: dict[str, bytes], tmp_path: Path):
    """SIGKILL after the first track of a part, and after the first shard of the merge; then the same commands again."""
    assert run(album, tmp_path, "--part=2/2") == 0
    run_and_die("facts", arguments(album, tmp_path, "--part=1/2"))
    assert run(album, tmp_path, "--merge=2") == 2
    assert run(album, tmp_path, "--part=1/2") == 0
    run_and_die("entry", arguments(album, tmp_path, "--merge=2"))
    assert list(tmp_path.glob("*/*.tar"))
    assert not list(tmp_path.glob("*/manifest.json"))
    assert run(album, tmp_path, "--merge=2") == 0
    assert content_of(tmp_path) == built


def test_machines_that_share_only_a_bucket(tmp_path: Path, bucket: str):
    """Input, spool and shards on s3://: parts and merge make the objects of a local build of the same tars."""
    local = tmp_path / "tars"
    for number in range(2):
        write_tar(local / f"{number}.tar", {f"{key}.flac": song_bytes("flac", seed=5 * number + key) for key in (1, 2)})
        open_store(bucket).upload(local / f"{number}.tar", f"in/tars/{number}.tar")
    assert run(local, tmp_path / "out") == 0
    for more in ("--part=1/2", "--part=2/2", "--merge=2"):
        assert run(f"{bucket}/in/tars", f"{bucket}/out", more) == 0
    store = open_store(f"{bucket}/out")
    expected = content_of(tmp_path / "out")
    del expected["build.json"]
    assert {name: store.read(name) for name in store.list() if name != "build.json"} == expected


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2"])
def test_a_part_that_is_none_is_refused(text: str):
    """Parts are counted from 1 to n."""
    with pytest.raises(UserError, match=r"write i/n with 1 <= i <= n, such as 3/8"):
        parse_share(text)


def test_a_part_is_read_as_it_is_written():
    """`i/n` and the share are inverses."""
    assert parse_share("3/8") == Share(3, 8)
    assert str(parse_share("03/8")) == "3/8"

"""Checkpoints: whole or not there, whatever is killed when; damage is named, and the one before is used."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist

from distributed.checkpoints.manifest import (
    CheckpointError,
    DamagedError,
    owner,
    parse_manifest,
    render_manifest,
)
from distributed.checkpoints.reading import committed
from distributed.checkpoints.store import CheckpointStore
from distributed.processes.topology import Topology
from pupujepa.errors import UserError


class CrashError(Exception):
    """Stands for a kill at one point."""


pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", Topology(), keep=3)


def writer(text="weights"):
    def write(directory: Path) -> None:
        (directory / "engine").mkdir(exist_ok=True)
        (directory / "engine" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_text(text * 100)
        (directory / "state.json").write_text(text)

    return write


def test_what_is_saved_is_found(store):
    """The newest checkpoint is returned with its facts, and LATEST names it."""
    store.save(5, writer("five"), {"world_size": 1})
    saved = store.save(10, writer("ten"), {"world_size": 1})
    found = store.newest_whole()
    assert found == saved
    assert (found.step, found.name, found.facts["world_size"]) == (10, "step-0000010", 1)
    assert (found.path / "state.json").read_text() == "ten"
    assert (store.root / "LATEST").read_text() == "step-0000010\n"
    assert committed(store.root).digest == found.digest
    assert committed(store.root, step=5).step == 5


def test_a_new_run_has_none(store):
    """No directory and an empty directory are a run that has not saved yet, which is no error."""
    assert store.newest_whole() is None
    store.root.mkdir()
    assert store.newest_whole() is None


def test_only_the_newest_are_kept(store):
    """Older checkpoints than the configured number are deleted, after the new one is safe."""
    for step in (1, 2, 3, 4, 5):
        store.save(step, writer(), {})
    assert store.steps() == [5, 4, 3]
    assert {p.name for p in store.root.iterdir()} == {"LATEST", "step-0000003", "step-0000004", "step-0000005"}


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "said"),
    [(flip_a_bit, "is damaged: its sha256"), (cut, "bytes instead of"), (Path.unlink, "cannot be read")],
)
@pytest.mark.parametrize("name", ["state.json", "engine/zero_pp_rank_0_mp_rank_00_optim_states.pt"])
def test_a_damaged_checkpoint_is_named_and_passed_over(store, caplog, damage, said, name):
    """One flipped bit, a missing byte or a missing file: the warning names the file, and the one before is taken."""
    store.save(5, writer("five"), {})
    store.save(10, writer("ten"), {})
    damage(store.root / "step-0000010" / name)
    with caplog.at_level(logging.WARNING):
        found = store.newest_whole()
    assert found.step == 5
    assert name in caplog.text
    assert said in caplog.text
    assert "falling back" in caplog.text
    with pytest.raises(CheckpointError, match=Path(name).name):
        committed(store.root)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format_version": 1}', '{"format_version": "2", "files": {}, "step": 10}']
)
def test_a_damaged_manifest_is_passed_over(store, caplog, text):
    """A checkpoint without a manifest of any format is not whole."""
    store.save(5, writer(), {})
    store.save(10, writer(), {})
    (store.root / "step-0000010" / "manifest.json").write_text(text)
    assert store.newest_whole().step == 5
    assert "step-0000010" in caplog.text


def test_a_newer_format_is_no_damage(store):
    """A checkpoint of a newer program stops this one, which says so and changes nothing."""
    store.save(5, writer(), {})
    store.save(10, writer(), {})
    manifest = store.root / "step-0000010" / "manifest.json"
    manifest.write_text('{"format_version": 3, "files": {}, "step": 10, "new": true}')
    before = contents(store)
    message = r"step-0000010 has format version 3, and this program reads up to 2.*; update the program to continue"
    with pytest.raises(CheckpointError, match=message):
        store.newest_whole()
    with pytest.raises(CheckpointError, match=message):
        committed(store.root)
    assert contents(store) == before


def contents(store):
    return {str(p): p.read_bytes() for p in store.root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "engine/zero_pp_rank_0_mp_rank_00_optim_states.pt"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_file_that_cannot_be_read_now_is_no_damage(store, monkeypatch, name, code):
    """No rights, a failing disk, a stale handle, too many open files: it stops, names file and errno, keeps all."""
    store.save(7, writer("seven"), {})
    store.save(14, writer("fourteen"), {})
    before, path = contents(store), store.root / "step-0000014" / name
    open_file = Path.open

    def fail(self, *args, **kwargs):
        if self == path:
            raise OSError(code, os.strerror(code), str(self))
        return open_file(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        message = rf"{path} cannot be read now \({os.strerror(code)}, errno {code}\), so nothing was changed"
        with pytest.raises(CheckpointError, match=message):
            store.newest_whole()
        with pytest.raises(UserError, match=message):
            committed(store.root)
    assert contents(store) == before
    assert store.newest_whole().step == 14


def test_rights_are_those_of_the_user(tmp_path, store):
    """A real user without rights gets the errno of the system, of a file and of the folder of checkpoints."""
    saved = store.save(5, writer(), {})
    code = (
        "import os, sys; from pathlib import Path\n"
        "from distributed.checkpoints.shared_directory import SharedDirectory\n"
        "from distributed.processes.topology import Topology\n"
        "from pupujepa.errors import UserError\n"
        "os.chdir(sys.argv[1]); os.geteuid() or os.setuid(65534)\n"
        "place = SharedDirectory(Path('checkpoints'))\n"
        "try:\n  print(place.damage(5, Topology()), place.steps())\n"
        "except UserError as error:\n  print(error)"
    )
    tmp_path.chmod(0o755)
    for locked in (saved.path / "state.json", store.root):
        mode = locked.stat().st_mode
        locked.chmod(0)
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=600, check=True
        )
        locked.chmod(mode)
        assert "cannot be read now (Permission denied, errno 13), so nothing was changed" in done.stdout


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", ".", "a\\b", "C:x", "a\0b", "a//b"])
def test_a_manifest_that_names_other_files_is_refused(tmp_path, name):
    """A checkpoint of a stranger, digests and all, cannot name a file outside its folder; no older one is taken."""
    store = CheckpointStore(tmp_path / "checkpoints", Topology(), keep=3)
    store.save(5, writer(), {})
    saved = store.save(10, writer(), {})
    text = render_manifest({"step": 10}, {name: {"bytes": 1, "sha256": ""}})
    (saved.path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match="which is not a plain relative path and could overwrite other files"):
        store.newest_whole()


def test_no_bit_of_a_manifest_can_be_flipped(store):
    """The manifest vouches for itself: any bit of it flipped makes the checkpoint damaged, also in its spaces."""
    saved = store.save(5, writer(), {"world_size": 1})
    content = (saved.path / "manifest.json").read_bytes()
    for place in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(DamagedError, match=r"manifest\.json"):
            parse_manifest(bytes(flipped), "step-0000005")


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"format_version": 2, "step": Infinity, "files": {}}']
    + [b'{"format_version": 1, "step": 5, "files": {"a": %s}}' % entry for entry in (b"5", b'{"bytes": 1}')],
    ids=range(4),
)
def test_a_manifest_of_other_types_is_damage(content):
    """An older checkpoint takes over; no traceback."""
    with pytest.raises(DamagedError, match="has no readable manifest"):
        parse_manifest(content, "step-0000005")


def test_checkpoints_of_the_first_format_are_read(store):
    """A manifest without a digest of its own, as earlier versions wrote it, is still a manifest."""
    saved = store.save(5, writer(), {"world_size": 1})
    manifest = json.loads((saved.path / "manifest.json").read_text())
    del manifest["manifest_sha256"]
    (saved.path / "manifest.json").write_text(json.dumps(manifest | {"format_version": 1}, indent=2) + "\n")
    assert store.newest_whole().facts["world_size"] == 1


def test_when_none_is_whole_nothing_starts_from_zero(store):
    """A run whose checkpoints are all damaged is an error, not step 0."""
    store.save(5, writer(), {})
    cut(store.root / "step-0000005" / "state.json")
    with pytest.raises(CheckpointError, match="does not start from zero over a run that exists"):
        store.newest_whole()


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(store):
    """After falling back the run reaches the damaged step again and writes it anew."""
    store.save(5, writer(), {})
    store.save(10, writer("old"), {})
    cut(store.root / "step-0000010" / "state.json")
    store.save(10, writer("new"), {})
    assert (store.newest_whole().path / "state.json").read_text() == "new"


def operations_of_a_commit(tmp_path, monkeypatch, crash_at):
    """Saves a second checkpoint whose `crash_at`-th file operation is the last thing that happens."""
    store = CheckpointStore(tmp_path / f"crash-{crash_at}", Topology(), keep=1)
    store.save(5, writer("five"), {})
    crashed = crashes(lambda: store.save(10, writer("ten"), {}), monkeypatch, crash_at=crash_at)
    # what is left of a process that was killed is its files
    return CheckpointStore(store.root, Topology(), keep=1), crashed


def crashes(save, monkeypatch, *, crash_at):
    """Saves until the `crash_at`-th file operation; returns False if there are fewer."""
    count = 0

    def counted(function):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == crash_at:
                raise CrashError
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for target, name in (
            (Path, "mkdir"),
            (Path, "rename"),
            (Path, "replace"),
            (os, "fsync"),
            (os, "unlink"),
            (os, "rmdir"),
        ):
            patch.setattr(target, name, counted(getattr(target, name)))
        try:
            save()
        except CrashError:
            return True
    return False


def test_a_crash_at_any_file_operation_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    """Killed before the k-th file operation of a save, for every k: one checkpoint is whole and the next save works."""
    crash_at, outcomes = 0, []
    crashed = True
    while crashed:
        crash_at += 1
        store, crashed = operations_of_a_commit(tmp_path, monkeypatch, crash_at)
        found = store.newest_whole()
        assert (found.path / "state.json").read_text() == {5: "five", 10: "ten"}[found.step]
        outcomes.append(found.step)
        store.save(11, writer("eleven"), {})
        assert store.newest_whole().step == 11
        assert {p.name for p in store.root.iterdir()} == {"LATEST", "step-0000011"}
    assert outcomes[0] == 5
    assert outcomes[-1] == 10
    assert outcomes == sorted(outcomes), "once the new one is whole it stays"
    assert len(outcomes) > 10, "the crash points were not reached"


def test_a_crash_while_a_damaged_checkpoint_is_replaced_loses_no_complete_one(tmp_path, monkeypatch):
    """Between the end of the old one and the name of the new one, too: from its manifest on, the new one is found."""
    crash_at, found, crashed = 0, [], True
    while crashed:
        crash_at += 1
        store = CheckpointStore(tmp_path / f"crash-{crash_at}", Topology(), keep=1)
        cut(store.save(10, writer("old"), {}).path / "state.json")
        crashed = crashes(lambda store=store: store.save(10, writer("new"), {}), monkeypatch, crash_at=crash_at)
        after = CheckpointStore(store.root, Topology(), keep=1)
        try:
            found.append((after.newest_whole().path / "state.json").read_text())
        except CheckpointError as error:
            found.append("none")
            assert "no checkpoint is whole" in str(error), "a run must not begin again"
        after.save(11, writer("eleven"), {})
        assert {p.name for p in store.root.iterdir()} == {"LATEST", "step-0000011"}
    assert found == sorted(found, reverse=True), "once the new one is complete it stays"
    assert found.count("new") > 5, "the crash points after the manifest were not reached"


def test_sigkill_in_the_middle_of_writing(tmp_path, store):
    """A process that is killed while it writes a checkpoint leaves the previous one, and no rest that matters."""
    store.save(5, writer("five"), {})
    code = (
        "import sys, time, torch; from pathlib import Path\n"
        "from distributed.checkpoints.store import CheckpointStore\n"
        "from distributed.processes.topology import Topology, process_group\n"
        "def write(directory):\n"
        "  (directory / 'half').write_text('half'); print('writing', flush=True); time.sleep(600)\n"
        "with process_group(Topology(), timeout_s=30, device=torch.device('cpu')):\n"
        "  CheckpointStore(Path(sys.argv[1]), Topology(), keep=3).save(10, write, {})"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(store.root)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert (store.root / "step-0000010.tmp" / "half").exists()
    assert store.newest_whole().step == 5
    store.save(10, writer("ten"), {})
    assert (store.newest_whole().path / "state.json").read_text() == "ten"
    assert not list(store.root.glob("*.tmp"))


def test_files_that_rank_0_does_not_see_are_an_error(store, monkeypatch):
    """A node with a run directory of its own would leave a checkpoint with holes; it is refused, and not named."""

    def gather_one_more(of_ranks, own):
        of_ranks[0] = replace(own, result=own.result | {"random-rank-00001.pt": {"bytes": 1, "sha256": ""}})

    monkeypatch.setattr(dist, "all_gather_object", gather_one_more)
    with pytest.raises(CheckpointError, match=r"random-rank-00001.pt .* not the same on all nodes"):
        store.save(5, writer(), {})
    assert store.steps() == []


def test_asking_for_a_checkpoint_that_is_not_there(store):
    """The message lists those that are."""
    with pytest.raises(CheckpointError, match="has not finished a checkpoint yet"):
        committed(store.root)
    store.save(5, writer(), {})
    with pytest.raises(CheckpointError, match="there are: step-0000005"):
        committed(store.root, step=7)


def test_every_file_has_one_owner():
    """DeepSpeed's files of a rank belong to that rank, what is written once to rank 0: each has one digest."""
    assert owner(Path("zero_pp_rank_3_mp_rank_00_optim_states.pt"), 8) == 3
    assert owner(Path("bf16_zero_pp_rank_5_mp_rank_00_optim_states.pt"), 8) == 5
    assert owner(Path("random-rank-00007.pt"), 8) == 7
    for name in ("mp_rank_00_model_states.pt", "teacher.safetensors", "state.json", "zero_to_fp32.py"):
        assert owner(Path(name), 8) == 0


def test_the_manifest_lists_every_file(store):
    """Nothing in the directory is outside the digests but the manifest itself."""
    saved = store.save(5, writer(), {})
    manifest = json.loads((saved.path / "manifest.json").read_text())
    there = {str(p.relative_to(saved.path)) for p in saved.path.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == there - {"manifest.json"}

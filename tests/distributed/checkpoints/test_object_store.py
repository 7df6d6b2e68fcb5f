"""Checkpoints in a real object store: the manifest is written last; what has none is no checkpoint."""

import json
import logging
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from data.store.store import StoreError, open_store
from distributed.__main__ import COMMANDS
from distributed.checkpoints import fencing
from distributed.checkpoints import object_store as checkpoint_objects
from distributed.checkpoints.fencing import take_generation
from distributed.checkpoints.manifest import CheckpointError, render_manifest
from distributed.checkpoints.object_store import ObjectPrefix
from distributed.checkpoints.reading import checkpoint_place, committed
from distributed.checkpoints.store import CheckpointStore
from distributed.experiment import load_experiment
from distributed.processes.collectives import SupersededError
from distributed.processes.topology import Topology
from distributed.run.directory import RunDirectory
from distributed.sessions import export
from distributed.sessions.cooldown import adopt_checkpoint, branch_experiment
from pupujepa.config import to_yaml
from pupujepa.errors import UserError
from pupujepa.front_door import enter
from pupujepa.weights import weights
from tests.distributed.launch import PRESET, deterministic_rows

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def open_run(bucket, tmp_path, monkeypatch):
    """Opens the checkpoints of a run on a machine, as a start of the run that may write."""
    # a client takes longer to make than all requests of a test
    opened = cache(open_store)
    for module in (checkpoint_objects, fencing):
        monkeypatch.setattr(module, "open_store", opened)

    def make(machine="one", *, keep=3):
        place = checkpoint_place(RunDirectory(tmp_path / machine), bucket)
        assert isinstance(place, ObjectPrefix)
        store = CheckpointStore(place, Topology(), keep=keep)
        store.write_as(take_generation(bucket, facts={}))
        return store

    return make


def writer(text):
    def write(directory: Path):
        (directory / "engine").mkdir(exist_ok=True)

        def rest():
            (directory / "engine" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_text(text * 1000)
            (directory / "state.json").write_text(text)

        return rest

    return write


def test_what_one_machine_saves_another_loads(bucket, open_run):
    """The newest whole checkpoint comes back verified, by the run and by readers; LATEST names it; no copies stay."""
    one = open_run("one")
    one.save(5, writer("five"), {"world_size": 1})
    saved = one.save(10, writer("ten"), {"world_size": 1})
    other = open_run("two")
    found = other.newest_whole()
    assert (found.step, found.digest, found.facts) == (10, saved.digest, saved.facts)
    assert (found.path / "engine" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").read_text() == "ten" * 1000
    assert open_store(bucket).read("LATEST") == b"step-0000010\n"
    assert (committed(other.place, step=5).path / "state.json").read_text() == "five"
    other.save(15, writer("fifteen"), {})
    assert other.steps() == [15, 10, 5]
    manifest = json.loads(open_store(bucket).read("step-0000005/manifest.json"))
    assert manifest["generation"] == 1
    assert set(manifest["files"]) == {"state.json", "engine/zero_pp_rank_0_mp_rank_00_optim_states.pt"}
    for store in (one, other):
        assert [p for p in store.place.staging.rglob("*") if p.is_file()] == []


def test_a_branch_begins_with_a_copy_out_of_its_parents_bucket(bucket, open_run, tmp_path):
    """The parent's newest, verified, in the branch's own directory; the bucket stays as it is, no other copies stay."""
    parent, new = (RunDirectory(tmp_path / name) for name in ("parent", "new"))
    parent.root.mkdir()
    schedule = ["train.steps=100", "schedule.kind=wsd", "schedule.cooldown_fraction=0.25"]
    before = load_experiment([str(PRESET)], overrides=["stream.url=/shards", f"checkpoint.url={bucket}", *schedule])
    parent.config.write_text(to_yaml(before))
    open_run("one").save(80, writer("eighty"), {"world_size": 1})
    there = open_store(bucket).list("")
    experiment = branch_experiment(str(parent.root), new)
    assert (experiment.branch.step, experiment.checkpoint.url) == (80, "")
    own = CheckpointStore(checkpoint_place(new), Topology(), keep=3)
    adopt_checkpoint(SimpleNamespace(experiment=experiment, directory=new, topology=Topology()), own)
    found = own.newest_whole()
    assert (found.step, found.path.parent) == (80, new.checkpoints)
    assert (found.path / "state.json").read_text() == "eighty"
    assert open_store(bucket).list("") == there
    assert [p for p in new.root.rglob("*state*") if found.path not in p.parents] == []


def test_older_ones_are_deleted_by_their_manifest_first(bucket, open_run):
    """Retention leaves the objects of the newest only."""
    store = open_run(keep=1)
    for step in (5, 10, 15):
        store.save(step, writer("w"), {})
    assert store.steps() == [15]
    assert open_store(bucket).list("step-") == [
        "step-0000015/g1/engine/zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "step-0000015/g1/state.json",
        "step-0000015/manifest.json",
    ]


def test_a_flipped_bit_in_any_object_is_passed_over(bucket, open_run, caplog):
    """A damaged object, or one that is missing, is named, and the checkpoint before it is taken."""
    store = open_run()
    store.save(5, writer("five"), {})
    store.save(10, writer("ten"), {})
    objects = store.place.store
    names = objects.list("step-0000010/")
    assert len(names) == 3
    for name in names:
        whole = objects.read(name)
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        objects.write(name, bytes(flipped))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert store.newest_whole().step == 5
        assert name in caplog.text or "manifest.json" in caplog.text
        objects.remove(name)
        assert store.newest_whole().step == 5
        objects.write(name, whole)
    assert store.newest_whole().step == 10


def test_a_kill_at_any_request_leaves_a_whole_checkpoint(open_run, monkeypatch):
    """Ended before the k-th change of the store, for every k: one checkpoint is whole, and the next start cleans up."""

    class CrashError(Exception):
        """Stands for a kill."""

    outcomes, crashed, crash_at = [], True, 0
    while crashed:
        crash_at += 1
        store = open_run(keep=1)
        store.save(5, writer("five"), {})
        count = 0

        def counted(method, crash_at=crash_at):
            def call(*args):
                nonlocal count
                count += 1
                if count == crash_at:
                    raise CrashError
                return method(*args)

            return call

        crashed = False
        with monkeypatch.context() as patch:
            for name in ("write", "upload", "remove"):
                patch.setattr(store.place.store, name, counted(getattr(store.place.store, name)))
            try:
                store.save(10, writer("ten"), {})
            except CrashError:
                crashed = True
        after = open_run("after", keep=1)
        found = after.newest_whole()
        outcomes.append(found.step)
        assert (found.path / "state.json").read_text() == {5: "five", 10: "ten"}[found.step]
        after.save(20, writer("twenty"), {})
        assert after.steps() == [20]
        assert {name.split("/")[0] for name in after.place.store.list("step-")} == {"step-0000020"}
        after.place.delete(20)
    assert outcomes[0] == 5
    assert outcomes[-1] == 10
    assert outcomes == sorted(outcomes), "once the new one is whole it stays"
    assert len(outcomes) > 5, "the crash points were not reached"


def test_a_leftover_cannot_damage_what_a_newer_start_has_written(open_run):
    """An older start that writes the files of the same step writes them elsewhere, and is told before it commits."""
    old = open_run("one")
    old.begin(5, writer("old"), {})
    new = open_run("two")
    new.save(5, writer("new"), {})
    with pytest.raises(SupersededError, match="generation 2 was started"):
        old.poll(wait=True)
    found = open_run("three").newest_whole()
    assert (found.path / "state.json").read_text() == "new"
    assert found.facts["generation"] == 2


@pytest.mark.parametrize("name", ["{victim}", "../../victim"])
def test_a_foreign_bucket_writes_no_file_of_the_user(tmp_path, name):
    """Names in the list of a foreign checkpoint are refused before anything is downloaded."""
    victim, bucket = tmp_path / "home" / "victim", tmp_path / "bucket"
    victim.parent.mkdir()
    victim.write_text("mine")
    (bucket / "step-0000005" / "g0").mkdir(parents=True)
    name = name.format(victim=victim)
    text = render_manifest({"step": 5}, {name: {"bytes": 7, "sha256": sha256(b"foreign").hexdigest()}})
    (bucket / "step-0000005" / "manifest.json").write_text(text)
    (bucket / "victim").write_text("foreign")
    staging = tmp_path / "home" / "staging"
    place = ObjectPrefix(bucket.as_uri(), staging=staging)
    with pytest.raises(UserError, match=r"names the file '.*victim', which is not a plain relative path"):
        place.damage(5, Topology())
    assert victim.read_text() == "mine"
    assert not staging.exists()


def test_a_store_that_cannot_be_reached_is_no_damage(open_run, monkeypatch):
    """An outage must not make a run fall back, or begin again."""
    store = open_run()
    store.save(5, writer("five"), {})

    def fail(*args):
        raise StoreError("cannot read s3://: 3 tries failed")

    monkeypatch.setattr(store.place.store, "read", fail)
    with pytest.raises(CheckpointError, match="step-0000005 cannot be verified: cannot read s3://"):
        store.newest_whole()
    monkeypatch.setattr(store.place.store, "list", fail)
    with pytest.raises(CheckpointError, match="cannot be listed"):
        store.newest_whole()


def test_a_training_keeps_its_checkpoints_in_a_store(bucket, tmp_path, shards, run_jobs, capsys, monkeypatch):
    """Two ranks, stopped and continued: the rows of a run on disk, bit for bit; listed, exported, branched off."""

    def job(name, *overrides, **more):
        overrides = ["train.steps=12", "checkpoint.every=4", *overrides]
        return {"run_dir": str(tmp_path / name), "url": shards, "overrides": overrides} | more

    remote = job("remote", f"checkpoint.url={bucket}")
    run_jobs(tmp_path, (2, [job("local"), remote | {"stop_at": 6}, remote]))
    assert deterministic_rows(tmp_path / "remote") == deterministic_rows(tmp_path / "local")
    assert not list((tmp_path / "remote").rglob("*.pt"))
    assert [fencing.generations(open_store(f"{root}/generations")) for root in (bucket, tmp_path / "remote")] == [
        [1, 2],
        [1, 2],
    ]
    assert enter("distributed", COMMANDS, manual="", argv=["checkpoints", "--run", str(tmp_path / "remote")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(line[0], line[5]) for line in lines[1:]] == [
        ("4", "whole"),
        ("7", "whole"),
        ("8", "whole"),
        ("12", "whole"),
    ]
    # the test's own log stays
    monkeypatch.setattr(export, "configure_logging", lambda rank: None)
    words = ["export", str(tmp_path / "remote"), "--out", str(tmp_path / "weights")]
    assert enter("distributed", COMMANDS, manual="", argv=words) == 0
    exported, own = (weights.load(path).state_dict() for path in (tmp_path / "weights", tmp_path / "local" / "export"))
    assert all(torch.equal(exported[name], tensor) for name, tensor in own.items())
    check_a_branch(tmp_path, open_store(bucket), run_jobs)


def check_a_branch(folder, of_parent, run_jobs):
    """One rank at stage 2 cools down from what two ranks at stage 1 have in the store, which stays as it is."""
    before = {name: of_parent.read(name) for name in of_parent.list("")}
    branch = {"cooldown_from": f"{folder / 'remote'}:8", "overrides": ["train.steps=11", "engine.zero_stage=2"]}
    run_jobs(folder, (1, [{"run_dir": str(folder / "branch"), **branch}]))
    own, parents = ({row["step"]: row for row in deterministic_rows(folder / run)} for run in ("branch", "remote"))
    for key in ("loss", "grad_norm"):
        assert own[8][key] == pytest.approx(parents[8][key], rel=1e-5)
    assert own[8]["lr"] < parents[8]["lr"]
    assert own[10]["lr"] == pytest.approx(1e-6)
    assert max(own) == 11
    assert committed(folder / "branch" / "checkpoints", step=11).facts["world_size"] == 1
    assert {name: of_parent.read(name) for name in of_parent.list("")} == before

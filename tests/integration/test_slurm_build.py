"""SLURM builds it: an array makes the features, a dependent job closes the set, a part that did not run is named."""

import re
import subprocess
import time
from pathlib import Path

from data.building.build import Build
from data.building.config import BuildConfig
from data.building.inputs import read_inputs
from tests.data.building.test_build import content_of
from tests.data.songs import write_album

ROOT = Path(__file__).parents[2]
CONFIG = BuildConfig(shard_bytes=1 << 19)
OPTIONS = ("--shard-mib=0.5", "--workers=1")


def test_an_array_builds_and_a_dependent_job_closes_the_set(cluster, tmp_path):
    """The merge behind a part that ran alone fails and names the other; behind the whole array, it is a local build."""
    write_album(tmp_path / "in")
    alone = submit(cluster | {"PUPUJEPA_PARTS": "2"}, tmp_path, "--array=2")
    ended, said = wait_for_end(cluster, submit_merge(cluster, tmp_path, behind=alone), tmp_path)
    assert ended == {"FAILED"}
    assert "1 of 2 parts have not finished: 1/2; run each again" in said
    whole = submit(cluster, tmp_path, "--array=1-2")
    ended, said = wait_for_end(cluster, submit_merge(cluster, tmp_path, behind=whole), tmp_path)
    assert ended == {"COMPLETED"}, said
    assert "train: 7 tracks" in said
    tracks = read_inputs(tmp_path / "in", seed=0)
    Build(tracks, str(tmp_path / "here"), config=CONFIG, work=f"{tmp_path}/work", workers=1).run()
    assert content_of(tmp_path / "out") == content_of(tmp_path / "here")


def test_an_array_that_is_not_whole_needs_the_number_of_parts(cluster, tmp_path):
    """`--array=3` alone does not say of how many, and 3/3 would be another share: the task fails and says so."""
    ended, said = wait_for_end(cluster, submit(cluster, tmp_path, "--array=3"), tmp_path)
    assert ended == {"FAILED"}
    assert "set PUPUJEPA_PARTS to it" in said


def submit(cluster, folder, *options, more=()):
    """Submits slurm/build.sbatch as a user would and returns the number of the job or array."""
    command = ["sbatch", "--parsable", "--partition=low", *options, f"--output={folder}/job-%j.log"]
    command += ["slurm/build.sbatch", f"{folder}/in", f"{folder}/out", *OPTIONS, *more]
    done = subprocess.run(command, check=True, cwd=ROOT, env=cluster, capture_output=True, text=True)
    return int(done.stdout.split(";")[0])


def submit_merge(cluster, folder, *, behind):
    """Submits the merge of two parts, to run when all tasks of the array have ended, however they did."""
    return submit(cluster, folder, f"--dependency=afterany:{behind}", more=("--merge", "2"))


def wait_for_end(cluster, job, folder, timeout_s=500.0):
    """Waits for all tasks of a job; returns their states and what they wrote."""
    deadline = time.monotonic() + timeout_s
    while True:
        command = ["scontrol", "show", "job", str(job)]
        shown = subprocess.run(command, check=True, env=cluster, capture_output=True, text=True).stdout
        states = set(re.findall(r"JobState=(\w+)", shown))
        if not states & {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"}:
            break
        assert time.monotonic() < deadline, shown
        # not `sbatch --wait`, which asks less and less often, after a while twice a minute
        time.sleep(0.2)
    numbers = re.findall(r"JobId=(\d+)", shown)
    return states, "".join(path.read_text() for n in numbers if (path := folder / f"job-{n}.log").exists())

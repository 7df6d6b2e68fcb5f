"""SLURM sweeps: slurm/sweep.sbatch makes one Ray of both nodes, and leaves nothing behind."""

import json
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

from tests.data.shardsets import build_shard_set
from tests.distributed.marble.corpora import Recipe, make_corpus
from tests.integration.slurm_jobs import Job

TESTS = Path(__file__).parents[1]


def submitted(cluster, tmp_path: Path, ratios: list[float], *words: str) -> Job:
    """A sweep over mask ratios on one core of each node, by the stand-in."""
    build_shard_set(str(tmp_path / "train"), (8, 8), num_frames=lambda number: 64 + number % 9)
    make_corpus(tmp_path / "corpus", Recipe())
    stand_in = ["{python}", str(TESTS / "sweeps" / "stand_in.py")]
    commands = {
        phase: [*stand_in, phase, "{run_dir}", str(tmp_path / "behave"), "{overrides}"]
        for phase in ("train", "evaluate")
    }
    sweep = {"base": {"preset": str(TESTS / "distributed" / "small.yaml")}, "tasks": ["collection"]}
    sweep |= {"budget": {"steps": 5}, "commands": commands}
    sweep["axes"] = {"ratio": {"key": "masks.ratio", "values": ratios}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    words = ("--shards", str(tmp_path / "train"), "--corpus", str(tmp_path / "corpus"), *words)
    words = (str(tmp_path / "sweep.yaml"), *words, "--out", str(tmp_path / "out"), "--cpus", "1")
    return Job(cluster | {"MARK": str(tmp_path)}, tmp_path).submit("sweep.sbatch", *words)


def test_trials_run_on_both_nodes(cluster, tmp_path: Path):
    """With one core of each node, two trials that wait for each other both finish; then no Ray is left."""
    job = submitted(cluster, tmp_path, [0.91, 0.92])
    assert job.wait_for_end() == "COMPLETED", job.log
    assert statuses(tmp_path) == ["finished"] * 3
    # the job is over: whoever it started has ended, or was left behind
    assert not marked(tmp_path)


def test_a_lost_node_ends_the_start_and_the_next_one_goes_on(cluster, tmp_path: Path):
    """Ray of the second node is killed under a long trial: exit code 86, and no finished trial runs twice."""
    job = submitted(cluster, tmp_path, [0.7], "--grace", "1")
    out = tmp_path / "out"
    job.wait(lambda: [*out.glob("trials/ratio=0.7*/pids")] and "finished" in statuses(tmp_path), "the long trial")
    (raylet,) = (p for p in marked(tmp_path) if p.name() == "raylet" and "--head" not in p.cmdline())
    raylet.kill()
    job.wait(lambda: "a task was lost (exit code 86)" in job.log, "the end of the first start")
    # not before: a trial that ends before the loss is noticed would end the sweep as well
    (tmp_path / "behave").touch()
    assert job.wait_for_end() == "COMPLETED", job.log
    assert statuses(tmp_path) == ["finished"] * 2
    (starts,) = (path.read_text().split() for path in out.glob("trials/base*/starts"))
    assert (starts.count("train"), starts.count("evaluate")) == (1, 1)
    assert not marked(tmp_path)


def statuses(tmp_path: Path) -> list[str]:
    """How the trials that have begun are."""
    return [json.loads(path.read_text())["status"] for path in (tmp_path / "out").glob("trials/*/trial.json")]


def marked(tmp_path: Path) -> list[psutil.Process]:
    """The living processes of the job."""
    return [process for process in psutil.process_iter() if is_marked(process, str(tmp_path))]


def is_marked(process: psutil.Process, mark: str) -> bool:
    """Whether a living process has the mark of this test in its environment."""
    with suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get("MARK") == mark
    return False

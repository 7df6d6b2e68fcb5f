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


def test_trials_run_on_both_nodes(cluster, tmp_path: Path):
    """With one core of each node, two trials that wait for each other both finish; then no Ray is left."""
    build_shard_set(str(tmp_path / "train"), (8, 8), num_frames=lambda number: 64 + number % 9)
    make_corpus(tmp_path / "corpus", Recipe())
    stand_in = ["{python}", str(TESTS / "sweeps" / "stand_in.py")]
    commands = {
        phase: [*stand_in, phase, "{run_dir}", str(tmp_path / "behave"), "{overrides}"]
        for phase in ("train", "evaluate")
    }
    sweep = {"base": {"preset": str(TESTS / "distributed" / "small.yaml")}, "tasks": ["collection"]}
    sweep |= {"budget": {"steps": 5}, "commands": commands}
    sweep["axes"] = {"ratio": {"key": "masks.ratio", "values": [0.91, 0.92]}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    words = ("--shards", str(tmp_path / "train"), "--corpus", str(tmp_path / "corpus"), "--out", str(tmp_path / "out"))
    job = Job(cluster | {"MARK": str(tmp_path)}, tmp_path).submit(
        "sweep.sbatch", str(tmp_path / "sweep.yaml"), *words, "--cpus", "1"
    )
    assert job.wait_for_end() == "COMPLETED", job.log
    records = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("trials/*/trial.json")]
    assert [record["status"] for record in records] == ["finished"] * 3
    # the job is over: whoever it started has ended, or was left behind
    assert not [process for process in psutil.process_iter() if is_marked(process, str(tmp_path))]


def is_marked(process: psutil.Process, mark: str) -> bool:
    """Whether a living process has the mark of this test in its environment."""
    with suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get("MARK") == mark
    return False

"""SLURM evaluates: slurm/evaluate.sbatch on both nodes, preempted in the middle, gives what one process gives."""

import sys
from pathlib import Path

import torch

from distributed.marble.evaluation import Evaluation, evaluate
from distributed.marble.tasks.tasks import select_tasks
from distributed.processes.topology import Topology
from tests.distributed.marble.corpora import Recipe, make_corpus
from tests.integration.slurm_jobs import Job


def test_a_preempted_evaluation_goes_on_and_equals_one_process(cluster, tmp_path: Path):
    """Two tasks on each of two nodes; what was computed before the preemption is not computed again."""
    corpus, here, out = make_corpus(tmp_path / "corpus", Recipe(pieces=40)), tmp_path / "here", tmp_path / "out"
    evaluation = Evaluation(("log_mel",), select_tasks(["collection"]), data=corpus, out=here, cache=here / "features")
    evaluate(evaluation, Topology(), device=torch.device("cpu"))
    words = ("--encoders", "log_mel", "--tasks", "collection", "--data", str(corpus), "--out", str(out))
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    job = Job(cluster | threads | {"PUPUJEPA_VENV": str(held_at_first(tmp_path / "venv"))}, tmp_path)
    job.submit("evaluate.sbatch", *words, tasks_per_node=2)
    job.wait(lambda: [*out.glob("features/*/part-00000.safetensors")], "the first part of the features")
    (part,) = out.glob("features/*/part-00000.safetensors")
    written_ns = part.stat().st_mtime_ns
    job.preempt([])
    assert job.wait_for_end() == "COMPLETED", job.log
    assert "a task was lost (exit code 143)" in job.log
    assert "start 2, 2 nodes, 4 tasks: " in job.log
    assert part.stat().st_mtime_ns == written_ns
    assert (out / "results.jsonl").read_bytes() == (here / "results.jsonl").read_bytes()


def held_at_first(venv: Path) -> Path:
    """Makes an environment whose python is held.py in the first start of a job, and this python in the next."""
    python = venv / "bin" / "python"
    python.parent.mkdir(parents=True)
    held = (
        f'[ -n "${{SLURM_RESTART_COUNT:-}}" ] || exec {sys.executable} {Path(__file__).with_name("held.py")} "${{@:3}}"'
    )
    python.write_text(f'#!/bin/bash\n{held}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return venv

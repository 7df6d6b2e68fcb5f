"""Runs trainings one after the other on the same ranks; see the fixture run_jobs.

A job is {"run_dir", "url", "overrides"}, without a url when the overrides name a mix, and may ask for more: "shadow"
compares the teacher with a plain average of what the whole student was after every step, and writes RUN/shadow.json;
"stop_at" asks the last rank alone to stop; "overflow_at" makes the loss of the last rank infinite in one step; "code"
is the exit code that is expected; "cooldown_from" branches off the run of an earlier job; "never_waits" makes it an
error that the host asks the device for a value from a forward pass to the end of its backward pass.
"""

import json
import math
import os
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode

from data.stream.corpora import read_corpora
from distributed import train as train_module
from distributed.build import build_parts
from distributed.engine.engine import prepare_deepspeed
from distributed.engine.gather import full_state
from distributed.engine.teacher import Teacher
from distributed.experiment import check, load_experiment, with_corpora
from distributed.processes.stop import StopRequest
from distributed.processes.topology import discover, exported, process_group
from distributed.run.directory import RunDirectory, lock_run
from distributed.run.log import configure_logging
from distributed.sessions.cooldown import branch_experiment
from distributed.sessions.session import Session
from pupujepa.training.objective import TrainingStep, teacher_pairs

PRESET = Path(__file__).with_name("small.yaml")
CPU = torch.device("cpu")


class ShadowedTeacher(Teacher):
    """A teacher that keeps the average a second time, tensor by tensor, from copies of the whole student's weights."""

    def __init__(self, step, **ranks):
        self.step = step
        self.shadow = {name: teacher.data.cpu().clone() for name, teacher, _ in teacher_pairs(step)}
        super().__init__(step, **ranks)

    def follow(self, momentum, *, measured=False):
        movement = super().follow(momentum, measured=measured)
        student = full_state(self.step)
        for name, average in self.shadow.items():
            average.lerp_(student[f"student.{name}"], 1 - momentum)
        return movement

    def report(self):
        state = self.state()
        held = [0] * dist.get_world_size()
        dist.all_gather_object(held, sum(piece.values.nbytes for piece in (*self._parts, *self._whole)))
        return {
            "gap": max((tensor - self.shadow[name]).abs().max().item() for name, tensor in state.items()),
            "moved": self.moved(),
            "distance_to_student": self.distance_to_student(),
            "held_bytes": held,
            "names": sorted(state),
        }


class StopAt(StopRequest):
    """A stop request that reaches one rank only, at one step."""

    def __init__(self, asks: bool, at: int, trainer_step):
        super().__init__()
        self._asks, self._at, self._step = asks, at, trainer_step

    @property
    def received(self):
        return 15 if self._asks and self._step() == self._at else None

    @received.setter
    def received(self, value):
        pass


@contextmanager
def overflow(at, trainers):
    """The loss of this rank, and of one of its crops, is infinite in the step `at`."""

    def hook(module, args, output):
        in_step = trainers and trainers[-1].step == at
        if not isinstance(module, TrainingStep) or not module.training or not in_step:
            return None
        loss, aux = output
        loss_B = aux["per_sample_loss_B"].clone()
        loss_B[0] = math.inf
        return loss * math.inf, aux | {"per_sample_loss_B": loss_B}

    handle = register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class Asked(TorchDispatchMode):
    """Makes it an error to ask a tensor for a value; on a GPU torch finds all such places itself."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a value was asked for between forward and backward")
        return function(*args, **(kwargs or {}))


def never_waits(engine, device):
    """The training fails when the host waits for the device from the beginning of forward to the end of backward."""
    asked, backward = Asked(), engine.backward

    def begin(*_):
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        else:
            asked.__enter__()

    def end(loss):
        try:
            return backward(loss)
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
            else:
                asked.__exit__(None, None, None)

    engine.register_forward_pre_hook(begin)
    engine.backward = end


def compose(job):
    overrides = job.get("overrides", [])
    if "cooldown_from" in job:
        return branch_experiment(job["cooldown_from"], RunDirectory(Path(job["run_dir"])), overrides=overrides)
    urls = [f"stream.url={job['url']}"] if "url" in job else []
    return load_experiment([str(PRESET)], overrides=[*urls, *overrides])


def run(job, topology, device=CPU):
    experiment = compose(job)
    sizes = check(experiment, world_size=topology.world_size)
    corpora = read_corpora(experiment.stream)
    directory = RunDirectory(Path(job["run_dir"]))
    session = Session(with_corpora(experiment, corpora), sizes, topology, device, corpora, directory)
    trainers = []
    made = {}

    def build(*args):
        made["parts"] = build_parts(*args)
        if job.get("never_waits"):
            never_waits(made["parts"].engine, device)
        return made["parts"]

    class Trainer(train_module.Trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            trainers.append(self)

    originals = (train_module.build_parts, train_module.Trainer)
    train_module.build_parts, train_module.Trainer = build, Trainer
    import distributed.build as build_module

    if job.get("shadow"):
        build_module.Teacher = ShadowedTeacher
    try:
        last = topology.rank == topology.world_size - 1
        stop = StopAt(last and "stop_at" in job, job.get("stop_at", -1), lambda: trainers[-1].step)
        overflows = last and "overflow_at" in job
        with overflow(job["overflow_at"], trainers) if overflows else nullcontext():
            code = train_module.train(session, stop)
    finally:
        train_module.build_parts, train_module.Trainer = originals
        build_module.Teacher = Teacher
    assert code == job.get("code", 85 if "stop_at" in job else 0), code
    if job.get("shadow"):
        report = made["parts"].teacher.report()
        if topology.is_first:
            (directory.root / "shadow.json").write_text(json.dumps(report))


def main(jobs, device_type="cpu", *, told=lambda job: None):
    topology = discover(os.environ)
    configure_logging(rank=topology.rank)
    device = torch.device(device_type, topology.local_rank) if device_type == "cuda" else CPU
    prepare_deepspeed(os.environ, device=device)
    if device_type == "cuda":
        torch.cuda.set_device(device)
    with exported(os.environ, topology), process_group(topology, timeout_s=600, device=device):
        for job in jobs:
            if topology.is_first:
                with lock_run(RunDirectory(Path(job["run_dir"]))):
                    run(job, topology, device)
            else:
                run(job, topology, device)
            dist.barrier()
            told(job)
    return 0

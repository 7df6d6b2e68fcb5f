"""The real trainer on synthetic shards: its step, checkpoints, resuming, diagnostics and scaling.

Every function runs on fresh ranks (benchmarks/engine/launch.py) and returns plain numbers. One batch is read from the
shards and then repeated, so both sides compute the same and never wait for data.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.alternate import alternate
from benchmarks.engine.bare import Inputs, bare_loop
from data.stream.batches import Batch
from data.stream.corpora import read_corpora
from distributed.build import build_parts
from distributed.engine.engine import batch_sizes
from distributed.experiment import load_experiment, with_corpora, with_precision
from distributed.processes.stop import StopRequest
from distributed.processes.topology import Topology
from distributed.run.directory import RunDirectory
from distributed.run.log import RunLog
from distributed.run.speed import Yardstick
from distributed.sessions.continue_run import begin_generation, open_checkpoints
from distributed.sessions.session import Session
from distributed.trainer import Trainer
from pupujepa.precision import choose_precision

# no run of the benchmark reaches it
_MANY_STEPS = 1_000_000


class Replay:
    """A stream that repeats the batches of its first step."""

    def __init__(self, stream: Any, *, accumulation: int):
        self._stream = stream
        batches = iter(stream)
        self.batches = [next(batches) for _ in range(accumulation)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def from_step(self, step: int) -> Iterator[Batch]:
        """Yields the batches of `step` and of all steps after it."""
        while True:
            yield from (replace(batch, step=step) for batch in self.batches)
            step += 1


class Steps:
    """A trainer that is driven step by step."""

    def __init__(self, settings: dict[str, Any], topology: Topology, device: torch.device):
        self.session = session_of(settings, topology, device)
        self.store = open_checkpoints(self.session)
        found = self.store.newest_whole()
        begin_generation(self.session, self.store)
        parts = build_parts(self.session, self.store, found)
        self.replay = Replay(parts.stream, accumulation=self.session.sizes.accumulation)
        self.parts = replace(parts, stream=self.replay)  # type: ignore[arg-type]
        self.stop = StopRequest()
        self.trainer = Trainer(self.session.experiment, self.parts, first_step=found.step if found else 0)
        self.batches = self.replay.from_step(self.trainer.step)

    def take(self, count: int = 1) -> None:
        """Trains `count` steps."""
        for _ in range(count):
            self.trainer.train_step(self.batches, self.stop)
            self.trainer.step += 1

    def save_in_background(self, background: bool) -> None:
        """Sets whether later checkpoints are written in the background."""
        self.store.config = replace(self.store.config, background=background)
        self.parts = replace(self.parts, checkpoints=replace(self.parts.checkpoints))  # copies only in the background
        self.trainer = Trainer(self.session.experiment, self.parts, first_step=self.trainer.step)

    def log_of(self, *, every: int) -> RunLog:
        """Returns a log without sinks that makes a row every `every` steps."""
        yardstick = Yardstick(self.session.sizes.global_batch, 1, 1.0, 1)
        device = self.session.device
        return RunLog([], stream=self.replay, device=device, yardstick=yardstick, every=every, total_steps=_MANY_STEPS)  # type: ignore[arg-type]


def session_of(settings: dict[str, Any], topology: Topology, device: torch.device) -> Session:
    """Returns the session of {"preset", "overrides", "shards", "run"}."""
    overrides = [f"stream.url={settings['shards']}", f"train.steps={_MANY_STEPS}", "telemetry.wandb=disabled"]
    experiment = load_experiment([settings["preset"]], overrides=[*overrides, *settings["overrides"]])
    experiment = with_precision(experiment, choose_precision(experiment.engine.precision, device))
    batch, micro_batch = experiment.stream.global_batch, experiment.engine.micro_batch
    sizes = batch_sizes(batch, micro_batch=micro_batch, world_size=topology.world_size)
    corpora = read_corpora(experiment.stream)
    directory = RunDirectory(Path(settings["run"]))
    return Session(with_corpora(experiment, corpora), sizes, topology, device, corpora, directory)


def overhead(settings: dict[str, Any], topology: Topology, device: torch.device) -> dict[str, dict[str, list[float]]]:
    """Returns seconds of our step and of the bare loop in pairs, with logging.

    Returns:
        By the kernel of the bare loop's AdamW: torch's "default" and "fused", which ours uses on a CPU.
    """
    steps = Steps(settings, topology, device)
    batch = steps.replay.batches[0].to(device)
    inputs = Inputs(batch.mel(), batch.context, batch.target)

    def ours() -> None:
        steps.take(settings["steps"])
        _wait(device)

    def against(fused: bool | None) -> dict[str, list[float]]:
        bare = bare_loop(steps.session.experiment, device, ranks=topology.world_size, fused=fused)

        def peer() -> None:
            for _ in range(settings["steps"]):
                bare(inputs)
            _wait(device)

        compared = alternate(ours, peer, runs=settings["runs"])
        return {"ours_s": list(compared.ours_s), "peer_s": list(compared.peer_s)}

    return {"default": against(None), "fused": against(True)}


def checkpoints(settings: dict[str, Any], topology: Topology, device: torch.device) -> dict[str, Any]:
    """Returns seconds that a save adds to `steps` steps, synchronous and in the background."""
    steps = Steps(settings, topology, device)
    found: dict[str, Any] = {}
    for name, background in (("synchronous", False), ("background", True)):
        steps.save_in_background(background)
        runs = [(_saving(steps, settings["steps"], saves=True), _saving(steps, settings["steps"], saves=False))]
        runs += [
            (_saving(steps, settings["steps"], saves=True), _saving(steps, settings["steps"], saves=False))
            for _ in range(settings["runs"])
        ]
        counted = runs[1:]
        found[name] = {
            "stall_s": [saving - plain for (saving, _), (plain, _) in counted],
            "call_s": [call for (_, call), _ in counted],
            "step_s": statistics.median(plain for _, (plain, _) in counted) / settings["steps"],
        }
    return found


def one_checkpoint(settings: dict[str, Any], topology: Topology, device: torch.device) -> None:
    """Makes a run with a checkpoint of its first step."""
    steps = Steps(settings, topology, device)
    steps.take()
    steps.parts.checkpoints.save(steps.trainer.step)


def resume(settings: dict[str, Any], topology: Topology, device: torch.device) -> dict[str, float]:
    """Returns seconds of each phase from launch to the first resumed step of a run with a checkpoint."""
    seconds = {"launch, imports, rendezvous": time.time() - settings["launched"]}
    started = time.perf_counter()
    session = session_of(settings, topology, device)
    store = open_checkpoints(session)
    found = store.newest_whole()
    assert found is not None, "nothing to resume"
    seconds["verify"] = time.perf_counter() - started
    started = time.perf_counter()
    begin_generation(session, store)
    parts = build_parts(session, store, found)
    seconds["build and load"] = time.perf_counter() - started
    started = time.perf_counter()
    trainer = Trainer(session.experiment, parts, first_step=found.step)
    trainer.train_step(iter(parts.stream), StopRequest())
    seconds["first batch and step"] = time.perf_counter() - started
    return seconds


def diagnostics(settings: dict[str, Any], topology: Topology, device: torch.device) -> dict[str, float]:
    """Returns seconds of a plain step, those that logging and diagnostics add, and their share."""
    steps = Steps(settings, topology, device)
    experiment = steps.session.experiment
    # step 1 is due for the one, not for the other
    logged, plain = (
        Trainer(experiment, replace(steps.parts, log=steps.log_of(every=every)), first_step=1)
        for every in (1, _MANY_STEPS)
    )

    def one(trainer: Trainer) -> None:
        trainer.step = 1
        trainer.train_step(steps.replay.from_step(1), steps.stop)
        _wait(device)

    compared = alternate(lambda: one(logged), lambda: one(plain), runs=settings["runs"])
    every, looks = max(experiment.diagnostics.every, 1), []
    # each kind of diagnostic as often as in a run
    for number in range(2 * experiment.diagnostics.lidar_every):
        started = time.perf_counter()
        steps.parts.watch._diagnose(number * every)
        _wait(device)
        looks.append(time.perf_counter() - started)
    step_s = statistics.median(compared.peer_s)
    extra_s = statistics.median(a - b for a, b in zip(compared.ours_s, compared.peer_s))
    look_s = statistics.fmean(looks)
    return {
        "step_s": step_s,
        "logged_extra_s": extra_s,
        "look_s": look_s,
        "share": (extra_s / experiment.telemetry.log_every + look_s / every) / step_s,
    }


def speed(settings: dict[str, Any], topology: Topology, device: torch.device) -> float:
    """Returns crops per second of all ranks together."""
    steps = Steps(settings, topology, device)
    steps.take(3)
    _wait(device)
    started = time.perf_counter()
    steps.take(settings["steps"])
    _wait(device)
    return steps.session.sizes.global_batch * settings["steps"] / (time.perf_counter() - started)


def _saving(steps: Steps, count: int, *, saves: bool) -> tuple[float, float]:
    """Returns seconds of `count` steps, with a save after the first or none, and of the call alone."""
    started = time.perf_counter()
    steps.take()
    called = time.perf_counter()
    if saves:
        steps.parts.checkpoints.save(steps.trainer.step, wait=False)
    call_s = time.perf_counter() - called
    for _ in range(count - 1):
        steps.take()
        steps.store.poll()
    _wait(steps.session.device)
    seconds = time.perf_counter() - started
    steps.store.poll(wait=True)
    return seconds, call_s


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

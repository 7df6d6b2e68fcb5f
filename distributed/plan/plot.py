"""Plots of a run's schedules: learning rate, teacher momentum, masking strategies, weight decay.

All are pure functions of the step, so they also hold for a resumed run.
"""

from pathlib import Path
from typing import Any

import torch

from distributed.engine.engine import parameter_groups
from distributed.experiment import Experiment
from pupujepa.model.model import PupuJEPA
from pupujepa.training.ema import ema_momentum
from pupujepa.training.masks import STRATEGIES, strategy_probabilities
from pupujepa.training.objective import TrainingStep
from pupujepa.training.schedules import learning_rate

_POINTS = 400
_LINE, _FAINT = "#1f5f8b", "#c9d8e4"
_SHADES = (_FAINT, "#6f9fc0", _LINE)


def plot_schedules(experiment: Experiment, path: Path) -> None:
    """Writes the picture; a branch starts at its first step, beside its parent's learning rate."""
    from matplotlib.figure import Figure

    total, horizon, first = experiment.train.steps, experiment.horizon_steps, experiment.branch.step
    steps = _some_of(first, total)
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = rate, momentum, masks, decay = tuple(figure.subplots(2, 2).flat)
    for axis in axes:
        axis.set_xlabel("step")
        axis.set_xlim(first, max(total - 1, first + 1))
    _draw_rate(rate, steps, experiment)
    _draw(momentum, steps, [1 - ema_momentum(s, horizon, experiment.ema) for s in steps], "1 - momentum of the teacher")
    shares = [strategy_probabilities(min(s / horizon, 1.0), experiment.masks) for s in steps]
    masks.stackplot(steps, list(zip(*shares)), labels=STRATEGIES, colors=_SHADES)
    masks.set_title(f"masking strategies, ratio {experiment.masks.ratio:g}")
    masks.legend(loc="lower left")
    _draw_decay(decay, steps, experiment)
    figure.savefig(path, dpi=150)


def _some_of(first: int, end: int) -> list[int]:
    """Returns about _POINTS steps of [first, end), with the first and the last."""
    return sorted({first + round(i * (end - 1 - first) / _POINTS) for i in range(_POINTS + 1)})


def _draw_rate(axis: Any, steps: list[int], experiment: Experiment) -> None:
    total, horizon, branch = experiment.train.steps, experiment.horizon_steps, experiment.branch
    title = f"learning rate ({'cooldown branch' if branch.step else experiment.schedule.kind})"
    if branch.step:
        whole = _some_of(0, horizon)
        rates = [learning_rate(s, horizon, experiment.schedule) for s in whole]
        axis.plot(whole, rates, color=_SHADES[1], linestyle="--", label="the run that it leaves")
        axis.legend(loc="lower left")
        axis.set_xlim(0, max(horizon, total) - 1)
    _draw(axis, steps, [learning_rate(s, total, experiment.schedule, branch=branch) for s in steps], title)


def _draw(axis: Any, steps: list[int], values: list[float], title: str) -> None:
    axis.plot(steps, values, color=_LINE)
    axis.set_title(title)
    axis.set_ylim(0)


def _draw_decay(axis: Any, steps: list[int], experiment: Experiment) -> None:
    with torch.device("meta"):
        step = TrainingStep(PupuJEPA(experiment.model), experiment.objective)
    for group, shade in zip(parameter_groups(step, experiment.optimizer.weight_decay), (_LINE, _SHADES[1])):
        count, decay = sum(p.numel() for p in group["params"]), group["weight_decay"]
        what = "matrices" if group["weight_decay"] else "biases, norms, mask token, positions"
        axis.plot(steps, [decay] * len(steps), color=shade, label=f"{count:,} in {what}")
    axis.set_title("weight decay (of the rate)")
    axis.set_ylim(-0.002, max(1.3 * experiment.optimizer.weight_decay, 0.01))
    axis.legend(loc="center right")

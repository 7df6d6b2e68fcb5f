"""What changes over a run, drawn: learning rate, momentum of the teacher, masking strategies, weight decay.

All of it is a pure function of the step, so the picture is what will be done, also by a run that is resumed.
"""

from pathlib import Path
from typing import Any

import torch

from distributed.engine import parameter_groups
from distributed.experiment import Experiment
from pupujepa.ema import ema_momentum
from pupujepa.masks import STRATEGIES, strategy_probabilities
from pupujepa.model import PupuJEPA
from pupujepa.objective import TrainingStep
from pupujepa.schedules import learning_rate

_POINTS = 400
_LINE, _FAINT = "#1f5f8b", "#c9d8e4"
_SHADES = (_FAINT, "#6f9fc0", _LINE)


def plot_schedules(experiment: Experiment, path: Path) -> None:
    """Writes the picture; of a branch, from where it begins."""
    from matplotlib.figure import Figure

    total, horizon, first = experiment.train.steps, experiment.horizon_steps, experiment.branch.step
    steps = sorted({first + round(i * (total - 1 - first) / _POINTS) for i in range(_POINTS + 1)})
    figure = Figure(figsize=(11, 6), layout="constrained")
    rate, momentum, masks, decay = figure.subplots(2, 2).flat
    rates = [learning_rate(s, total, experiment.schedule, branch=experiment.branch) for s in steps]
    _draw(rate, steps, rates, f"learning rate ({'cooldown branch' if first else experiment.schedule.kind})")
    _draw(momentum, steps, [1 - ema_momentum(s, horizon, experiment.ema) for s in steps], "1 - momentum of the teacher")
    shares = [strategy_probabilities(min(s / horizon, 1.0), experiment.masks) for s in steps]
    masks.stackplot(steps, list(zip(*shares)), labels=STRATEGIES, colors=_SHADES)
    masks.set_title(f"masking strategies, ratio {experiment.masks.ratio:g}")
    masks.legend(loc="lower left")
    _draw_decay(decay, steps, experiment)
    for axis in (rate, momentum, masks, decay):
        axis.set_xlabel("step")
        axis.set_xlim(steps[0], max(steps[-1], steps[0] + 1))
    figure.savefig(path, dpi=150)


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

"""The engine's benchmark: both sides compute the same, and peaks and intervals are right."""

import numpy as np
import pytest
import torch
from torch._C._profiler import _EventType

from benchmarks.engine.bare import bare_loop, experiment_of, inputs_of, training_step
from benchmarks.engine.command import PARTS, PRINTED, interval, parse
from benchmarks.engine.memory import _peaks
from distributed.engine.engine import parameter_groups
from pupujepa.training.ema import update_ema
from pupujepa.training.objective import teacher_pairs

SETTINGS = {
    "preset": "tests/distributed/small.yaml",
    "overrides": ["engine.micro_batch=2", "stream.lanes=2", "objective.target_layers=1"],
}


def test_the_bare_loop_is_the_method(monkeypatch):
    """After two steps its weights are those of the same arithmetic written out."""
    experiment = experiment_of(SETTINGS, ranks=1)
    device = torch.device("cpu")
    inputs = inputs_of(experiment, crops=2, device=device)
    built = []
    monkeypatch.setattr("benchmarks.engine.bare.training_step", lambda *a: built.append(training_step(*a)) or built[-1])
    update = bare_loop(experiment, device, ranks=1)
    step = training_step(experiment, device)
    optimizer = torch.optim.AdamW(
        parameter_groups(step, experiment.optimizer.weight_decay), lr=1e-4, betas=(0.9, 0.95), eps=1e-8
    )
    for _ in range(2):
        update(inputs)
        optimizer.zero_grad()
        step(*inputs)[0].backward()
        torch.nn.utils.clip_grad_norm_(step.parameters(), 1.0)
        optimizer.step()
        update_ema([t.data for _, t, _ in teacher_pairs(step)], [s.data for _, _, s in teacher_pairs(step)], 0.999)
    for (name, ours), theirs in zip(step.named_parameters(), built[0].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, msg=name)
    for (name, ours, _), (_, theirs, _) in zip(teacher_pairs(step), teacher_pairs(built[0]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, msg=name)


def test_the_inputs_are_masks():
    """Context and targets are disjoint, sorted, and as many as the model's masks have."""
    experiment = experiment_of(SETTINGS, ranks=2)
    assert experiment.stream.global_batch == 4
    inputs = inputs_of(experiment, crops=2, device=torch.device("cpu"))
    for context, target in zip(inputs.context_BK.tolist(), inputs.target_BM.tolist(), strict=True):
        assert not set(context) & set(target)
        assert (context, target) == (sorted(context), sorted(target))


class Node:
    """An event of the profiler's tree."""

    def __init__(self, start, end, *, name="", size=0, pointer=0, parent=None):
        self.start_time_ns, self.end_time_ns, self.name, self.parent, self.children = start, end, name, parent, []
        self.tag = _EventType.Allocation if size else _EventType.TorchOp
        self.extra_fields = self
        self.ptr, self.alloc_size = pointer, size


def test_peaks_are_sums_of_what_is_alive():
    """By phase; a block that is given back unreported counts until its operation ends, one in use until the end."""
    gather = Node(12, 14, name="gather")
    nodes = [
        Node(0, 10, name="phase:build"),
        Node(1, 1, size=100, pointer=1),
        Node(2, 2, size=50, pointer=2),
        Node(3, 3, size=-50, pointer=2),
        Node(11, 20, name="phase:forward"),
        gather,
        Node(13, 13, size=70, pointer=3, parent=gather),
        Node(15, 15, size=10, pointer=4),
        Node(16, 16, size=30, pointer=3),
        Node(17, 17, size=-30, pointer=3),
        Node(18, 18, size=-10, pointer=4),
    ]
    assert _peaks(nodes, alive={1}) == {"build": 150.0, "forward": 170.0}


def test_the_interval_holds_the_median():
    """And is narrower for more alike values."""
    values = np.linspace(-1, 1, 41)
    low, high = interval(values)
    assert low < np.median(values) < high
    assert interval(values / 10)[1] - interval(values / 10)[0] == pytest.approx((high - low) / 10)


def test_every_part_can_be_named():
    """The named parts run; by default all parts do."""
    assert set(PRINTED) == set(PARTS)
    assert parse(["--plan-memory", "--overhead", "--quick"]).parts == ["plan-memory", "overhead"]
    assert parse([]).parts == list(PARTS)

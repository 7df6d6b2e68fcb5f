"""The facts that everything in one session of a run shares, decided before anything is built."""

from dataclasses import dataclass, field

import torch

from data.stream.corpora import Corpora
from distributed.engine.engine import BatchSizes
from distributed.experiment import Experiment
from distributed.processes.topology import Topology
from distributed.processes.watchdog import Whereabouts
from distributed.run.directory import RunDirectory


@dataclass(frozen=True)
class Session:
    """One start of the trainer: a run has as many as it was continued, plus one."""

    experiment: Experiment
    sizes: BatchSizes
    topology: Topology
    device: torch.device
    corpora: Corpora
    directory: RunDirectory
    whereabouts: Whereabouts = field(default_factory=Whereabouts)

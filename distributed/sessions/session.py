"""The settings and facts that all parts of a session share."""

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
    """One start of the trainer; a resumed run has several sessions."""

    experiment: Experiment
    sizes: BatchSizes
    topology: Topology
    device: torch.device
    corpora: Corpora
    directory: RunDirectory
    whereabouts: Whereabouts = field(default_factory=Whereabouts)

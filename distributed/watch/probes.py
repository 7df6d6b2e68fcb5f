"""Linear probes of the teacher during training, on a fixed subset of the offline benchmark.

Tasks, features and probes are those of the evaluator. Training pieces train the probes; one half of the validation
pieces selects, the other half scores. The test split is never read, so it stays valid for checkpoints that are kept by
this score.

    python -m data scores corpora/scores
    python -m distributed train --preset paper model=tiny probe.data=corpora/scores stream.url=...

All ranks share the work. The training does not change: weights are copied, random states are restored.
"""

import logging
import shutil
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from statistics import fmean

import torch
import torch.distributed as dist

from distributed.engine.gather import whole_model
from distributed.marble.datasets.corpus import LabelledCorpus, read_labelled_corpus, thin_tracks
from distributed.marble.datasets.targets import prepare_targets
from distributed.marble.encoders.hidden_states import HowToEncode
from distributed.marble.encoders.pupujepa import FrozenPupuJEPA
from distributed.marble.evaluation import Evaluation, measure_encoders
from distributed.marble.metrics.metrics import METRICS
from distributed.marble.tasks.tasks import TRACKS, select_tasks
from distributed.processes.topology import Topology
from distributed.watch.config import PROBE_MEAN, ProbeConfig
from pupujepa.model.model import PupuJEPA
from pupujepa.training.objective import TrainingStep

OFFLINE_TASKS = ("key", "beats", "instruments", "tempo", "collection")
FEATURES_FOLDER = "probe-features"

logger = logging.getLogger(__name__)


class InLoopProbe:
    """Linear probes of a model in training; all ranks hold one and call `measure` together.

    Args:
        precision: of the frozen encoder, equal to the engine's.
        run_root: shared by all ranks; holds the features meanwhile.

    Raises:
        UserError: the corpus is missing, or too small for one of the tasks.
    """

    def __init__(
        self, config: ProbeConfig, *, topology: Topology, device: torch.device, precision: str, run_root: Path
    ):
        self._topology, self._device = topology, device
        self._how = HowToEncode("teacher", precision, device)
        self._cache = run_root / FEATURES_FOLDER
        data = Path(config.data)
        tasks = tuple(task.under("clean") for task in select_tasks(list(OFFLINE_TASKS)))
        corpus = probing_corpus(read_labelled_corpus(data), config.tracks)
        self._corpora = {TRACKS: corpus}
        self._prepared = [prepare_targets(task, corpus) for task in tasks]
        self._evaluation = Evaluation((), tasks, data=data, out=run_root, cache=self._cache, precision=precision)

    def measure(self, step: TrainingStep, model: PupuJEPA, *, at: int) -> dict[str, float]:
        """Returns `probe/<task>/<metric>` after `at` steps, and `probe/mean` over the tasks' own metrics."""
        started = time.perf_counter()
        self._clear()
        # the probes have their own generators; fork_rng undoes draws by libraries
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            twin = whole_model(step, model).to(self._device)
            jobs, outcomes = measure_encoders(
                [FrozenPupuJEPA(twin, self._how, name=f"step {at}", digest=f"in training, step {at}")],
                self._corpora,
                prepared=self._prepared,
                evaluation=self._evaluation,
                topology=self._topology,
                device=self._device,
            )
        dist.barrier()  # all ranks have read the features
        self._clear()
        row, own = {}, []
        for job, outcome in zip(jobs, outcomes, strict=True):
            task = job.data.task
            for name in (task.metric, *task.extra_metrics):
                seeds = outcome.statistics[name]
                row[f"probe/{task.name}/{name}"] = fmean(METRICS[name].exact(seed) for seed in seeds)
            own.append(row[f"probe/{task.name}/{task.metric}"])
        row[PROBE_MEAN] = fmean(own)
        logger.info("probes at step %d: mean %.3f, in %.1f s", at, row[PROBE_MEAN], time.perf_counter() - started)
        return row

    def _clear(self) -> None:
        """Removes features of other weights, also those of a killed session."""
        if self._topology.is_first:
            shutil.rmtree(self._cache, ignore_errors=True)
        dist.barrier()  # no rank may write before the folder is gone


def probing_corpus(corpus: LabelledCorpus, tracks: int) -> LabelledCorpus:
    """Returns `tracks` of the training split and half as many of validation, half of these as `test`."""
    train = thin_tracks(corpus.of_split("train"), tracks)
    held_out = thin_tracks(corpus.of_split("valid"), max(2, tracks // 2))
    groups = sorted({track.group for track in held_out}, key=lambda group: sha256(group.encode()).digest())
    scoring = set(groups[1::2])  # by group: takes of one piece must not select and score
    divided = [replace(t, split="test" if t.group in scoring else "valid") for t in held_out]
    digest = sha256(f"{corpus.digest}/in training/{tracks}".encode()).hexdigest()
    return replace(corpus, tracks=(*train, *divided), digest=digest)

"""Planning of a sweep: composes every trial into a full experiment before any trial starts.

An axis over the amount of data trains on a part of a shard set: its first shards, which are a random draw of the
corpus because the build shuffles samples over all shards. The part is a folder of links. It keeps the mean and
deviation of the whole, so that all trials normalise alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data.shards.format import index_name
from data.shards.manifest import Manifest, read_manifest, write_manifest
from data.store.store import is_remote
from distributed.experiment import Experiment, check, load_experiment
from distributed.marble.datasets.corpus import read_labelled_corpus
from pupujepa.config import ConfigError
from pupujepa.cost.cost import training_cost
from pupujepa.errors import UserError
from sweeps.plan.plan import Launch, Plan, PlannedTrial, Schedule, Search, digest_of, flatten
from sweeps.plan.points import FLOPS, STEPS, TOKENS, Trial, expand
from sweeps.plan.sweep_file import NO_SCHEDULER, OPTUNA, SweepConfig, override

# settings that do not change a trial's result: locations of the same data, and what the run writes
IRRELEVANT = ("stream.url", "stream.cache_dir", "stream.cache_bytes", "checkpoint.", "telemetry.", "probe.")
STEPS_KEY, BATCH_KEY = "train.steps", "stream.global_batch"


@dataclass(frozen=True)
class Size:
    """Amount of training of a trial."""

    steps: int
    samples: int
    tokens: int
    flops: int


class Planner:
    """A planner of trials, one after the other, that finds those that would repeat another.

    Args:
        inputs: what decides the result beside the settings, such as the digests of shards and corpus; an axis over
            stream.url replaces the shards.
        known: trials of this sweep that were planned before.
    """

    def __init__(
        self, sweep: SweepConfig, launch: Launch, *, inputs: Mapping[str, Any], known: Sequence[PlannedTrial] = ()
    ):
        self._sweep, self._launch, self._inputs = sweep, launch, inputs
        self.planned: dict[str, PlannedTrial] = {planned.digest: planned for planned in known}
        self.same_as: dict[str, str] = {}
        self._models = {planned.training: planned.trial.name for planned in known if not planned.model}
        self._bases = {planned.trial.seed: planned for planned in known if planned.trial.is_base}

    def add(self, trial: Trial, *, drawn: Mapping[str, Any] | None = None) -> PlannedTrial:
        """Composes a trial and returns it, or the trial that it would repeat. Add the base of a seed first.

        Raises:
            UserError: an unknown key (with the nearest name), or fields that contradict each other or the number of
                ranks. It names the axis and the value.
        """
        candidate = self._plan(trial)
        # an axis value that equals the base's would train the base again
        kept = self.planned.get(candidate.digest)
        if kept is not None:
            self.same_as[trial.name] = kept.trial.name
            return kept
        model = self._models.setdefault(candidate.training, trial.name)
        candidate = replace(candidate, model="" if model == trial.name else model, drawn=dict(drawn or {}))
        self.planned[candidate.digest] = candidate
        if trial.is_base:
            self._bases[trial.seed] = candidate
        return candidate

    def _plan(self, trial: Trial) -> PlannedTrial:
        trial = self._with_data(trial)
        experiment = _compose(trial, self._launch)
        length = self._length(trial, experiment)
        # the distance of probes in steps follows from the batch, which `_length` may change
        own = length | self._probes(length.get(BATCH_KEY, experiment.stream.global_batch))
        trial = replace(trial, overrides=(*trial.overrides, *(override(key, value) for key, value in own.items())))
        experiment = _with(experiment, own)
        check(experiment, world_size=self._launch.ranks)
        settings = flatten(asdict(experiment))
        relevant = {key: value for key, value in settings.items() if not key.startswith(IRRELEVANT)}
        inputs = dict(self._inputs)
        url = experiment.stream.url
        if trial.share < 1:
            inputs["shards"] = part_of(read_manifest(self._launch.shards), trial.share).digest
        elif url and url != self._launch.shards:
            inputs["shards"] = read_manifest(url).digest
        training = {"settings": relevant, "shards": inputs["shards"], "ranks": self._launch.ranks}
        return PlannedTrial(
            trial,
            digest_of({"settings": relevant, **inputs, "evaluate": trial.evaluate}),
            settings=settings | trial.own_settings,
            training=digest_of(training),
            **vars(size_of(experiment)),
        )

    def _with_data(self, trial: Trial) -> Trial:
        """Points a trial with a share of the shards to the folder of that part."""
        if trial.share == 1:
            return trial
        url = part_url(self._launch.shards, self._launch.parts, trial.share)
        return replace(trial, overrides=(*trial.overrides, override("stream.url", url)))

    def _length(self, trial: Trial, experiment: Experiment) -> dict[str, Any]:
        """Returns the steps (and batch) that spend the budget, or that equal the base in `trial.equal`.

        An override of train.steps by an axis has priority.
        """
        if any(text.startswith(f"{STEPS_KEY}=") for text in trial.overrides):
            return {}
        budget, batch = self._sweep.budget, experiment.stream.global_batch
        base = self._bases.get(trial.seed)
        if not trial.equal or base is None:
            return {STEPS_KEY: budget.steps or max(1, (budget.samples or 0) // batch)}
        if trial.equal == FLOPS:
            size = size_of(experiment)
            return {STEPS_KEY: max(1, round(base.flops / (size.flops / size.steps)))}
        if trial.equal == TOKENS:
            return {STEPS_KEY: base.steps, BATCH_KEY: round(base.tokens / base.steps / experiment.model.num_patches)}
        assert trial.equal == STEPS, trial.equal
        return {STEPS_KEY: base.steps}

    def _probes(self, global_batch: int) -> dict[str, Any]:
        """Returns the settings of the probes in training, if a scheduler needs them."""
        scheduler = self._sweep.scheduler
        if scheduler.kind == NO_SCHEDULER:
            return {}
        every = max(1, round(scheduler.every * (self._sweep.budget.samples or 0) / global_batch))
        return {"probe.data": self._launch.corpus, "probe.every_steps": every}


def plan_sweep(
    sweep: SweepConfig, launch: Launch, *, corpus: Path, name: str, session: str, extra: Sequence[str] = ()
) -> Plan:
    """Composes every trial and returns the plan.

    Args:
        corpus: the whole labelled corpus; `launch` names the probed subset, which may not exist yet.
        extra: overrides for all trials, such as a cache directory.

    Raises:
        UserError: as `Planner.add`, or missing shards, corpus or tasks.
    """
    shared = (override("stream.url", launch.shards), *extra)
    inputs = {
        "shards": read_manifest(launch.shards).digest,
        "corpus": read_labelled_corpus(corpus).digest,
        "probe_tracks": sweep.probe_tracks,
        "tasks": launch.tasks,
        "commands": asdict(launch.commands),
        "ranks": launch.ranks,
    }
    space = digest_of({name: asdict(axis) for name, axis in sweep.axes.items()})
    planner = Planner(sweep, launch, inputs=inputs)
    for trial in expand(sweep, shared=shared):
        planner.add(trial)
    trials = tuple(planner.planned.values())
    search = None
    if sweep.plan == OPTUNA:
        search = Search(sweep.draws, space, len(trials), inputs, shared)
    total = sweep.budget.samples or 0
    scheduler = sweep.scheduler
    schedule = Schedule(scheduler.kind, round(scheduler.every * total), total, scheduler.reduction_factor)
    return Plan(name, sweep.question, launch, trials, planner.same_as, session, schedule, search)


def size_of(experiment: Experiment) -> Size:
    """Returns the amount of training of an experiment; pupujepa/cost/cost.py counts the operations."""
    samples = experiment.train.steps * experiment.stream.global_batch
    per_crop = training_cost(experiment.model, experiment.masks, experiment.objective).total
    return Size(experiment.train.steps, samples, samples * experiment.model.num_patches, samples * per_crop)


def _with(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """Returns the experiment with values by dotted key, without composing it again, which is slow."""
    for key, value in values.items():
        section, _, name = key.partition(".")
        changed = replace(getattr(experiment, section), **{name: value})
        experiment = replace(experiment, **{section: changed})
    return experiment


def _compose(trial: Trial, launch: Launch) -> Experiment:
    try:
        experiment = load_experiment([launch.preset, *trial.presets], overrides=trial.overrides)
        check(experiment, world_size=launch.ranks)
    except UserError as error:
        which = "base" if trial.is_base else f"axis {trial.axis!r}, value {trial.value!r}"
        raise ConfigError(f"{which}: {error}") from error
    if experiment.checkpoint.url:
        raise ConfigError(
            f"checkpoint.url={experiment.checkpoint.url} would mix the checkpoints of all trials; leave it out, and "
            f"each trial keeps its own in the sweep's directory"
        )
    return experiment


def part_of(manifest: Manifest, share: float) -> Manifest:
    """Returns the manifest of the first shards, at least one, that hold about `share` of them.

    Hours and tracks are in proportion to the frames, as the manifest does not list the tracks of a shard.
    """
    shards = manifest.shards[: max(1, round(share * len(manifest.shards)))]
    frames = sum(shard.frames for shard in shards) / manifest.frames
    return replace(
        manifest,
        shards=shards,
        audio_hours=manifest.audio_hours * frames,
        tracks=max(1, round(manifest.tracks * frames)),
    )


def part_url(shards: str, parts: str, share: float) -> str:
    """Returns the folder of a part of `shards`.

    Raises:
        UserError: the shards are in an object store, which has no links.
    """
    if is_remote(shards):
        raise UserError(
            f"data.share links to shards, and {shards} is in an object store without links; build smaller sets and "
            f"vary stream.url, or give --shards a folder"
        )
    return str(Path(parts) / f"{share:g}")


def write_part(shards: str, parts: str, share: float) -> None:
    """Writes the folder of a part; the manifest comes last."""
    folder, source = Path(part_url(shards, parts, share)), Path(shards.removeprefix("file://")).resolve()
    manifest = part_of(read_manifest(shards), share)
    folder.mkdir(parents=True, exist_ok=True)
    for shard in manifest.shards:
        for name in (shard.name, index_name(shard.name)):
            link = folder / name
            link.unlink(missing_ok=True)
            link.symlink_to(source / name)
    write_manifest(str(folder), manifest)

"""The experiment: the configuration of every part in one frozen record.

It is composed from presets, a file and overrides:

    defaults < model=NAME < size of that model < --preset, in order < --config < dotted overrides

A preset holds only its differences from the defaults, or from the preset that its key `inherit` names.

`model=large` names a file of pupujepa/presets/model. The settings that depend on a model's size (the peak learning
rate) come with it from distributed/presets/size. The crop length is set once, in the model.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pupujepa
from data.order.layout import lanes_of_rank
from data.stream.config import StreamConfig, named_corpora
from data.stream.corpora import Corpora
from distributed.checkpoints.config import CheckpointConfig
from distributed.engine.engine import BatchSizes, EngineConfig, OptimizerConfig, batch_sizes
from distributed.run.log import TelemetryConfig
from distributed.watch.config import DiagnosticsConfig, FaultConfig, GuardConfig, ProbeConfig
from pupujepa.config import ConfigError, compose
from pupujepa.errors import UserError
from pupujepa.model.model import ModelConfig
from pupujepa.precision import AUTO, ChosenPrecision
from pupujepa.training.ema import EmaConfig
from pupujepa.training.masks import MaskConfig
from pupujepa.training.objective import ObjectiveConfig, check_objective
from pupujepa.training.schedules import BranchConfig, ScheduleConfig
from pupujepa.yaml_text import read_yaml

PRESETS = Path(__file__).parent / "presets"
SIZES = PRESETS / "size"
MODELS = Path(pupujepa.__file__).parent / "presets" / "model"
# a resumed run may change these: they affect neither the losses nor the content of a checkpoint
FREE_TO_CHANGE = (
    "checkpoint.",
    "diagnostics.",
    "guard.",
    "probe.",
    "telemetry.",
    "faults.",
    # the branch has its own copy of the checkpoint that it started from
    "branch.parent",
    "engine.micro_batch",
    "engine.zero_stage",
    "engine.activation_checkpointing",
    "engine.offload_optimizer",
    "engine.compile",
    "engine.shard_teacher",
    "engine.deterministic",
    "engine.timeout_s",
    "engine.precision_reason",
    # the stream compares the manifest's digest, so the same shards may move
    "stream.url",
    "stream.workers",
    "stream.cache_dir",
    "stream.cache_bytes",
    "stream.max_bad_fraction",
    "stream.prefetch_batches",
    "stream.prefetch_bytes",
    "stream.retries.",
)

# defaults that follow another section; patch_bands 0 follows model.structure
_WRITTEN_ONCE = {
    "stream": {"crop_frames": "${model.crop_frames}"},
    "model": {"predictor_objective": "${objective.kind}", "patch_bands": 0},
    "masks": {"structure": "${model.structure}"},
}


@dataclass(frozen=True)
class TrainConfig:
    """steps: optimiser updates of the whole run. seed: seed of the initial weights."""

    steps: int = 500_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"train.steps={self.steps} must be at least 1")


@dataclass(frozen=True)
class Experiment:
    """All settings of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    branch: BranchConfig = field(default_factory=BranchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    faults: FaultConfig = field(default_factory=FaultConfig)

    @property
    def horizon_steps(self) -> int:
        """Returns the steps of the schedules of momentum and masks: the run's, or its parent's for a branch."""
        return self.branch.horizon_steps or self.train.steps


def load_experiment(
    presets: Sequence[str] = (), *, file: Path | None = None, overrides: Iterable[str] = ()
) -> Experiment:
    """Composes an experiment.

    Args:
        presets: names in distributed/presets, or paths of YAML files; later ones win.
        file: a whole or partial experiment, such as the config.yaml of a run.
        overrides: dotted, plus `model=NAME`.

    Raises:
        ConfigError: an unknown preset, model, key or value.
    """
    overrides = list(overrides)
    named_on_line = [o.partition("=")[2] for o in overrides if o.startswith("model=")]
    overrides = [o for o in overrides if not o.startswith("model=")]
    recipes = [recipe for name in presets for recipe in _with_parents(_preset_path(name))]
    if named_on_line and file is not None and "model" in read_yaml(file):
        raise ConfigError(
            f"model={named_on_line[-1]} and --config {file}, which holds a model, contradict each other; drop one"
        )
    named = named_on_line or [r["model"] for r in recipes if isinstance(r.get("model"), str)]
    layers: list[Mapping[str, Any] | Path] = [_WRITTEN_ONCE]
    if named:
        layers += _model_layers(named[-1])
    # a recipe names its model, which is handled above, or changes some of its fields
    layers += [{k: v for k, v in r.items() if not (k == "model" and isinstance(v, str))} for r in recipes]
    return compose(Experiment, presets=layers, file=file, overrides=overrides)


def check(experiment: Experiment, *, world_size: int) -> BatchSizes:
    """Checks the sections against each other and the number of ranks, and returns the batch sizes.

    Raises:
        UserError: they contradict each other.
    """
    model, stream = experiment.model, experiment.stream
    for name, corpus in named_corpora(stream).items():
        if "@" in corpus.url.partition("://")[2].partition("/")[0]:
            raise ConfigError(
                f"{f'stream.mix.{name}.url' if name else 'stream.url'} carries credentials, which would end up in "
                "config.yaml and logs; export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
            )
    if stream.crop_frames != model.crop_frames:
        raise ConfigError(
            f"stream.crop_frames={stream.crop_frames} differs from model.crop_frames={model.crop_frames}, so crops "
            f"would not fit the patch grid; set only model.crop_frames, the stream follows it"
        )
    if experiment.masks.structure != model.structure:
        raise ConfigError(
            f"masks.structure={experiment.masks.structure} differs from model.structure={model.structure}, so masks "
            "would be drawn for other tokens; set only model.structure, the masks follow it"
        )
    check_objective(experiment.objective, model)
    lanes_of_rank(stream.lanes, 0, world_size)
    return batch_sizes(stream.global_batch, micro_batch=experiment.engine.micro_batch, world_size=world_size)


def with_corpora(experiment: Experiment, corpora: Corpora) -> Experiment:
    """Returns the experiment with the mean and deviation of the corpora, which belong to the weights."""
    model = replace(experiment.model, mel_mean=corpora.mean, mel_std=corpora.std)
    return replace(experiment, model=model)


def with_precision(experiment: Experiment, chosen: ChosenPrecision) -> Experiment:
    """Returns the experiment with precision "auto" replaced by `chosen`; any other precision stays."""
    if experiment.engine.precision != AUTO:
        return experiment
    engine = replace(experiment.engine, precision=chosen.name, precision_reason=chosen.reason)
    return replace(experiment, engine=engine)


def experiment_differences(before: Experiment, now: Experiment) -> list[str]:
    """Lists the settings that make `now` another run than `before`, as `key: old -> new`."""
    old, new = _flat(asdict(before)), _flat(asdict(now))
    keys = [k for k in dict.fromkeys([*new, *old]) if not _free_to_change(k)]
    return [f"{k}: {old.get(k)} -> {new.get(k)}" for k in keys if old.get(k) != new.get(k)]


def preset_names() -> list[str]:
    """Returns the names of the presets in the checkout."""
    return sorted(p.stem for p in PRESETS.glob("*.yaml"))


def _model_layers(name: str) -> list[Mapping[str, Any]]:
    layers: list[Mapping[str, Any]] = [{"model": read_yaml(_named(MODELS, name, "model"))}]
    size = SIZES / f"{name}.yaml"
    return [*layers, read_yaml(size)] if size.is_file() else layers


def _preset_path(name: str) -> Path:
    return Path(name) if name.endswith((".yaml", ".yml")) else _named(PRESETS, name, "preset")


def _with_parents(path: Path, heirs: tuple[Path, ...] = ()) -> list[dict[str, Any]]:
    """Returns a recipe and those that it inherits from, the oldest first."""
    if path in heirs:
        raise ConfigError(f"preset {path} inherits from itself, through {', '.join(p.name for p in heirs)}")
    recipe = read_yaml(path)
    parent = recipe.pop("inherit", None)
    return [*(_with_parents(_preset_path(parent), (*heirs, path)) if parent else []), recipe]


def _named(folder: Path, name: str, kind: str) -> Path:
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(
            f"there is no {kind} {name!r}; choose one of {', '.join(sorted(p.stem for p in folder.glob('*.yaml')))}"
        )
    return path


def _free_to_change(key: str) -> bool:
    return key.startswith(FREE_TO_CHANGE) or (key.startswith("stream.mix.") and key.endswith(".url"))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat

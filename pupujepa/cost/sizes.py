"""Model sizes by name: the presets under `pupujepa/presets/model`."""

from pathlib import Path

from pupujepa.config import compose
from pupujepa.model.model import ModelConfig

PRESETS = Path(__file__).parents[1] / "presets" / "model"


def size_names() -> list[str]:
    """Returns the names of the model presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def model_size(name: str) -> ModelConfig:
    """Returns the architecture of a preset such as "tiny".

    Raises:
        ConfigError: no such preset; the message suggests near names.
    """
    return compose(ModelConfig, presets=[PRESETS / f"{name}.yaml"])

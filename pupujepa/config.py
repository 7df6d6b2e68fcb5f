"""Configuration: frozen dataclasses composed from presets, a file and dotted overrides.

Precedence: dataclass defaults < presets, in order < file < command line. Unknown keys are errors: a misspelt
`train.step=10` that is ignored trains for a week with the wrong length.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pupujepa.errors import UserError

Schema = TypeVar("Schema")


class ConfigError(UserError):
    """A configuration key or value that cannot be used."""


def compose(
    schema: type[Schema],
    *,
    presets: Iterable[Mapping[str, Any] | Path] = (),
    file: Path | None = None,
    overrides: Iterable[str] = (),
) -> Schema:
    """Builds an instance of the dataclass `schema`.

    Args:
        presets: mappings or YAML files with the values that differ from the defaults.
        file: the user's YAML file.
        overrides: `dotted.key=value` strings; values are YAML (`a=[1,2]`, `b=null`).

    Raises:
        ConfigError: unknown key (with the nearest name), wrong type, unreadable YAML or a missing `=`.
    """
    config = OmegaConf.structured(schema)
    layers = [(_read_yaml(p) if isinstance(p, Path) else OmegaConf.create(dict(p)), "preset") for p in presets]
    if file is not None:
        layers.append((_read_yaml(file), str(file)))
    layers.append((_parse_overrides(overrides), "command line"))
    for layer, origin in layers:
        refuse_unknown_keys(schema, layer, origin=origin)
        try:
            config = OmegaConf.merge(config, layer)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{origin}: {str(error).splitlines()[0]} (key {error.full_key!r})") from error
    return _to_object(config)


def to_yaml(config: Any) -> str:
    """Returns the YAML text of a dataclass instance; the inverse of `from_yaml`."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def from_yaml(schema: type[Schema], text: str) -> Schema:
    """Returns the dataclass instance of a YAML text; the inverse of `to_yaml`.

    Raises:
        ConfigError: text that is not a mapping, an unknown key, or a value of the wrong type.
    """
    return compose(schema, presets=[OmegaConf.to_container(_as_mapping(OmegaConf.create(text), "YAML text"))])  # type: ignore[list-item]


def refuse_unknown_keys(schema: type, layer: DictConfig, *, origin: str, prefix: str = "") -> None:
    """Checks that a dataclass and its nested ones declare all keys of a layer.

    Raises:
        ConfigError: the first unknown key, with the nearest known one.
    """
    declared = {f.name: f for f in fields(schema)}
    for key in map(str, layer):
        if key not in declared:
            near = get_close_matches(key, declared, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known keys here: {', '.join(sorted(declared))}"
            raise ConfigError(f"{origin}: unknown key {prefix}{key}; {hint}")
        inner = declared[key].type
        value = layer._get_node(key)  # `layer[key]` would resolve interpolations
        if isinstance(inner, type) and is_dataclass(inner) and isinstance(value, DictConfig):
            refuse_unknown_keys(inner, value, origin=origin, prefix=f"{prefix}{key}.")


def _parse_overrides(overrides: Iterable[str]) -> DictConfig:
    overrides = list(overrides)
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"override {override!r} has no '='; write it as dotted.key=value, e.g. train.steps=1000")
    return OmegaConf.from_dotlist(overrides)


def _read_yaml(path: Path) -> DictConfig:
    if not path.is_file():
        # a low cutoff: a wrong preset name is answered with the presets that exist
        near = get_close_matches(path.stem, [p.stem for p in path.parent.glob("*.yaml")], n=3, cutoff=0.3)
        raise ConfigError(f"no configuration file {path}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    try:
        return _as_mapping(OmegaConf.load(path), str(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error


def _as_mapping(node: Any, origin: str) -> DictConfig:
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{origin} must hold a mapping of keys to values, not a {type(node).__name__}")
    return node


def _to_object(config: Any) -> Any:
    try:
        return OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error

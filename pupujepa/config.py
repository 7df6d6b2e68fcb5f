"""Configuration: frozen dataclasses composed from presets, a file and dotted overrides.

Precedence: dataclass defaults < presets, in order < file < command line. Unknown keys are errors: a misspelt
`train.step=10` that is ignored trains for a week with the wrong length.

The declared type of a key reads its text: a text key takes what was typed, `1e3` or `on` too.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pupujepa.yaml_text import (
    ConfigError,
    Scalar,
    dump_yaml,
    parse_mapping,
    parse_yaml,
    read_yaml,
    resolved,
)

Schema = TypeVar("Schema")

_LINE = "command line"
# another key's value; everything else in ${...} is a resolver, which could copy secrets of the environment into files
_REFERENCE = re.compile(r"(?<!\\)\$\{\.*[A-Za-z_][\w.]*\}")
_SWITCHES = {"yes": True, "y": True, "on": True, "no": False, "n": False, "off": False}
_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


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
        overrides: `dotted.key=value` strings; the text of a text key, YAML for any other (`a=[1,2]`, `b=null`).

    Raises:
        ConfigError: unknown key (with the nearest name), wrong type, unreadable YAML or a missing `=`.
    """
    layers = [_existing(p) if isinstance(p, Path) else p for p in presets]
    layers += [] if file is None else [_existing(file)]
    layers += [_parse_override(schema, text) for text in overrides]
    typed = [_section(layer, schema, "", "preset") for layer in layers]
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), *typed))  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        key = f" (key {error.full_key!r})" if error.full_key else ""
        raise ConfigError(f"{str(error).splitlines()[0]}{key}") from error


def to_yaml(config: Any) -> str:
    """Returns the YAML text of a dataclass instance; the inverse of `from_yaml`."""
    return dump_yaml(asdict(config))


def from_yaml(schema: type[Schema], content: str | Path) -> Schema:
    """Returns the dataclass instance of a YAML text, or of a file of it; the inverse of `to_yaml`.

    Raises:
        ConfigError: text that is not a mapping, an unknown key, or a value of the wrong type.
    """
    tree = read_yaml(content) if isinstance(content, Path) else parse_mapping(content, origin="YAML text")
    return compose(schema, presets=[tree])


def _existing(path: Path) -> dict[str, Any]:
    if not path.is_file():
        # a low cutoff: a wrong preset name is answered with the presets that exist
        near = get_close_matches(path.stem, [p.stem for p in path.parent.glob("*.yaml")], n=3, cutoff=0.3)
        raise ConfigError(f"no configuration file {path}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    return read_yaml(path)


def _parse_override(schema: type, text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"override {text!r} has no '='; write it as dotted.key=value, e.g. train.steps=1000")
    simple = {str, int, float, bool} & set(_options(_hint_of(schema, key)))
    tree: Any = Scalar(value, where=_LINE, value=resolved(value))
    if not simple:
        tree = parse_yaml(value, origin=f"{_LINE}: {key}")
    for name in reversed(key.split(".")):
        tree = {name: tree}
    return tree


def _hint_of(schema: Any, key: str) -> Any:
    """Returns the declared type of a dotted key; `str` for an unknown one, which is refused later."""
    hint = schema
    for name in key.split("."):
        if is_dataclass(hint):
            hint = _hints(hint).get(name, str)  # type: ignore[arg-type]
        elif hint is not Any:
            hint = get_args(hint)[1] if get_origin(hint) is dict else str
    return hint


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if isinstance(hint, UnionType) else (hint,)


@cache
def _hints(schema: Any) -> dict[str, Any]:
    return get_type_hints(schema)


def _section(layer: Any, schema: Any, prefix: str, where: str) -> dict[str, Any]:
    """Returns a layer with every value as its key's type reads it.

    Raises:
        ConfigError: an unknown key, with the nearest known one, or a value of the wrong type.
    """
    hints = _hints(schema)
    if isinstance(layer, Scalar) and layer.value is None:
        return {}  # a section whose keys are all commented out
    if not isinstance(layer, Mapping):
        raise ConfigError(
            f"{where}: {prefix.rstrip('.')}={layer} is not a section; its keys: {', '.join(sorted(hints))}"
        )
    typed = {}
    for name, value in layer.items():
        here = getattr(value, "where", getattr(name, "where", where))
        if name not in hints:
            near = get_close_matches(name, hints, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known keys here: {', '.join(sorted(hints))}"
            raise ConfigError(f"{here}: unknown key {prefix}{name}; {hint}")
        typed[str(name)] = _typed(value, hints[name], f"{prefix}{name}", here)
    return typed


def _typed(value: Any, hint: Any, key: str, where: str) -> Any:
    """Returns a value as the declared type of its key reads it."""
    if isinstance(value, str) and "${" in value:
        return _reference(value, key, where)
    if is_dataclass(hint):
        return _section(value, hint, f"{key}.", where)
    options, where = _options(hint), getattr(value, "where", where)
    if NoneType in options and (value is None or (isinstance(value, Scalar) and value.value is None)):
        return None
    kind = options[0]
    container, kinds = get_origin(kind), [k for k in get_args(kind) if k is not Ellipsis] or [Any]
    if (container is dict or kind is Any) and isinstance(value, Mapping):
        return {str(name): _typed(inner, kinds[-1], f"{key}.{name}", where) for name, inner in value.items()}
    if (container in (list, tuple) or kind is Any) and isinstance(value, list | tuple):
        return [_typed(item, kinds[min(i, len(kinds) - 1)], f"{key}[{i}]", where) for i, item in enumerate(value)]
    return getattr(value, "value", value) if kind is Any else _simple(value, kind, key, where)


def _simple(value: Any, kind: Any, key: str, where: str) -> Any:
    """Returns a text, number or truth value."""
    is_null = isinstance(value, Scalar) and value.value is None and where != _LINE
    if kind is str and isinstance(value, str) and not is_null:
        # OmegaConf takes three question marks for a missing value, and a backslash before them for its escape
        return f"\\{value}" if value.lstrip("\\") == "???" else str(value)
    read = resolved(value.strip()) if isinstance(value, str) else value
    if kind is int and type(read) is int:
        return read
    if kind is float and type(read) in (int, float):
        return _finite(read, key, where)
    if kind is bool and isinstance(read, int) and read in (0, 1):
        return bool(read)
    if kind is bool and str(read).lower() in _SWITCHES:
        return _SWITCHES[str(read).lower()]
    raise ConfigError(f"{where}: {str(value)!r} is not {_KINDS.get(kind, kind)} (key {key!r}); correct the value")


def _finite(number: float, key: str, where: str) -> float:
    try:
        read = float(number)
    except OverflowError:  # an integer of hundreds of digits
        read = math.inf
    if not math.isfinite(read):
        raise ConfigError(f"{where}: {read} is not finite (key {key!r}); write a finite number")
    return read


def _reference(value: str, key: str, where: str) -> str:
    if "${" in _REFERENCE.sub("", value):
        raise ConfigError(
            f"{where}: {key} calls a resolver, which could copy secrets into config.yaml; write the value itself"
        )
    return str(value)

"""YAML 1.2 whose scalars keep their text, so that the declared type of a key decides how to read it.

PyYAML, which comes with OmegaConf, parses, but its values follow YAML 1.1, where 2024_10_01 is a number, `on` a truth
value and 1:30 ninety. The values here follow the core schema of YAML 1.2, except that a number with a leading zero is
text: readers disagree whether 010 is eight or ten.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pupujepa.errors import UserError

_WORDS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NULLS = ("", "~", "null", "Null", "NULL")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
# PyYAML ends lines at these, YAML 1.2 does not
_FALSE_LINE_ENDS = re.compile("[\x85\u2028\u2029]")
# aliases of aliases can multiply a short file without end
_MAX_NODES = 100_000


class ConfigError(UserError):
    """A configuration file, key or value that cannot be used."""


class Scalar(str):
    """Text of a scalar.

    Attributes:
        value: null, truth value, number or text by YAML 1.2; text if it was quoted.
        where: file and line, for messages.
    """

    value: Any
    where: str

    def __new__(cls, text: str, *, where: str, value: Any) -> "Scalar":
        """Returns the text with its value and place."""
        scalar = super().__new__(cls, text)
        scalar.value, scalar.where = value, where
        return scalar


def resolved(text: str) -> Any:
    """Returns the value of a plain scalar by YAML 1.2: None, a truth value, a number or the text."""
    if text in _NULLS:
        return None
    if _INTEGER.fullmatch(text):
        try:
            return int(text, 0)
        except ValueError:  # thousands of digits
            return text
    if _FLOAT.fullmatch(text):
        return float(text)
    return float(text.lower().replace(".", "")) if _NOT_FINITE.fullmatch(text) else _WORDS.get(text, text)


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping in a file, as `parse_mapping` does.

    Raises:
        ConfigError: the file cannot be read, is not UTF-8, or is not a YAML mapping; with the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read now ({error}); mend that, and start again") from error
    try:
        return parse_mapping(content.decode("utf-8-sig"), origin=str(path))
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        line = _quoted(content.decode(errors="replace"), number)
        raise ConfigError(f"{path}:{number}: {line} is not UTF-8; save the file as UTF-8") from error


def parse_mapping(text: str, *, origin: str) -> dict[str, Any]:
    """Returns a YAML mapping: its keys and scalars are `Scalar`s. An empty text is an empty mapping.

    Raises:
        ConfigError: not YAML, or not a mapping.
    """
    tree = parse_yaml(text, origin=origin)
    if isinstance(tree, Scalar) and tree.value is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{origin} must hold a mapping of keys to values, such as `train: {{steps: 1000}}`")
    return tree


def parse_yaml(text: str, *, origin: str) -> Any:
    """Returns dicts, lists and `Scalar`s of a YAML text.

    Raises:
        ConfigError: not YAML, a key that appears twice, a tag, or too many nodes.
    """
    if false_end := _FALSE_LINE_ENDS.search(text):
        number = text.count("\n", 0, false_end.start()) + 1
        raise ConfigError(
            f"{origin}:{number}: U+{ord(false_end[0]):04X} would cut the line; remove it, or write its escape in quotes"
        )
    try:
        return _Tree(origin).of(_composed(text, origin))
    except RecursionError as error:
        raise ConfigError(f"{origin} is nested too deeply to be a configuration; correct it") from error


def plain_values(tree: Any) -> Any:
    """Returns the values of a tree of `parse_yaml`, without knowing types: by YAML 1.2."""
    if isinstance(tree, Mapping):
        return {str(key): plain_values(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain_values(value) for value in tree]
    return tree.value if isinstance(tree, Scalar) else tree


def dump_yaml(tree: Any) -> str:
    """Returns the YAML text of dicts, lists, tuples and scalars, for `parse_yaml`."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """The dumper with its own representer of text."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # double quotes have escapes for the characters that would end a line
    style = '"' if not text.isprintable() else "'" if resolved(text) != text else None
    return dumper.represent_scalar(yaml.SafeDumper.DEFAULT_SCALAR_TAG, text, style=style)


_Dumper.add_representer(str, _represent_text)


class _Tree:
    def __init__(self, origin: str):
        self._origin, self._nodes = origin, 0

    def of(self, node: yaml.Node | None, prefix: str = "") -> Any:
        if node is None:
            return self._scalar("", value=None, line=0)
        self._nodes += 1
        where = f"{self._origin}:{node.start_mark.line + 1}"
        if self._nodes > _MAX_NODES:
            raise ConfigError(f"{where}: more than {_MAX_NODES:,} values; expand fewer aliases")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, prefix)
        if isinstance(node, yaml.SequenceNode):
            return [self.of(item, prefix) for item in node.value]
        if node.tag != yaml.BaseLoader.DEFAULT_SCALAR_TAG:
            raise ConfigError(f"{where}: {prefix.rstrip('.')} has the tag {node.tag}, which is not supported; drop it")
        value = resolved(node.value) if node.style is None else node.value
        return self._scalar(node.value, value=value, line=node.start_mark.line)

    def _mapping(self, node: yaml.MappingNode, prefix: str) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.of(key_node, prefix)
            where = f"{self._origin}:{key_node.start_mark.line + 1}"
            if not isinstance(key, Scalar):
                raise ConfigError(
                    f"{where}: a key below {prefix or 'the top'} is not text; write text before the colon"
                )
            if key in mapping:
                raise ConfigError(f"{where}: key {prefix}{key} appears twice, so one would be lost; keep one")
            mapping[key] = self.of(value_node, f"{prefix}{key}.")
        return mapping

    def _scalar(self, text: str, *, value: Any, line: int) -> Scalar:
        return Scalar(text, where=f"{self._origin}:{line + 1}", value=value)


def _composed(text: str, origin: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        mark, reason = error.problem_mark or error.context_mark, error.problem
        # the end of the file says nothing: name the line where the open bracket or quote is
        if error.context_mark is not None and mark.index >= len(text.rstrip()):
            mark = error.context_mark
        number, cause = mark.line + 1, error
    except yaml.reader.ReaderError as error:
        number, reason, cause = text.count("\n", 0, error.position) + 1, "a control character", error
    except (ValueError, OverflowError) as error:  # an escape of no character, such as "\UFFFFFFFF"
        number, reason, cause = 1, str(error), error
    raise ConfigError(f"{origin}:{number}: {_quoted(text, number)} is not YAML ({reason}); correct the line") from cause


def _quoted(text: str, number: int) -> str:
    return repr(text.split("\n")[number - 1].strip()[:60])

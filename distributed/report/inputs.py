"""Inputs of a report: the files of a run directory, a path or URL, read once.

A missing input is a `Missing` with the command that makes it; the page shows it in place of the section.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from data.store.store import open_store
from pupujepa.errors import UserError
from pupujepa.json_lines import parse_rows
from pupujepa.yaml_text import ConfigError, parse_mapping, plain_values

Row = dict[str, Any]


class ReportError(UserError):
    """A run directory, or a file of it, that cannot be read."""


@dataclass(frozen=True)
class Missing:
    """A missing input: its name, and the command that makes it."""

    what: str
    command: str


@dataclass(frozen=True)
class RunInputs:
    """The readable parts of a run; an absent file is None or empty."""

    location: str
    name: str
    config_text: str | None
    config: dict[str, Any]
    facts: Row
    metrics: tuple[Row, ...]
    results: tuple[Row, ...]
    phases: tuple[tuple[str, float], ...]
    has_export: bool

    def fact(self, *path: str, default: Any = None) -> Any:
        """Returns the fact `path[-1]`, else the configuration's value at `path`, else `default`."""
        node: Any = self.facts.get(path[-1])
        if node is not None:
            return node
        node = self.config
        for key in path:
            if not isinstance(node, dict) or key not in node:
                return default
            node = node[key]
        return default if node is None else node


def read_run(location: str, results_url: str | None = None) -> RunInputs:
    """Reads config.yaml, metrics.jsonl, facts.json, results.jsonl and phases.json of a run.

    Args:
        location: run directory, a path or URL.
        results_url: results.jsonl elsewhere; by default the one in the run directory.

    Raises:
        ReportError: the run has none of its files, or one cannot be read.
        LineError: a row cannot be read.
    """
    store = open_store(location)

    def read(path: str) -> str | None:
        try:
            return store.read(path).decode() if store.exists(path) else None
        except UnicodeDecodeError as error:
            raise ReportError(f"{path} of the run is not UTF-8 ({error}); restore it") from error

    def rows(name: str, text: str | None) -> list[Row]:
        # a run that is writing, or was killed while writing, leaves half a line
        return parse_rows(text or "", origin=f"{name} of the run", growing=True)

    config_text, metrics, facts = read("config.yaml"), read("metrics.jsonl"), read("facts.json")
    if config_text is None and metrics is None and facts is None:
        raise ReportError(
            f"{location} is not a run directory: it has no config.yaml, metrics.jsonl or facts.json; give the folder "
            "that `python -m distributed train` wrote, e.g. runs/demo"
        )
    results = _read_elsewhere(results_url) if results_url else read("results.jsonl")
    phases = _parse("phases.json", read("phases.json"), json.loads) or {}
    return RunInputs(
        location=location,
        name=location.rstrip("/").rsplit("/", 1)[-1],
        config_text=config_text,
        config=_parse("config.yaml", config_text, _plain_yaml) or {},
        facts=_parse("facts.json", facts, json.loads) or {},
        metrics=latest_of_each_step(rows("metrics.jsonl", metrics)),
        results=tuple(rows("results.jsonl", results)),
        phases=tuple((str(k), float(v)) for k, v in phases.items() if float(v) > 0),
        has_export=store.exists("export/model.safetensors"),
    )


def latest_of_each_step(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Returns one row per step, by ascending step, merged from all rows of the step.

    A killed run logs some steps twice: the later value of a key wins.
    """
    merged: dict[int, Row] = {}
    for row in rows:
        merged[row["step"]] = merged.get(row["step"], {}) | row
    return tuple(merged[step] for step in sorted(merged))


def column(rows: Sequence[Row], key: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the steps that logged `key`, and the values."""
    found = [(float(r["step"]), float(r[key])) for r in rows if isinstance(r.get(key), int | float)]
    return tuple(x for x, _ in found), tuple(y for _, y in found)


def _read_elsewhere(url: str) -> str:
    folder, _, name = url.rpartition("/")
    store = open_store(folder or ".")
    if not store.exists(name):
        raise ReportError(f"no results at {url}; write them with `python -m distributed evaluate ... --out FOLDER`")
    return store.read(name).decode()


def _parse(name: str, text: str | None, parse: Callable[[str], Any]) -> Any:
    if text is None:
        return None
    try:
        return parse(text)
    except (json.JSONDecodeError, ConfigError) as error:
        raise ReportError(f"{name} of the run cannot be read ({error}); it may be cut off: restore it") from error


def _plain_yaml(text: str) -> dict[str, Any]:
    return plain_values(parse_mapping(text, origin="config.yaml"))

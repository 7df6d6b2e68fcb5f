"""What a report is made from: the files of a run directory, read once, and a name for each that is not there.

A run directory is a path or an object-store URL; both are read through `data.store.store`. A missing input is a
`Missing` with the command that makes it: the page prints it in place of the section, so that a gap is never silent.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from data.store.store import open_store
from pupujepa.errors import UserError
from pupujepa.json_lines import parse_rows

Row = dict[str, Any]


class ReportError(UserError):
    """A run directory or one of its files that a report cannot be made from."""


@dataclass(frozen=True)
class Missing:
    """An input that is not there: what it is, and the command that makes it."""

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
        """Returns a fact, or else the configuration's value at the dotted path, or else `default`."""
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
        ReportError: none of the run's files is there, or one of them cannot be read. LineError: a row cannot be.
    """
    store = open_store(location)

    def read(path: str) -> str | None:
        return store.read(path).decode() if store.exists(path) else None

    def rows(name: str, text: str | None) -> list[Row]:
        # a run that is writing right now, or was killed while writing, ends in half a line
        return parse_rows(text or "", origin=f"{name} of the run", growing=True)

    config_text, metrics, facts = read("config.yaml"), read("metrics.jsonl"), read("facts.json")
    if config_text is None and metrics is None and facts is None:
        raise ReportError(
            f"{location} is not a run directory: it holds no config.yaml, metrics.jsonl or facts.json, so there is "
            "nothing to report; give the folder that `python -m distributed train` wrote, e.g. runs/demo"
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
    """Returns the rows by ascending step; of the steps that a killed run logged twice, the later writing wins.

    Rows of one step that hold different keys (losses here, diagnostics there) are one row.
    """
    merged: dict[int, Row] = {}
    for row in rows:
        merged[row["step"]] = merged.get(row["step"], {}) | row
    return tuple(merged[step] for step in sorted(merged))


def column(rows: Sequence[Row], key: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the steps that logged `key`, and its values."""
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
    except (json.JSONDecodeError, YAMLError, OmegaConfBaseException, KeyError) as error:
        raise ReportError(f"{name} of the run cannot be read ({error}); was it cut off while written?") from error


def _plain_yaml(text: str) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.create(text))  # type: ignore[return-value]

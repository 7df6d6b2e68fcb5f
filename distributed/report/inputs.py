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
from pupujepa.model.architecture import MAE
from pupujepa.yaml_text import ConfigError, parse_mapping, plain_values

Row = dict[str, Any]

# The page's words for the targets of a run: the teacher's features, or patches for kind mae.
# verb, goal (HTML): the task in three steps; task, part: on the masked crops; loss, share: of the charts; hidden: the
# explained variance; mean: the guess to beat; cheat: why the loss alone proves nothing; rise, lag: a rising loss, a
# teacher that hardly moved
FEATURES = {
    "verb": "Predict",
    "goal": "the features that a slow copy, the <em>teacher</em>, gives to the hidden patches: the brighter, the "
    "better it was predicted",
    "task": "The student sees only the clear patches and must predict the features of the veiled ones",
    "loss": "Distance between predicted and true features of hidden patches. It should fall, but may rise when the "
    "teacher grows richer",
    "share": "Share of the hidden features' variance that the prediction explains",
    "hidden": "The prediction explains {} of the variance of the hidden patches' features",
    "mean": "mean feature",
    "part": "the more of its feature was predicted right",
    "cheat": "A model like this can cheat: if every patch had the same feature, the loss would be zero and nothing "
    "learned.",
    "rise": "Alone that is normal, since the target moves; with falling probes it would be an alarm.",
    "lag": "so far the targets are those of an untrained network",
}
PATCHES = {
    "verb": "Reconstruct",
    "goal": "the spectrogram of the hidden patches: the brighter, the better it was reconstructed",
    "task": "The student sees only the clear patches, and the predictor must reconstruct the veiled ones",
    "loss": "Distance between hidden patches and their reconstruction, of standardised patches unless configured "
    "otherwise. It should fall",
    "share": "Share of the hidden patches' variance that the reconstruction explains",
    "hidden": "The reconstruction explains {} of the variance of the hidden patches",
    "mean": "mean patch",
    "part": "the more of it was reconstructed right",
    "cheat": "A reconstruction cannot be cheated by features that are all the same, but it can be good while the "
    "features are poor: they may use few directions, or encode positions and not music.",
    "rise": "The target is fixed here, so the model has become worse: look at the learning rate and the gradient norm.",
    "lag": "so far the teacher, which the probes read, is nearly an untrained network",
}


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

    @property
    def words(self) -> dict[str, str]:
        """The words for the targets of this run; FEATURES without a configuration."""
        return PATCHES if (self.config.get("objective") or {}).get("kind") == MAE else FEATURES

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
    results = read("results.jsonl")
    if results_url:
        folder, _, name = results_url.rpartition("/")
        if not open_store(folder or ".").exists(name):
            remedy = "write them with `python -m distributed evaluate ... --out FOLDER`"
            raise ReportError(f"no results at {results_url}; {remedy}")
        results = open_store(folder or ".").read(name).decode()
    phases = _parse("phases.json", read("phases.json"), json.loads) or {}
    return RunInputs(
        location=location,
        name=location.rstrip("/").rsplit("/", 1)[-1],
        config_text=config_text,
        config=_parse("config.yaml", config_text, _plain_yaml) or {},
        facts=_parse("facts.json", facts, json.loads) or {},
        metrics=latest_of_each_step(rows("metrics.jsonl", metrics)),
        results=tuple(rows("results.jsonl", results)),
        phases=tuple((str(k), float(v)) for k, v in phases.items() if float(v) > 0),  # no time, no bar
        has_export=store.exists("export/model.safetensors"),
    )


def latest_of_each_step(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Returns one row per step, by ascending step, merged from all rows of the step.

    A killed run logs some steps twice: the later value of a key wins.
    """
    merged: dict[int, Row] = {}
    for row in rows:
        merged[row["step"]] = merged.get(row["step"], {}) | row  # training, diagnostics and probes log apart
    return tuple(merged[step] for step in sorted(merged))


def column(rows: Sequence[Row], key: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the steps that logged `key`, and the values."""
    found = [(float(r["step"]), float(r[key])) for r in rows if isinstance(r.get(key), int | float)]  # a NaN is null
    return tuple(x for x, _ in found), tuple(y for _, y in found)


def _parse(name: str, text: str | None, parse: Callable[[str], Any]) -> Any:
    if text is None:
        return None
    try:
        return parse(text)
    except (json.JSONDecodeError, ConfigError) as error:
        raise ReportError(f"{name} of the run cannot be read ({error}); it may be cut off: restore it") from error


def _plain_yaml(text: str) -> dict[str, Any]:
    return plain_values(parse_mapping(text, origin="config.yaml"))

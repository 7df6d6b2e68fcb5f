"""The log of a run: metrics.jsonl (the source of all plots), wandb, a progress bar or plain lines.

Only rank 0 writes. On resume the log is cut back to the checkpoint, so it equals the log of an uninterrupted run.
"""

import json
import logging
import math
import netrc
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch

from data.stream.stream import Stream
from distributed.run.directory import RunDirectory
from distributed.run.speed import Pace, StreamCounts, Yardstick, peak_memory_of_ranks
from distributed.run.wandb import FINISHED, WandbSink
from pupujepa.errors import UserError, require_known
from pupujepa.front_door import ROOMS
from pupujepa.json_lines import encode_rows, read_rows, write_rows
from pupujepa.progress import Progress, write_line

WANDB_MODES = ("auto", "online", "offline", "disabled")
_WANDB_HOST = "api.wandb.ai"

logger = logging.getLogger(__name__)
Row = Mapping[str, Any]


@dataclass(frozen=True)
class TelemetryConfig:
    """log_every: steps between rows of metrics.jsonl.

    wandb: "online", "offline", "disabled", or "auto": online with a key, else offline.
    name: of the run in wandb; null takes the name of the run directory.
    peak_tflops: peak of one device, for the model FLOPs utilisation (MFU); 0 looks it up by the device's name. An
        unknown device, such as a CPU, has no MFU.
    """

    log_every: int = 10
    wandb: str = "auto"
    wandb_project: str = "pupujepa"
    name: str | None = None
    peak_tflops: float = 0.0

    def __post_init__(self) -> None:
        if self.log_every < 1:
            raise UserError(f"telemetry.log_every={self.log_every} must be at least 1")
        if self.peak_tflops < 0:
            raise UserError(
                f"telemetry.peak_tflops={self.peak_tflops} must be 0 (look the device up) or TFLOP/s of one device"
            )
        require_known("telemetry.wandb", self.wandb, WANDB_MODES)


class Sink(Protocol):
    """A consumer of metrics rows."""

    def write(self, row: Row) -> None:
        """Writes a row, which has a "step"."""

    def close(self, outcome: str = FINISHED) -> None:
        """Flushes all rows; `outcome` of the session is finished, stopped (to be continued) or failed."""


class RunLog:
    """The rows of a run: training rows when they are due, all others at once; every rank has one.

    Args:
        sinks: consumers of the rows; empty except on rank 0.
        every: steps between training rows; the last step always has one.

    Attributes:
        steps, seconds, waited_s: of all training steps of this session; waited_s is the wait for data.
    """

    def __init__(
        self,
        sinks: Sequence["Sink"],
        *,
        stream: Stream,
        device: torch.device,
        yardstick: Yardstick,
        every: int,
        total_steps: int,
    ):
        self._sinks, self._stream, self._device, self._yardstick = sinks, stream, device, yardstick
        self._every, self._total_steps = every, total_steps
        self._counts = StreamCounts(stream, device=device)
        self._window = Pace()
        self._started, self._waited_before = 0.0, 0.0
        self.steps, self.seconds, self.waited_s = 0, 0.0, 0.0

    @property
    def seconds_per_step(self) -> float:
        """Mean over this session; 0 before its first step."""
        return self.seconds / self.steps if self.steps else 0.0

    def is_due(self, step: int) -> bool:
        """Returns True for a step that gets a row."""
        return step % self._every == 0 or step + 1 == self._total_steps

    def start_step(self) -> None:
        """Starts the clock of a step."""
        self._started, self._waited_before = time.perf_counter(), self._stream.counters()["wait_s"]

    def step(self, row: Row, *, due: bool) -> None:
        """Stops the clock and, if due, writes the row with speed, memory and counts since the previous row.

        All ranks call it together. A skipped step is always due, so that a resumed run counts it.
        """
        seconds = time.perf_counter() - self._started
        waited_s = self._stream.counters()["wait_s"] - self._waited_before
        self.steps, self.seconds, self.waited_s = self.steps + 1, self.seconds + seconds, self.waited_s + waited_s
        self._window.add(seconds, waited_s)
        if due:
            window, self._window = self._window, Pace()
            speed = self._yardstick.rates(window) | peak_memory_of_ranks(self._device)
            self.write({**row} | self._stream.mixture() | speed | self._counts.since_last())

    def write(self, row: Row) -> None:
        """Writes a row to the sinks."""
        for sink in self._sinks:
            sink.write(row)

    def unsaid_counts(self) -> dict[str, float]:
        """Returns what this rank's stream counted since the last row."""
        return self._counts.unsaid()

    def close(self, outcome: str) -> None:
        """Closes the sinks with the session's outcome: finished, stopped or failed."""
        for sink in self._sinks:
            sink.close(outcome)


class MetricsLog:
    """metrics.jsonl, one JSON object per line, flushed line by line.

    Args:
        resume_step: drop rows from this step on; they will be trained again.
        begun: first step of the run.
        every: steps between training rows.
    """

    def __init__(self, path: Path, *, resume_step: int, begun: int = 0, every: int = 1):
        rows = [row for row in readable_rows(path, keep_damaged=True) if row["step"] < resume_step]
        _warn_of_lost_rows(path, [row["step"] for row in rows if "lr" in row], range(begun, resume_step, every))
        write_rows(path, rows)
        self._file = path.open("ab")

    def write(self, row: Row) -> None:
        """Appends the row as a line."""
        self._file.write(encode_rows([{key: _json_number(value) for key, value in row.items()}]))
        self._file.flush()

    def close(self, outcome: str = FINISHED) -> None:
        """Closes the file."""
        with suppress(OSError):  # every row was flushed, or its error was raised
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a metrics.jsonl, except a last line that a kill has cut."""
    return read_rows(path, growing=True)


def readable_rows(path: Path, *, keep_damaged: bool = False) -> list[dict[str, Any]]:
    """Reads the whole rows of a metrics.jsonl and warns of others, as a crash of the machine leaves them.

    Args:
        keep_damaged: copy a damaged file beside itself.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []  # the last one was cut by a kill
    rows = [_row_of(line) for line in lines]
    broken = [number for number, row in enumerate(rows, start=1) if row is None]
    if broken:
        logger.warning("%s is damaged: %d lines cannot be read, the first is line %d", path, len(broken), broken[0])
    if broken and keep_damaged:
        copy = path.with_name(f"{path.name}.damaged-{time.time():.0f}")
        shutil.copyfile(path, copy)
        logger.warning("a copy of the damaged file is in %s", copy)
    return [row for row in rows if row is not None]


def _row_of(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.strip(b"\0"))  # a crash may leave zeros before rows that were written later
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def _warn_of_lost_rows(path: Path, there: Sequence[int], expected: range) -> None:
    """Warns if the last training rows before a checkpoint are missing."""
    gap = max([expected.step, *(after - before for before, after in pairwise(there))])  # it may have been larger before
    first_lost = there[-1] + gap if there else expected.start
    if first_lost < expected.stop:
        logger.warning(
            "%s has no rows of steps %d to %d, although the checkpoint is of step %d: they are lost",
            path,
            first_lost,
            expected.stop - 1,
            expected.stop,
        )


class ProgressSink:
    """A progress bar on a terminal, log lines elsewhere."""

    def __init__(self, *, total_steps: int, first_step: int):
        self._progress = Progress(total_steps, title="train", unit="steps")
        self._progress.skip(first_step)

    def write(self, row: Row) -> None:
        """Moves the bar or logs a line, for training rows only."""
        if "loss" not in row:
            return
        shown = {"loss": f"{row['loss']:.4f}", "crops/s": f"{row['crops_per_s']:.0f}", "lr": f"{row['lr']:.2e}"}
        if self._progress.has_bar:
            note = ", ".join(f"{name}={value}" for name, value in shown.items())
            self._progress.advance(row["step"] + 1 - self._progress.done, note=note)
            return
        wait = row["data_wait_s"] / row["step_s"] if row["step_s"] else 0.0
        parts = "  ".join(f"{name} {value}" for name, value in shown.items())
        logger.info("step %d/%d  %s  waiting for data %.0f%%", row["step"] + 1, self._progress.total, parts, 100 * wait)

    def close(self, outcome: str = FINISHED) -> None:
        """Closes the bar."""
        self._progress.close()


def open_sinks(
    run: RunDirectory, config: TelemetryConfig, *, steps: tuple[int, int, int], settings: Mapping[str, Any]
) -> list[Sink]:
    """Opens the sinks of rank 0.

    Args:
        steps: first step of the run, first step of this session, and number of steps of the run.
        settings: the resolved configuration, for wandb.
    """
    begun, first_step, total_steps = steps
    sinks: list[Sink] = [MetricsLog(run.metrics, resume_step=first_step, begun=begun, every=config.log_every)]
    mode = wandb_mode(config.wandb, os.environ)
    if mode != "disabled":
        project, name = config.wandb_project, config.name
        sinks.append(WandbSink(run, project=project, name=name, mode=mode, settings=settings))
    return [*sinks, ProgressSink(total_steps=total_steps, first_step=first_step)]


def wandb_mode(mode: str, environ: Mapping[str, str]) -> str:
    """Resolves "auto": WANDB_MODE if set, online with a key (WANDB_API_KEY or ~/.netrc), else offline."""
    if mode != "auto":
        return mode
    if environ.get("WANDB_MODE"):
        return environ["WANDB_MODE"]
    return "online" if environ.get("WANDB_API_KEY") or _netrc_has_key(environ) else "offline"


def configure_logging(*, rank: int) -> None:
    """Sends the log to stderr above the bar; ranks other than 0 log only warnings and errors."""
    handler = _BarHandler()
    handler.setFormatter(
        logging.Formatter(
            "%(asctime)s %(message)s" if rank == 0 else f"%(asctime)s rank {rank}: %(message)s", "%H:%M:%S"
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    for room in ROOMS:
        logging.getLogger(room).setLevel(logging.INFO if rank == 0 else logging.WARNING)


class _BarHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        write_line(self.format(record))


def _json_number(value: Any) -> Any:
    # JSON has no NaN
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _netrc_has_key(environ: Mapping[str, str]) -> bool:
    path = Path(environ.get("NETRC") or Path(environ.get("HOME", "~")).expanduser() / ".netrc")
    try:
        return path.is_file() and netrc.netrc(path).authenticators(_WANDB_HOST) is not None
    except (netrc.NetrcParseError, OSError):
        return False

"""The log of a run: complete lines, cut back on resume, and a wandb run that keeps its name."""

import json
import logging
import os
import pty
import subprocess
import sys
import termios
from contextlib import suppress

import pytest

from distributed.run.log import MetricsLog, ProgressSink, TelemetryConfig, read_metrics, wandb_mode
from pupujepa.errors import UserError


def test_rows_come_back_to_the_last_bit(tmp_path):
    """Losses are compared bit for bit, so the log must hold every digit."""
    rows = [{"step": 0, "loss": 0.1 + 0.2}, {"step": 10, "loss": 1 / 3}]
    log = MetricsLog(tmp_path / "m.jsonl", resume_step=0)
    for row in rows:
        log.write(row)
    assert read_metrics(tmp_path / "m.jsonl") == rows, "rows are on disk before the log is closed"
    log.close()


def test_resuming_cuts_the_log_back(tmp_path):
    """Rows of steps that will be trained again are dropped, and so is a line that a kill has cut."""
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 0, "loss": 3.0}\n{"step": 10, "loss": 2.0}\n{"step": 20, "loss": 1.0}\n{"step": 30, "lo')
    log = MetricsLog(path, resume_step=20)
    log.write({"step": 20, "loss": 1.5})
    log.close()
    assert [row["loss"] for row in read_metrics(path)] == [3.0, 2.0, 1.5]


def test_a_torn_last_line_is_no_row(tmp_path):
    """Readers of a run in progress see whole rows only."""
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 0}\n{"step": 1')
    assert read_metrics(path) == [{"step": 0}]
    assert read_metrics(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    "damage",
    [
        b'{"step": 1, "lr": 0.1, "lo\n',
        b"\0" * 90 + b"\n",
        b"[]\n",
        b'{"lr": 0.1}\n',
        b"\xff\xfe\n",
        b'{"step": null}\n',
        b"[" * 100_000 + b"\n",
    ],
    ids=range(7),
)
def test_a_damaged_log_is_cut_back_to_what_can_be_read(tmp_path, caplog, damage):
    """A crash of the machine leaves zeros or torn lines: file and line are named, the file is kept, rows stay."""
    path = tmp_path / "m.jsonl"
    content = row_line(0) + damage + b"\0" * 7 + row_line(2) + row_line(3)
    path.write_bytes(content)
    MetricsLog(path, resume_step=3).close()
    assert [row["step"] for row in read_metrics(path)] == [0, 2]
    assert f"{path} is damaged: 1 lines cannot be read, the first is line 2" in caplog.text
    (copy,) = tmp_path.glob("m.jsonl.damaged-*")
    assert copy.read_bytes() == content


@pytest.mark.parametrize(
    ("there", "resume_step", "begun", "lost"),
    [
        ((), 7, 0, "0 to 6"),  # the file is gone
        ((0, 1, 2), 7, 0, "3 to 6"),  # it ends too early
        ((), 9, 5, "5 to 8"),  # of a branch, whose first row is later
        ((0, 1, 2), 3, 0, ""),
        ((), 5, 5, ""),
        ((0, 10, 20), 26, 0, ""),  # with a row for every tenth step
    ],
)
def test_rows_that_are_missing_are_said_aloud(tmp_path, caplog, there, resume_step, begun, lost):
    """No silent hole between the log and the checkpoint."""
    path = tmp_path / "m.jsonl"
    if there:
        path.write_bytes(b"".join(map(row_line, there)))
    MetricsLog(path, resume_step=resume_step, begun=begun).close()
    expected = f"{path} has no rows of steps {lost}, although the checkpoint is of step {resume_step}: they are lost"
    assert [record.getMessage() for record in caplog.records] == ([expected] if lost else [])


def row_line(step: int) -> bytes:
    return json.dumps({"step": step, "lr": 0.1, "loss": 1.0}).encode() + b"\n"


@pytest.mark.parametrize("gone", ["full", "unread"])
def test_lost_messages_do_not_end_the_work(gone):
    """Log lines and bars to a full disk, or to a pipe that nobody reads, are dropped."""
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run([sys.executable, "-c", TALKING], check=False, stderr=full if gone == "full" else writer)
    os.close(full)
    os.close(writer)
    assert done.returncode == 85


TALKING = """
import logging
from distributed.processes.process import end_process
from distributed.run.log import ProgressSink, configure_logging
configure_logging(rank=0)
sink = ProgressSink(total_steps=2, first_step=0)
for step in range(2):
    logging.getLogger("distributed").info("x" * 5000)
    sink.write({"step": step, "loss": 1.0, "crops_per_s": 1.0, "lr": 1.0, "data_wait_s": 0.0, "step_s": 1.0})
sink._progress._line("note")
sink.close()
end_process(85)
"""


def test_what_is_no_number_is_null(tmp_path):
    """NaN is not JSON: any reader must be able to parse the file."""
    log = MetricsLog(tmp_path / "m.jsonl", resume_step=0)
    log.write({"step": 0, "diag/explained_variance": float("nan"), "x": float("inf")})
    log.close()
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"step": 0, "diag/explained_variance": None, "x": None}


def test_auto_is_offline_without_a_key(tmp_path):
    """Nobody is asked for a login; a key in the environment or in ~/.netrc goes online."""
    home = {"HOME": str(tmp_path)}
    assert wandb_mode("auto", home) == "offline"
    assert wandb_mode("auto", home | {"WANDB_API_KEY": "x"}) == "online"
    assert wandb_mode("auto", home | {"WANDB_MODE": "disabled", "WANDB_API_KEY": "x"}) == "disabled"
    assert wandb_mode("offline", home | {"WANDB_API_KEY": "x"}) == "offline"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert wandb_mode("auto", home) == "online"


def test_an_unknown_wandb_mode_is_refused():
    """The message lists the modes."""
    with pytest.raises(UserError, match="choose one of auto, online, offline, disabled"):
        TelemetryConfig(wandb="of")


def test_plain_lines_where_there_is_no_terminal(caplog):
    """Off a terminal there is no bar: a batch job's log gets one line per row, diagnostics none."""
    sink = ProgressSink(total_steps=100, first_step=0)
    row = {"step": 9, "loss": 0.5, "crops_per_s": 80.0, "lr": 1e-3, "step_s": 0.2, "data_wait_s": 0.05}
    with caplog.at_level(logging.INFO):
        sink.write(row)
        sink.write({"step": 10, "diag/explained_variance": 0.1})
        sink.close()
    assert [r.message for r in caplog.records] == [
        "step 10/100  loss 0.5000  crops/s 80  lr 1.00e-03  waiting for data 25%"
    ]


def test_a_bar_on_a_terminal(caplog, monkeypatch):
    """There the rows move a bar, and no line is written for each."""
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    with os.fdopen(terminal, "w") as stream, caplog.at_level(logging.INFO):
        monkeypatch.setattr("sys.stderr", stream)
        sink = ProgressSink(total_steps=100, first_step=0)
        sink.write({"step": 9, "loss": 0.5, "crops_per_s": 80.0, "lr": 1e-3, "step_s": 0.2, "data_wait_s": 0.05})
        sink.close()
    shown = b""
    # what was written arrives in pieces; after the last one there is nobody at the other end
    with suppress(OSError):
        while piece := os.read(controller, 65536):
            shown += piece
    os.close(controller)
    assert "10/100" in shown.decode()
    assert "loss=0.5000" in shown.decode()
    assert caplog.records == []


def test_the_log_is_only_ever_appended_to(tmp_path):
    """What was written stays as it is, byte for byte, while rows are added and when nothing is cut."""
    path = tmp_path / "m.jsonl"
    seen = b""
    for step in range(3):
        log = MetricsLog(path, resume_step=step)
        log.write({"step": step, "loss": 1.0})
        log.close()
        assert path.read_bytes().startswith(seen)
        seen = path.read_bytes()
    assert seen.count(b"\n") == 3

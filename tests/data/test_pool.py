"""The pool of processes: the order of results, and dead workers."""

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from data.pool import map_in_order, map_unordered
from tests.processes import wait_until_gone


def last_ones_first(position: int) -> int:
    """Takes longer for the first items, so that later ones finish earlier."""
    time.sleep(0.3 if position < 2 else 0)
    return position * position


@pytest.mark.parametrize("workers", [1, 3])
def test_answers_come_in_the_order_of_the_items(workers):
    """Results are in order for any number of workers, although later items finish first."""
    squares = list(map_in_order(last_ones_first, range(12), workers=workers, preload=__name__))
    assert squares == [i * i for i in range(12)]


def test_without_order_each_answer_names_its_item():
    """Every item gives one result."""
    items = [(10 + i, float(i)) for i in range(9)]
    assert dict(map_unordered(math.sqrt, items, workers=2, preload="math")) == {10 + i: i**0.5 for i in range(9)}
    assert list(map_unordered(math.sqrt, [], workers=2, preload="math")) == []


def test_a_dead_worker_fails_the_work():
    """A dead worker is an error, not a wait without end."""
    with pytest.raises(BrokenProcessPool):
        list(map_in_order(os._exit, [3] * 8, workers=2, preload="os"))


INTERRUPTED = """
import time
from data.pool import map_unordered
from pupujepa.front_door import quiet_when_unread
if __name__ == "__main__":
    with quiet_when_unread():
        for number, _ in map_unordered(time.sleep, [(0, 0), (1, 0), (2, 3600), (3, 3600)], workers=2, preload="time"):
            print(number, flush=True)
"""


def test_ctrl_c_ends_the_work_at_once(tmp_path):
    """A terminal interrupts all processes: one line, no traceback of any, and nobody waits for the items at hand."""
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # as on a terminal, even if these tests run where it is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no other thread
    )
    assert process.stdout is not None
    assert {process.stdout.readline(), process.stdout.readline()} == {"0\n", "1\n"}
    time.sleep(0.5)  # both workers are at the long items, or about to be
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert (process.returncode, said) == (130, "stopped by Ctrl-C\n")


def test_an_error_of_the_work_ends_it():
    """A worker's error reaches the caller."""
    with pytest.raises(ValueError, match=r"math domain|nonnegative"):
        list(map_in_order(math.sqrt, [1.0, -1.0, 2.0], workers=2, preload="math"))


def test_workers_see_the_caller_s_environment(monkeypatch):
    """Workers have the caller's environment, even if it changed after the server's start, and compute in one thread."""
    list(map_in_order(math.sqrt, [1.0, 4.0], workers=2, preload="math"))
    monkeypatch.setenv("PUPUJEPA_TEST", "later")
    seen = list(map_in_order(os.getenv, ["PUPUJEPA_TEST", "OMP_NUM_THREADS"], workers=2, preload="os"))
    assert seen == ["later", "1"]


def report(folder: Path | None) -> tuple[int, str]:
    """Returns the worker's process id and its folder of temporary files; after a minute if it shall leave a sign."""
    if folder is not None:
        with tempfile.NamedTemporaryFile():
            (folder / str(os.getpid())).touch()
            time.sleep(60)
    return os.getpid(), tempfile.gettempdir()


def test_work_that_nobody_waits_for_is_given_up(tmp_path: Path):
    """After an error of the caller, workers leave long calls, also queued ones, and no temporary file stays."""
    items = [(0, None), *((i, tmp_path) for i in range(1, 9))]
    results = map_unordered(report, items, workers=2, preload=__name__)
    _, (worker, temporary) = next(results)
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.01)
    assert len(list(Path(temporary).iterdir())) == 2
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)
    assert time.monotonic() - began < 30  # one call alone would last for sixty
    wait_until_gone([worker])
    assert not Path(temporary).exists()
    assert temporary != tempfile.gettempdir()


def signal_myself(number: int) -> int:
    """Sends the worker a signal; returns it if it survives."""
    os.kill(os.getpid(), number)
    return number


def test_a_terminal_s_signals_do_not_reach_workers():
    """Ctrl-C and a hang-up go to a whole group of processes; workers leave the decision to their caller."""
    numbers = [signal.SIGINT, signal.SIGHUP]
    assert list(map_in_order(signal_myself, numbers, workers=2, preload=__name__)) == numbers

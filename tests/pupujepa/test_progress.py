"""Progress in a log file: the share that is done, and the time that is left."""

import io

import pytest

from pupujepa.progress import Progress


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock():
    """A clock that the test sets; call it with seconds to move it."""

    class Clock:
        now_s = 0.0

        def __call__(self) -> float:
            return self.now_s

    return Clock()


def test_the_rest_is_estimated_from_the_rate(clock, capsys):
    """Ten of forty things in 20 s leave thirty for 60 s; the last line tells the whole time."""
    with Progress(40, title="features", unit="tracks", clock=clock) as progress:
        clock.now_s = 20.0
        progress.advance(10, note="3 h per minute")
        clock.now_s = 80.0
        progress.advance(30)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "features: 10/40 tracks, about 1 min 0 s left, 3 h per minute"
    assert lines[-1] == "features: 40/40 tracks in 1 min 20 s"


def test_what_was_done_before_tells_nothing_about_the_rate(clock, capsys):
    """After an earlier run did 900 of 1000, ten more in 20 s leave ninety for 180 s, not for two."""
    with Progress(1000, title="features", unit="tracks", clock=clock) as progress:
        progress.skip(900)
        clock.now_s = 20.0
        progress.advance(10)
    assert capsys.readouterr().err.splitlines()[0] == "features: 910/1000 tracks, about 3 min 0 s left"


def test_all_done_before_is_no_division_by_zero(clock, capsys):
    """A run that finds everything done says so."""
    with Progress(7, title="features", unit="tracks", clock=clock) as progress:
        progress.skip(7)
    assert capsys.readouterr().err == "features: 7/7 tracks in 0 s\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (200_000, "55 h 33 min"),
    ],
)
def test_long_times_are_readable(seconds, text, clock, capsys, monkeypatch):
    """The remaining time is in seconds, minutes or hours."""
    monkeypatch.setattr("pupujepa.progress._EVERY_S", 0.0)
    with Progress(2, title="x", unit="y", clock=clock) as progress:
        clock.now_s = seconds
        progress.advance()
    assert f"about {text} left" in capsys.readouterr().err.splitlines()[0]


def test_a_terminal_shows_a_bar_with_what_was_done_before(monkeypatch):
    """The bar begins where the earlier run ended."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress(10, title="features", unit="tracks") as progress:
        progress.skip(4)
        progress.advance(6, note="fast")
    assert "4/10" in terminal.getvalue()
    assert "10/10" in terminal.getvalue()

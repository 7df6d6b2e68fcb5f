"""docs/scale.md: its arithmetic is computed again, and a cell of its simulation is run again."""

import re
from dataclasses import replace

import pytest

from benchmarks.simulate import command as simulate_stream
from benchmarks.simulate.command import DEPTH_SETTING, DEPTHS_GIB, LATENCIES_S, QUICK_SETTING, SCENARIOS
from benchmarks.simulate.setting import Setting
from docs.scale import ARITHMETIC, PAGE, PICTURE, SIMULATED, write

TEXT = PAGE.read_text()


def on_the_page(name: str) -> str:
    """Returns a table of the page."""
    begin, end = f"<!-- {name}: python docs/scale.py --write -->\n", f"\n<!-- /{name} -->"
    return TEXT.partition(begin)[2].partition(end)[0]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_is_current(name):
    """Tables are equal to the character; `python docs/scale.py --write --without-simulation` renews them."""
    assert on_the_page(name) == ARITHMETIC[name]()


def test_page_and_code_have_the_same_tables():
    """Neither has a table that the other lacks."""
    assert sorted(re.findall(r"<!-- (\w+): ", TEXT)) == sorted([*ARITHMETIC, *SIMULATED])


def test_the_simulated_tables_are_those_of_the_benchmark():
    """Rows and columns are those of the benchmark; cells are shares, and waiting never grows with the depth."""
    depth = [cells(line) for line in on_the_page("depth").splitlines()]
    assert depth[0][1:] == [f"{gib:g} GiB" for gib in DEPTHS_GIB]
    assert [row[0] for row in depth[2:]] == [f"{latency_s:g} s" for latency_s in LATENCIES_S]
    for row in depth[2:]:
        shares = [float(cell.removesuffix(" %")) for cell in row[1:]]
        assert shares == sorted(shares, reverse=True)
        assert 0 <= shares[-1] <= shares[0] <= 100
    scenarios = [cells(line) for line in on_the_page("scenarios").splitlines()]
    assert [row[0] for row in scenarios[2:]] == [scenario.name for scenario in SCENARIOS]


def test_a_cell_of_the_depth_table_is_current(monkeypatch):
    """Half a window of prefetching at the lowest latency gives the same share again, within a point and a half."""
    monkeypatch.setattr(simulate_stream, "DEPTHS_GIB", DEPTHS_GIB[1:2])
    monkeypatch.setattr(simulate_stream, "LATENCIES_S", LATENCIES_S[:1])
    [[share]] = simulate_stream.depth_shares(DEPTH_SETTING)
    shown = cells(on_the_page("depth").splitlines()[2])[2]
    assert float(shown.removesuffix(" %")) == pytest.approx(100 * share, abs=1.5)


def test_a_window_ahead_is_enough_and_half_of_one_is_not(monkeypatch):
    """Training waits with half a window of prefetching, and not with a whole one, on one node."""
    window_gib = QUICK_SETTING.window_bytes_of_rank / 2**30
    monkeypatch.setattr(simulate_stream, "DEPTHS_GIB", (0.5 * window_gib, window_gib))
    monkeypatch.setattr(simulate_stream, "LATENCIES_S", (0.1,))
    [[half, whole]] = simulate_stream.depth_shares(QUICK_SETTING)
    assert whole == 0 < half


def test_lanes_are_enough_for_workers_and_divide_the_batch():
    """The stream accepts the settings of the page."""
    for gpus in (1, 8, 64, 512):
        setting = Setting("base", gpus=gpus, hours=100_000)
        assert setting.num_lanes >= 2 * gpus
        assert setting.global_batch % setting.num_lanes == setting.num_lanes % gpus == 0
        assert setting.run(windows=0.1).steps >= 20
    assert replace(setting, dtype="float16").bytes_per_s == pytest.approx(2 * setting.bytes_per_s, rel=0.01)


def test_a_missing_mark_is_an_error():
    """A table that has no marks in the page is not dropped silently."""
    with pytest.raises(SystemExit, match=r"the page lacks <!-- lost: python docs/.* restore both lines"):
        write({"lost": "| |"})


def test_the_picture_is_on_the_page():
    """`python docs/scale.py --write` draws the picture that the page shows."""
    assert PICTURE.is_file()
    assert PICTURE.relative_to(PAGE.parent).as_posix() in TEXT

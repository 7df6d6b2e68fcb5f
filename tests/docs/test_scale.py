"""docs/scale.md: its arithmetic is worked out again, a cell of its simulation run again, and what it names exists."""

import re
from dataclasses import replace
from importlib import import_module

import pytest

from benchmarks.__main__ import module_of
from benchmarks.simulate import command as simulate_stream
from benchmarks.simulate.command import DEPTH_SETTING, DEPTHS_GIB, LATENCIES_S, QUICK_SETTING, SCENARIOS
from benchmarks.simulate.setting import Setting
from docs.scale import ARITHMETIC, PAGE, PICTURE, SIMULATED, write

TEXT = PAGE.read_text()
ROOT = PAGE.parents[1]


def on_the_page(name: str) -> str:
    """Returns a table as the page has it."""
    begin, end = f"<!-- {name}: python docs/scale.py --write -->\n", f"\n<!-- /{name} -->"
    return TEXT.partition(begin)[2].partition(end)[0]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_is_what_is_worked_out(name):
    """To the character; after a change of the code's counts run `python docs/scale.py --write --without-simulation`."""
    assert on_the_page(name) == ARITHMETIC[name]()


def test_the_page_has_a_part_for_every_table():
    """No table is left over, on either side."""
    assert sorted(re.findall(r"<!-- (\w+): ", TEXT)) == sorted([*ARITHMETIC, *SIMULATED])


def test_the_simulated_tables_are_those_of_the_benchmark():
    """The rows and columns are the benchmark's own; every cell is a share, and waiting never grows with the depth."""
    depth = [cells(line) for line in on_the_page("depth").splitlines()]
    assert depth[0][1:] == [f"{gib:g} GiB" for gib in DEPTHS_GIB]
    assert [row[0] for row in depth[2:]] == [f"{latency_s:g} s" for latency_s in LATENCIES_S]
    for row in depth[2:]:
        shares = [float(cell.removesuffix(" %")) for cell in row[1:]]
        assert shares == sorted(shares, reverse=True)
        assert 0 <= shares[-1] <= shares[0] <= 100
    scenarios = [cells(line) for line in on_the_page("scenarios").splitlines()]
    assert [row[0] for row in scenarios[2:]] == [scenario.name for scenario in SCENARIOS]


def test_a_cell_of_the_depth_table_is_what_is_simulated(monkeypatch):
    """Half a window ahead at the least latency: run again, within a point (machines differ in rounding)."""
    monkeypatch.setattr(simulate_stream, "DEPTHS_GIB", DEPTHS_GIB[1:2])
    monkeypatch.setattr(simulate_stream, "LATENCIES_S", LATENCIES_S[:1])
    [[share]] = simulate_stream.depth_shares(DEPTH_SETTING)
    shown = cells(on_the_page("depth").splitlines()[2])[2]
    assert float(shown.removesuffix(" %")) == pytest.approx(100 * share, abs=1.5)


def test_a_window_ahead_is_enough_and_half_of_one_is_not(monkeypatch):
    """What the page says about the knee, on one node."""
    window_gib = QUICK_SETTING.window_bytes_of_rank / 2**30
    monkeypatch.setattr(simulate_stream, "DEPTHS_GIB", (0.5 * window_gib, window_gib))
    monkeypatch.setattr(simulate_stream, "LATENCIES_S", (0.1,))
    [[half, whole]] = simulate_stream.depth_shares(QUICK_SETTING)
    assert whole == 0 < half


def test_lanes_are_enough_for_workers_and_divide_the_batch():
    """The settings of the page are runs that the stream accepts."""
    for gpus in (1, 8, 64, 512):
        setting = Setting("base", gpus=gpus, hours=100_000)
        assert setting.num_lanes >= 2 * gpus
        assert setting.global_batch % setting.num_lanes == setting.num_lanes % gpus == 0
        assert setting.run(windows=0.1).steps >= 20
    assert replace(setting, dtype="float16").bytes_per_s == pytest.approx(2 * setting.bytes_per_s, rel=0.01)


def test_a_lost_mark_is_an_error():
    """A table without its place in the page is not dropped."""
    with pytest.raises(SystemExit, match="has no part between <!-- lost"):
        write({"lost": "| |"})


def test_what_the_page_names_exists():
    """Its picture, its tests, and its benchmarks."""
    assert PICTURE.is_file()
    assert PICTURE.relative_to(PAGE.parent).as_posix() in TEXT
    for path in re.findall(r"`((?:tests|docs|benchmarks)/[\w/]+\.(?:py|md))", TEXT):
        assert (ROOT / path).is_file()
    for name in re.findall(r"python -m benchmarks\s+(\w+)", TEXT):
        assert import_module(module_of(name)).main

"""`python -m benchmarks NAME ...`: each benchmark gets its own options."""

import re
import sys
from pathlib import Path

from benchmarks import arguments_of, cache
from benchmarks.__main__ import main, module_of
from benchmarks.simulate import command as simulate_command

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_options_after_a_name_belong_to_it(monkeypatch):
    """Words before the name are not options of it; a benchmark that was not named has none."""
    monkeypatch.setattr(sys, "argv", ["benchmarks", "masks", "seek", "--samples", "7"])
    assert arguments_of("seek") == ["--samples", "7"]
    assert arguments_of("step") == []


def test_every_benchmark_reads_its_own_name():
    """A benchmark whose module was renamed would otherwise ignore its options silently."""
    found = {path: re.findall(r'arguments_of\("(\w+)"\)', path.read_text()) for path in FOLDER.rglob("*.py")}
    modules = {module_of(name): path for path, names in found.items() for name in names}
    assert len(modules) > 10
    for module, path in modules.items():
        assert module == ".".join(path.relative_to(FOLDER.parent).with_suffix("").parts)


def test_quick_simulates_the_small_setting_alone(monkeypatch, capsys):
    """`python -m benchmarks simulate --quick` makes one table, on 8 GPUs."""
    monkeypatch.setattr(sys, "argv", ["benchmarks", "simulate", "--quick"])
    monkeypatch.setattr(simulate_command, "depth_table", lambda setting: (("GPUs",), [(f"{setting.gpus}",)]))
    main(["simulate", "--quick"])
    assert capsys.readouterr().out.splitlines()[-1] == "| 8 |"


def test_the_cache_benchmark_lists_no_shards(tmp_path):
    """A thousand fetches through room for ten, beside the lock files of as many shards of old."""
    cache.leave_locks(tmp_path / "set" / "locks", 1000)
    (row,) = cache.measure(tmp_path, 1000, room=10)
    assert re.fullmatch(r"\| 1,000 \| 10 \| \d+\.\d\d \(\d+\.\d\d\) \| 0\.\d \| 2,021 \|", row)

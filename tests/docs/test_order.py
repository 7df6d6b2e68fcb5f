"""docs/order.md: both pictures show the order that the code makes."""

from pathlib import Path

from data.order.epoch import EpochOrder
from data.order.layout import Layout, lanes_of_rank
from data.order.mix import Mix, MixOrder

TEXT = (Path(__file__).parents[2] / "docs" / "order.md").read_text()


def picture_of_an_epoch() -> str:
    """Draws six shards of four samples in two lanes, in windows of two shards; a sample is its shard and number."""
    layout = Layout("example", (4,) * 6, seed=0, lanes=2, global_batch=4, window_shards=2)
    order = EpochOrder(layout, 0)
    lines = []
    for lane in range(2):
        items = order.lane_items(lane, 0, layout.items_per_lane_epoch)
        names = [f"{'ABCDEF'[s]}{i}" for s, i in zip(items.shard.tolist(), items.sample_of_shard.tolist())]
        steps = [" ".join(names[first : first + 2]) for first in range(0, len(names), 2)]
        lines.append(f"lane {lane} | " + " | ".join(steps) + " |")
    return "\n".join(lines)


def picture_of_a_mix() -> str:
    """Draws the corpus of each item for weights of 3 and 1, four lanes, two items per lane and step."""
    layouts = [Layout(name, (40,), seed=0, lanes=4, global_batch=4, window_shards=1) for name in "ab"]
    order = MixOrder(Mix(tuple(layouts), (3, 1), 8))
    lines = []
    for lane in lanes_of_rank(4, 0, 1):
        steps = [" ".join("aB"[draw.corpus] for draw in order.step_draws(step, [lane])) for step in range(6)]
        lines.append(f"lane {lane} | " + " | ".join(steps) + " |")
    return "\n".join(lines)


def test_the_picture_of_an_epoch_is_the_order():
    """The page shows the lanes, windows and steps of the code."""
    assert picture_of_an_epoch() in TEXT


def test_the_picture_of_a_mix_is_the_order():
    """The page shows the corpora of the code, and each step has exactly two of eight items from `B`."""
    assert picture_of_a_mix() in TEXT
    steps = zip(*(line.split("|")[1:-1] for line in picture_of_a_mix().splitlines()))
    assert {sum(cell.count("B") for cell in step) for step in steps} == {2}

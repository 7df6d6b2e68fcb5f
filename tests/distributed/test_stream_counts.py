"""What rows of the log hold of the stream's counters."""

import torch
import torch.distributed as dist

from data.reading.fetching import COUNTED
from distributed.run.speed import StreamCounts


class Stream:
    """A stream that counted `amount` of everything."""

    amount = 0.0

    def counters(self) -> dict[str, float]:
        return {**dict.fromkeys(COUNTED, self.amount), "wait_s": self.amount / 2, "left_out": 7}


def test_rows_add_up_to_what_was_counted(monkeypatch):
    """Each row holds what came since the row before, over all ranks; here there are two, which count alike."""
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.mul_(2))
    stream = Stream()
    counts = StreamCounts(stream, device=torch.device("cpu"))
    rows = []
    for stream.amount in (3.0, 3.0, 10.0):
        rows.append(counts.since_last())
    assert [row["data/retries"] for row in rows] == [6.0, 0.0, 14.0]
    assert sum(row["data/wait_s"] for row in rows) == 10.0
    assert set(rows[0]) == {f"data/{name}" for name in (*COUNTED, "wait_s")}

from benchmarks.feature_store import report


def test_the_simulation_reads_back_what_it_wrote():
    """A small simulation runs every step; each has its seconds and its memory."""
    lines = report(700)
    assert [line.split("|")[1].split(":")[0].strip() for line in lines[4:]] == [
        "plan",
        "key",
        "22 parts of 32 slices written",
        "resumed",
        "gathered by (uid, slice)",
        "100 batches of 128 slices drawn at random, read",
    ]

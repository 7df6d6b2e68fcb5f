"""Damaged audio through every reader, a sample of the benchmark: a sentence or one length, in time and memory."""

from collections import Counter

from benchmarks.audio_fuzz import KINDS, fates


def test_damaged_files_are_read_alike_or_refused():
    """Of 80 files of ten kinds none gives a traceback, lost music or readers that disagree, and memory stays."""
    found = list(fates(80, seed=1))
    assert [fate for fate in found if fate.outcome == "wrong"] == []
    counts = Counter(fate.outcome for fate in found)
    assert sum(counts.values()) == 80 + 1  # and the memory
    assert Counter(fate.kind for fate in found if fate.kind in KINDS) == dict.fromkeys(KINDS, 8)
    assert min(counts["whole"], counts["other length"], counts["refused"]) > 5

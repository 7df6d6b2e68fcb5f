"""Benchmarks: side by side with a peer, in turn, with the ratio reported. Results are in RESULTS.md."""

import sys


def arguments_of(benchmark: str) -> list[str]:
    """Returns the words after a benchmark's name on the command line; [] if it was not named."""
    return sys.argv[sys.argv.index(benchmark) + 1 :] if benchmark in sys.argv else []

"""Benchmarks: side by side with a peer, alternating, the ratio reported. Results live in RESULTS.md."""

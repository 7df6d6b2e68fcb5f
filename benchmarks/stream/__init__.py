"""Benchmarks of the stream beside its peers."""

"""Benchmarks of the training engine."""

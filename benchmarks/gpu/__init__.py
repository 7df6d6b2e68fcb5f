"""Benchmark of one GPU: tests, step times and data wait in at most nine minutes (`make gpu`)."""

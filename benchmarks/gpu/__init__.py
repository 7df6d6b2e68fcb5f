"""The door of a GPU machine: tests, step times and data wait of one GPU, in at most nine minutes (`make gpu`)."""

from benchmarks.gpu.command import main as main

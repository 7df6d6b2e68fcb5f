"""One start of a run: its checks, its first checkpoint and its records."""

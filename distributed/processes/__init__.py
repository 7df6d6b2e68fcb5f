"""Ranks and processes: topology, collectives, signals, watchdog."""

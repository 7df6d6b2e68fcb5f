"""Is the run learning? Diagnostics, guard, linear probes."""

"""One trial: its processes and its record."""

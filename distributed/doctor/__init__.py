"""Doctor: what a machine has and what would fail on it, before anything is started."""

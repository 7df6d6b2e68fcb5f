"""The doctor: checks of a machine before a run starts on it."""

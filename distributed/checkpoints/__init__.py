"""Checkpoints: what they hold, where they are, how they are read on other ranks."""

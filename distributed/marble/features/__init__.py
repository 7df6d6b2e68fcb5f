"""Frozen features: computed once, stored, read."""

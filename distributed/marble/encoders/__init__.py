"""Frozen encoders: ours, baselines and adapters to others."""

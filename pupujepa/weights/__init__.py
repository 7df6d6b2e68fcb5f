"""Weights on disk and on the Hub."""

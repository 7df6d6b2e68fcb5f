"""Checked samples from disk or object store: reader, node cache, prefetch."""

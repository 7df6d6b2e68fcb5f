"""Samples, checked, from wherever they are: reader, node cache, prefetch."""

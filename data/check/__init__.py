"""Checks of a shard set: verification, statistics, a page of samples."""

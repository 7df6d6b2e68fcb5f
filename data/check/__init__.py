"""Checks of a shard set: verification, statistics, a listening page."""

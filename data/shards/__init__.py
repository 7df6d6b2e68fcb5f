"""The format of a shard and of a shard set."""

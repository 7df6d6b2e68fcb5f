"""Bytes, shards and integers: corpora to shards, verification, and the stream. Knows no process group."""

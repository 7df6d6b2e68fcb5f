"""The data room: building and checking shards, and the stream; it knows no process group."""

"""From audio to shards."""

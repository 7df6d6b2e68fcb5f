"""From audio files to embeddings on disk."""

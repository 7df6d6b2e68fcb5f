"""The stream of batches that a rank trains on."""

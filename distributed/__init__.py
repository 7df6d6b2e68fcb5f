"""Training on many ranks, checkpoints, the MARBLE evaluator and the report."""

"""Processes: topology, the DeepSpeed engine, the trainer, checkpoints, telemetry and the MARBLE evaluator."""

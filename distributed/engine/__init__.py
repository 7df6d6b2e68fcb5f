"""The DeepSpeed engine and the teacher beside it."""

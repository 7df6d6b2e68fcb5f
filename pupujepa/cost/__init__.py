"""Parameters, operations and memory of a model, without running it."""

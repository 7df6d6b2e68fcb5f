"""Memory, operations and hours of an experiment before it starts."""

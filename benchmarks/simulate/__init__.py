"""A simulation of the stream at scale."""

"""The order of samples, in integers; imports nothing else of data/."""

"""The order of samples, in integers only; imports nothing else of data/."""

"""The run directory and what is logged into it."""

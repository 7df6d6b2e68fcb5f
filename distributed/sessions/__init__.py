"""One start of a run: may it continue, and from where."""

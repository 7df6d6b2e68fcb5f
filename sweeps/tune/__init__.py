"""Ray Tune: driver, schedulers, search."""

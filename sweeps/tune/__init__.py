"""Ray Tune: driver, nodes, trials, search."""

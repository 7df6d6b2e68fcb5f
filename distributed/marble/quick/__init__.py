"""Quick checks of features without training probes."""

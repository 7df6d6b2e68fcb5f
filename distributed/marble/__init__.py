"""MARBLE linear probing over any number of ranks: features once, probes together, intervals."""

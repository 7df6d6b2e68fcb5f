"""Banks of linear probes, trained together."""

"""From finished trials to tables and plots."""

"""Ray Tune: ablation axes, trials and their report. Nobody imports this room."""

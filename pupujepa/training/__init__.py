"""The training objective: masks, losses, schedules, the moving average, diagnostics."""

"""Real scores played by sampled instruments, with exact labels: a corpus without a download."""

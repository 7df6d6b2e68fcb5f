"""From audio files to waveforms and log-mel spectrograms."""

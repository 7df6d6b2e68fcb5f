"""PupuJEPA: self-supervised music representations from 2-D log-mel spectrograms (arXiv 2606.25713)."""

__version__ = "0.1.0"

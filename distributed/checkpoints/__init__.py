"""Checkpoints: content, storage, fencing and loading on other ranks."""

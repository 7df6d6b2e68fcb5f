"""Encoders of other people, one small file each; `NAME:ARGUMENT` on the command line calls NAME.py's `open_encoder`."""

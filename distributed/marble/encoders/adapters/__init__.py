"""Plugins for encoders of other projects, one file each.

`NAME:ARGUMENT` on the command line calls `open_encoder(ARGUMENT, how)` of NAME.py. Every plugin has a function of this
name, and so has a user's own file.
"""

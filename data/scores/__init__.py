"""Real scores played by sampled instruments, with exact labels: the corpus that needs no download.

catalogue.py   which scores there are, and a balanced, seeded choice of them
parsing.py     a score, read by music21, as a `Piece`
pieces.py      `Piece`: notes, beats and keys in ticks
metre.py       bars and beats from measures, pickups and split measures included
keys.py        key names, transposition, and the key that a set of notes suggests
grouping.py    near-duplicates and sections of one work as groups, and their splits
programs.py    the General MIDI programs that sound at the pitch they are asked for
takes.py       how a piece is played: window, tempo, key, instruments
labels.py      what is true of a take
rendering.py   a take as audio
cli.py         `python -m data scores`
"""

"""Real scores played by sampled instruments, with exact labels: a corpus without a download.

catalogue.py   the scores, and a balanced, seeded choice of them
parsing.py     a score, read by music21, as a `Piece`
pieces.py      `Piece`: notes, beats and keys in ticks
metre.py       bars and beats from measures, pickups and split measures included
keys.py        key names, transposition, and the key of a set of notes
grouping.py    near-duplicates and sections of one work as groups, and their splits
programs.py    the General MIDI programs that sound at the right pitch
takes.py       performances of a piece: window, tempo, key, instruments
labels.py      the labels of a take
rendering.py   a take as audio
cli.py         `python -m data scores`
"""

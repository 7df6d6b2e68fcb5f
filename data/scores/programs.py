"""General MIDI programs that sound at the right pitch, measured one by one.

Measured with TimGM6mb: f0 of eight pitches from E2 to C6 for each program by harmonic summation, and silence of every
semitone from 26 to 98. A program stays if all are within 25 cents of the note or of its octave (organs and bells are
voiced so). A mistuned patch would make a wrong key label.
"""

import numpy as np

FAMILIES = (
    "piano",
    "chromatic percussion",
    "organ",
    "guitar",
    "bass",
    "strings",
    "ensemble",
    "brass",
    "reed",
    "pipe",
    "synth lead",
    "synth pad",
    "synth effects",
    "ethnic",
    "percussive",
    "sound effects",
)
PROGRAMS_PER_FAMILY = 8

LEFT_OUT = {
    9: "glockenspiel: its partials outweigh the fundamental below C5",
    21: "accordion: 54 to 68 cents flat above C5",
    22: "harmonica: 36 cents flat at G4 and C5",
    23: "bandoneon: 56 to 68 cents flat above C5",
    31: "guitar harmonics: a third flat",
    47: "timpani: inharmonic",
    52: "choir aahs: vibrato of more than 30 cents in the bass",
    54: "synth vox: silent above A6",
    55: "orchestra hit: a chord",
    65: "alto sax: silent at E4",
    67: "baritone sax: silent above B5",
    68: "oboe: silent below B1",
    76: "bottle: 32 cents flat above G5",
    77: "shakuhachi: 260 cents sharp below C4",
    78: "whistle: a sixth flat, silent above G5",
    86: "fifth saw wave: sounds in fifths",
    97: "soundtrack: sounds in fifths",
    98: "crystal: inharmonic at E3",
    101: "goblin: noise with a wandering pitch",
    102: "echo drops: repeats notes out of time",
    112: "tinkle bell: a fifth of a tone between keys",
    113: "agogo: 16 cents sharp and gone in a moment",
    **dict.fromkeys(range(115, 120), "percussion without a pitch"),
    **dict.fromkeys(range(120, 128), "sound effect"),
}

# Level in dB of half a second at velocity 102, mean over pitches 45 to 79. Patches differ by 20 dB: beside a loud one,
# a quiet one would be labelled but not heard.
# fmt: off
LEVEL_DB = {
    0: -29, 1: -29, 2: -29, 3: -30, 4: -23, 5: -25, 6: -29, 7: -27, 8: -28, 10: -22, 11: -16, 12: -24, 13: -26, 14: -14,
    15: -29, 16: -21, 17: -19, 18: -23, 19: -25, 20: -22, 24: -19, 25: -23, 26: -16, 27: -25, 28: -19, 29: -24, 30: -22,
    32: -18, 33: -14, 34: -19, 35: -16, 36: -15, 37: -22, 38: -17, 39: -14, 40: -18, 41: -18, 42: -17, 43: -18,
    44: -17, 45: -22, 46: -11, 48: -24, 49: -25, 50: -31, 51: -20, 53: -23, 56: -18, 57: -21, 58: -17, 59: -24, 60: -13,
    61: -25, 62: -21, 63: -16, 64: -16, 66: -20, 69: -20, 70: -21, 71: -20, 72: -20, 73: -15, 74: -19, 75: -22, 79: -11,
    80: -26, 81: -24, 82: -17, 83: -17, 84: -25, 85: -14, 87: -15, 88: -15, 89: -21, 90: -23, 91: -19, 92: -18, 93: -25,
    94: -19, 95: -23, 96: -16, 99: -18, 100: -14, 103: -15, 104: -26, 105: -18, 106: -23, 107: -18, 108: -17, 109: -22,
    110: -19, 111: -16, 114: -20,
}
# fmt: on
QUIETEST_DB = min(LEVEL_DB.values())
PLAYABLE = tuple(program for program in range(128) if program not in LEFT_OUT)


def family(program: int) -> str:
    """Returns the General MIDI family of a program, 0 to 127."""
    return FAMILIES[program // PROGRAMS_PER_FAMILY]


def draw_program(rng: np.random.Generator) -> int:
    """Returns a random program: a uniform family, then a uniform playable program of it."""
    families = sorted({program // PROGRAMS_PER_FAMILY for program in PLAYABLE})
    chosen = families[rng.integers(len(families))]
    programs = [program for program in PLAYABLE if program // PROGRAMS_PER_FAMILY == chosen]
    return programs[rng.integers(len(programs))]


def channel_volume(program: int) -> int:
    """Returns the MIDI volume (0 to 127) that brings a program to the level of the quietest."""
    # the synthesiser's amplitude is the cube of volume / 127
    amplitude = 10 ** ((QUIETEST_DB - LEVEL_DB[program]) / 20)
    return round(127 * amplitude ** (1 / 3))

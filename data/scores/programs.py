"""General MIDI programs that sound at the right pitch, measured one by one.

Measured with TimGM6mb: f0 of eight pitches from E2 to C6 for each program by harmonic summation, and silence of every
semitone from 26 to 98. A program stays if all are within 25 cents of the note or of its octave (organs and bells are
voiced so). A mistuned patch would make a wrong key label.
"""

import numpy as np

FAMILIES = (
    *("piano", "chromatic percussion", "organ", "guitar", "bass", "strings", "ensemble", "brass"),
    *("reed", "pipe", "synth lead", "synth pad", "synth effects", "ethnic", "percussive", "sound effects"),
)
PROGRAMS_PER_FAMILY = 8

LEFT_OUT = frozenset(
    (
        *(21, 22, 23, 76),  # 32 to 68 cents flat in the treble: accordion, harmonica, bandoneon, bottle
        *(31, 77, 78),  # guitar harmonics a third flat, shakuhachi two semitones sharp, whistle a sixth flat
        *(54, 65, 67, 68),  # silent at some pitches: synth vox, alto and baritone sax, oboe
        *(9, 47, 98),  # inharmonic, or without a fundamental: glockenspiel, timpani, crystal
        *(55, 86, 97),  # sound as chords: orchestra hit, fifth saw wave, soundtrack
        *(52, 101, 102),  # vibrato of 30 cents, a wandering pitch, repeats out of time: choir aahs, goblin, echo drops
        *(112, 113),  # a fifth of a tone between keys, and gone in a moment: tinkle bell, agogo
        *range(115, 128),  # percussion and sound effects, without a pitch
    )
)

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

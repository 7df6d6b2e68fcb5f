"""Numbers as text: fixed digits, a typographic minus, grouped thousands, durations in words.

All numbers of pages and tables use these functions, so that equal quantities look equal.
"""

import math

EN_DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
THIN_SPACE = "\N{NARROW NO-BREAK SPACE}"
_LATEX = str.maketrans(
    {c: rf"\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {c: f"${c}$" for c in "<>|"}
    | {"²": "$^2$", "†": r"$^\dagger$", "→": r"$\to$", MINUS: "$-$", EN_DASH: "--", THIN_SPACE: r"\,"}
)


def fixed(value: float, digits: int = 3, *, sign: bool = False) -> str:
    """Returns `value` with `digits` decimals and a typographic minus; `sign` also writes the plus.

    A value that rounds to zero has no sign, because its digits show no direction.
    """
    if not math.isfinite(value):
        return "not finite"
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:  # after rounding
        return text
    if value < 0:
        return MINUS + text
    return "+" + text if sign else text


def latex(text: str) -> str:
    """Returns the text escaped for LaTeX."""
    return text.translate(_LATEX)


def interval(lo: float, hi: float, digits: int = 3) -> str:
    """Returns "[lo, hi]"."""
    return f"[{fixed(lo, digits)}, {fixed(hi, digits)}]"


def significant(value: float, digits: int = 3) -> str:
    """Returns `value` with `digits` significant digits; grouped if large, a power of ten if tiny."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -3:
        return scientific(value, digits - 1)
    if magnitude >= digits - 1:
        return grouped(round(value))
    return fixed(value, digits - 1 - magnitude)


def scientific(value: float, digits: int = 1) -> str:
    """Returns "2.0e−3", without zeros before the exponent."""
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    power = int(exponent)
    return f"{mantissa}e{power}".replace("-", MINUS) if power else mantissa.replace("-", MINUS)


def grouped(count: int) -> str:
    """Returns an integer with thin spaces between thousands: 7 117 440."""
    return f"{count:,}".replace(",", THIN_SPACE).replace("-", MINUS)


def compact(count: float) -> str:
    """Returns 950, 7.1 M, 403 M, 1.5 G."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= size:
            scaled = count / size
            return f"{fixed(scaled, 0 if abs(scaled) >= 99.5 else 1)}{THIN_SPACE}{unit}"
    return significant(count)


def percent(share: float, digits: int = 1) -> str:
    """Returns a share in [0, 1] as a percentage."""
    return f"{fixed(100 * share, digits)}{THIN_SPACE}%"


def duration(seconds: float) -> str:
    """Returns a duration in its two largest units: 0.8 s, 42 s, 4 min 12 s, 3 h 05 min."""
    if seconds < 10:
        return f"{fixed(seconds, 1)} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{grouped(minutes // 60)} h {minutes % 60:02d} min"


def audio_length(hours: float) -> str:
    """Returns hours of audio, in minutes below one hour."""
    return f"{significant(hours, 3)} h" if hours >= 1 else f"{significant(hours * 60, 2)} min"


def listed(words: list[str]) -> str:
    """Returns "a", "a and b" or "a, b and c"."""
    if len(words) < 2:
        return "".join(words)
    return ", ".join(words[:-1]) + " and " + words[-1]


def count_of(count: int, noun: str) -> str:
    """Returns "1 rank" or "2 ranks"."""
    return f"{grouped(count)} {noun if count == 1 else noun + 's'}"

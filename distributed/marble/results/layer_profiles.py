"""Charts of the score of every layer, and names and colours of encoders in pages."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from distributed.drawing.charts import Chart, Series, line_chart
from distributed.drawing.wording import fixed
from distributed.marble.tasks.marble_tasks import task_title
from distributed.marble.tasks.tasks import READOUT_TITLES

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Baseline:
    """Label, colour and explanation of a baseline in pages."""

    label: str
    tone: str
    explanation: str


BASELINES = {
    "random_init": Baseline("random init", "tone-5", "the same network before training"),
    "log_mel": Baseline("log-mel", "tone-2", "mean and deviation of each mel band"),
    "chroma": Baseline("chroma", "tone-3", "energy per pitch class"),
}
_OTHER_TONES = ("tone-1", "tone-4", "tone-6", "tone-7", "tone-8")


def layer_profiles(rows: Sequence[Row]) -> tuple[Chart, ...]:
    """Draws the validation score of every layer, for each task and encoder that recorded them.

    The best layer is a dot; a readout of all layers is a dashed line, because it has no layer number.
    """
    charts = []
    others = [name for name in dict.fromkeys(r["encoder"] for r in rows) if name not in BASELINES]
    tones = {name: baseline.tone for name, baseline in BASELINES.items()} | dict(zip(others, cycle(_OTHER_TONES)))
    for task in dict.fromkeys(r["task"] for r in rows):
        own = [row for row in rows if row["task"] == task]
        profiles = [profile for row in own if (profile := _profile(row, tones[row["encoder"]]))]
        if profiles:
            told = ", ".join(words for _, _, words in profiles)
            sentence = f"Validation score of a probe on each layer, the best one marked: {told}."
            lines, marks = [line for line, _, _ in profiles], [m for _, own, _ in profiles for m in own]
            charts.append(line_chart(task_title(task), sentence, series=lines, marks=marks, x_label="layer"))
    return tuple(charts)


def ordered_encoders(rows: Sequence[Row]) -> list[str]:
    """Returns trained encoders, then the baselines in their fixed order."""
    names = list(dict.fromkeys(r["encoder"] for r in rows))
    return [n for n in names if n not in BASELINES] + [n for n in BASELINES if n in names]


def encoder_label(encoder: str) -> str:
    """Returns a baseline's label, or the last folder of a run directory."""
    if encoder in BASELINES:
        return BASELINES[encoder].label
    return encoder.rstrip("/").rsplit("/", 1)[-1]


def _profile(row: Row, tone: str) -> tuple[Series, list[Series], str] | None:
    """Returns an encoder's line, its marks, and the marks in words; None for a single layer."""
    extra = row.get("extra") or {}
    scores = [float(v) for v in extra.get("layer_profile") or ()]
    places = extra.get("layers") or range(len(scores))
    single = [(float(x), y) for x, y in zip(places, scores, strict=True) if not isinstance(x, str)]
    if len(single) < 2:
        return None
    name = encoder_label(row["encoder"])
    x, y = zip(*single, strict=True)
    # max() would keep a leading NaN, since every comparison with it is false
    best = max(range(len(y)), key=lambda i: -math.inf if math.isnan(y[i]) else y[i])
    together = [(p, v) for p, v in zip(places, scores, strict=True) if isinstance(p, str)]
    dashed = [Series("", (x[0], x[-1]), (v, v), tone, dashed=True) for _, v in together]
    words = [f"{name} layer {x[best]:g}", *(f"{READOUT_TITLES[p]} {fixed(v)} (dashed)" for p, v in together)]
    return Series(name, x, y, tone), [Series("", (x[best],), (y[best],), tone), *dashed], ", ".join(words)

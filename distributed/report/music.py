"""The section on the music: crops as the model reads them, and the masks of each strategy.

Shapes: T frames, F mel bands; a grid is [steps, bands] of patches, time first.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from distributed.drawing.wording import fixed, listed, percent, significant
from distributed.report.pictures import (
    Canvas,
    band_name,
    beat_marks,
    colour,
    emblem,
    image_uri,
    picture,
    playhead,
    symbol,
    veil,
)
from distributed.report.samples import Gallery, SampleCrop
from distributed.report.sound import audio_of, audio_uri
from distributed.run.installed import TorchaudioError
from pupujepa.audio.log_mel import FrontendConfig
from pupujepa.model.model import ModelConfig
from pupujepa.randomness import generator
from pupujepa.training.masks import RANDOM, STRATEGIES, Mask, MaskConfig, draw_mask

_LOG = logging.getLogger(__name__)
SHOWN_CROPS = 3
COVERAGE_DRAWS = 400
LOUDEST_PERCENTILE = 99.7
QUIETEST_PERCENTILE = 4.0

STRATEGY_SENTENCES = {
    "random": "Scattered patches. Their neighbours show most of the answer, so this is the easiest task.",
    "block": "Rectangles, long in time or in frequency. The middle of a block needs knowledge of how music continues.",
    "time_frequency": "Whole spans of time, or one band throughout. Only the music before and after can help.",
}


@dataclass(frozen=True)
class Plate:
    """A picture with its words, and sound as a data URI; "" without sound."""

    title: str
    sentence: str
    svg: str
    chips: tuple[str, ...] = ()
    audio: str = ""


@dataclass(frozen=True)
class Music:
    """Pictures of the section; the page embeds `symbols` once, at its top.

    no_sound: why the crops have no sound; "" if they have.
    """

    symbols: tuple[str, ...]
    canvases: tuple[Canvas, ...]
    crops: tuple[Plate, ...]
    masks: tuple[Plate, ...]
    coverage: tuple[Plate, ...]
    origin: str
    emblem: str
    no_sound: str = ""


def music_section(gallery: Gallery, model: ModelConfig, *, masks: MaskConfig) -> Music:
    """Draws the first crops of a gallery, and masks over the first one."""
    shown = gallery.crops[:SHOWN_CROPS]
    canvases = tuple(_canvas(i, c, gallery) for i, c in enumerate(shown))
    grid = (model.grid_steps, model.grid_bands)
    sounds, no_sound = _sounds(shown, FrontendConfig(**gallery.manifest.frontend))
    return Music(
        symbols=tuple(symbol(v.symbol, spectrogram_uri(c.mel_TF)) for v, c in zip(canvases, shown, strict=True)),
        canvases=canvases,
        crops=tuple(_crop_plate(v, c, sound) for v, c, sound in zip(canvases, shown, sounds, strict=True)),
        masks=tuple(_mask_plate(canvases[0], masks, i, grid=grid) for i in range(len(STRATEGIES))),
        coverage=tuple(_coverage_plate(canvases[0], masks, i, grid=grid) for i in range(len(STRATEGIES))),
        origin=gallery.url,
        emblem=emblem(canvases[0], [veil(~visible_patches(masks, RANDOM, grid=grid))]),
        no_sound=no_sound,
    )


def spectrogram_uri(mel_TF: np.ndarray) -> str:
    """Returns the crop as an image; each crop has its own colour range, so that quiet music is visible."""
    lo, hi = np.percentile(mel_TF, [QUIETEST_PERCENTILE, LOUDEST_PERCENTILE])
    return image_uri(colour(mel_TF, float(lo), float(hi)))


def coverage(config: MaskConfig, strategy: int, *, grid: tuple[int, int], draws: int) -> np.ndarray:
    """Returns the share of `draws` masks in which each patch [steps, bands] is hidden from the student."""
    steps, bands = grid
    visible = np.zeros(steps * bands)
    for draw in range(draws):
        rng = generator(0, "report", "coverage", strategy, draw)
        visible[draw_mask(rng, config, steps=steps, bands=bands, progress=1.0, strategy=strategy).context] += 1
    return (1 - visible / draws).reshape(steps, bands)


def _canvas(number: int, crop: SampleCrop, gallery: Gallery) -> Canvas:
    frontend = gallery.manifest.frontend
    frames, bands = crop.mel_TF.shape
    return Canvas(f"crop-{number}", frames * gallery.frame_s, bands, frontend["fmin_hz"], frontend["fmax_hz"])


def _sounds(crops: Sequence[SampleCrop], frontend: FrontendConfig) -> tuple[tuple[str, ...], str]:
    """Returns the audio of each crop as a data URI, and "" or why there is none.

    Without torchaudio the page has no sound: it follows hours of training, and must not fail for this.
    """
    try:
        return tuple(audio_uri(audio_of(crop.mel_TF, frontend), frontend.sample_rate_hz) for crop in crops), ""
    except TorchaudioError as error:
        _LOG.warning("%s", error)
        return ("",) * len(crops), str(error)


def _crop_plate(canvas: Canvas, crop: SampleCrop, sound: str) -> Plate:
    beats, downbeats = ([t - crop.offset_s for t in crop.labels.get(key) or ()] for key in ("beats", "downbeats"))
    chips = label_chips(crop)
    described = f"Log-mel spectrogram of {fixed(canvas.duration_s, 1)} s from {crop.track}; {listed(list(chips))}"
    svg = picture(canvas, described, layers=[beat_marks(canvas, beats, downbeats), playhead()])
    return Plate(crop.track.replace("_", " "), f"{crop.source}, from {fixed(crop.offset_s, 1)} s", svg, chips, sound)


def label_chips(crop: SampleCrop) -> tuple[str, ...]:
    """Returns the labels that a reader can check in the picture, as short texts."""
    labels = crop.labels
    chips = [str(labels["key"])] if labels.get("key") else []
    if labels.get("tempo_bpm"):
        chips.append(f"{labels['tempo_bpm']:.0f} bpm")
    chips += [str(i) for i in labels.get("instruments") or ()]
    if labels.get("note_density_hz"):
        chips.append(f"{significant(labels['note_density_hz'], 2)} notes/s")
    if labels.get("collection") and labels["collection"] != crop.source:
        chips.append(str(labels["collection"]))
    return tuple(chips)


def _mask_plate(canvas: Canvas, config: MaskConfig, strategy: int, *, grid: tuple[int, int]) -> Plate:
    hidden = ~visible_patches(config, strategy, grid=grid)
    name = strategy_name(strategy)
    described = f"The same crop under a {name} mask: {percent(hidden.mean(), 0)} of {hidden.size} patches are veiled"
    svg = picture(canvas, described, layers=[veil(hidden)])
    chip = f"{_weight(config, strategy)} of crops" + (" after the warm-up" if config.warmup_end > 0 else "")
    return Plate(name, STRATEGY_SENTENCES[STRATEGIES[strategy]], svg, (chip,))


def visible_patches(config: MaskConfig, strategy: int, *, grid: tuple[int, int]) -> np.ndarray:
    """Returns the boolean grid of the context of the mask that `prediction.py` fills first."""
    visible = np.zeros(grid[0] * grid[1], bool)
    visible[shown_mask(config, strategy, grid=grid, crop=0).context] = True
    return visible.reshape(grid)


def shown_mask(config: MaskConfig, strategy: int, *, grid: tuple[int, int], crop: int) -> Mask:
    """Returns the mask of a strategy over crop number `crop`."""
    rng = generator(0, "report", "mask", strategy, crop)
    return draw_mask(rng, config, steps=grid[0], bands=grid[1], progress=1.0, strategy=strategy)


def _coverage_plate(canvas: Canvas, config: MaskConfig, strategy: int, *, grid: tuple[int, int]) -> Plate:
    bands = grid[1]
    shares = coverage(config, strategy, grid=grid, draws=COVERAGE_DRAWS)
    name = strategy_name(strategy)
    of_band, of_step = shares.mean(0), shares.mean(1)
    least, most = int(of_band.argmin()), int(of_band.argmax())
    sentence = (
        f"By band, from {percent(of_band[least], 0)} ({band_name(canvas, least, bands)}) to "
        f"{percent(of_band[most], 0)} ({band_name(canvas, most, bands)}); by time, from {percent(of_step.min(), 0)} to "
        f"{percent(of_step.max(), 0)}; over {COVERAGE_DRAWS} masks."
    )
    return Plate(name, sentence, coverage_strip(shares, f"How often each patch is hidden by {name} masks. {sentence}"))


def coverage_strip(shares: np.ndarray, description: str) -> str:
    """Draws hiding rates as a map from 0 to 1; a dark cell is rarely a target."""
    uri = image_uri(colour(shares, 0.0, 1.0, name="cividis"), lossless=True)
    return (
        f'<svg class="strip" viewBox="0 0 340 48" role="img" aria-label="{escape(description, quote=True)}">'
        f'<image class="cells" href="{uri}" width="340" height="48" preserveAspectRatio="none"/></svg>'
    )


def strategy_name(strategy: int) -> str:
    """Returns the name of a strategy by its number."""
    return STRATEGIES[strategy].replace("_", "-")


def _weight(config: MaskConfig, strategy: int) -> str:
    weights: Sequence[float] = (config.random, config.block, config.time_frequency)
    return percent(weights[strategy] / sum(weights), 0)

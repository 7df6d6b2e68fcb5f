"""The section on the music: crops as the model reads them, their sound, and masks.

A reader hears the information that the model gets. The shards hold no audio, so phases are estimated (Griffin and Lim,
1984): it sounds hollow, but melody, rhythm and instruments are recognisable.

Shapes: T frames, F mel bands, S samples of audio; a grid is [steps, bands] of patches, time first.
"""

import base64
import io
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
import torch

from distributed.drawing.wording import fixed, listed, percent, significant
from distributed.report.pictures import Canvas, beat_marks, crop_image, emblem, picture, playhead, veil
from distributed.report.samples import Gallery, SampleCrop
from distributed.run.installed import TorchaudioError, torchaudio_functional
from pupujepa.audio.log_mel import FrontendConfig, mel_filter_bank
from pupujepa.model.model import ModelConfig
from pupujepa.randomness import generator
from pupujepa.training.masks import RANDOM, STRATEGIES, Mask, MaskConfig, draw_mask

_LOG = logging.getLogger(__name__)
SHOWN_CROPS = 3
ITERATIONS = 48  # of Griffin-Lim
MOMENTUM = 0.99
PEAK = 0.8
# a smaller peak is silence with rounding errors, and is not scaled up
QUIET = 1e-3
FADE_S = 0.01

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


def music_section(gallery: Gallery, model: ModelConfig, *, masks: MaskConfig) -> dict[str, Any]:
    """Draws the first crops of a gallery, and masks over the first one.

    The page embeds the images of `symbols` once, at its top. Without torchaudio it has no sound: it follows hours of
    training, and must not fail for this; `no_sound` says why.
    """
    frontend, shown = FrontendConfig(**gallery.manifest.frontend), gallery.crops[:SHOWN_CROPS]
    canvases = [
        Canvas(f"crop-{i}", len(c.mel_TF) * gallery.frame_s, c.mel_TF.shape[1], frontend.fmin_hz, frontend.fmax_hz)
        for i, c in enumerate(shown)
    ]
    grid = (model.grid_steps, model.grid_bands)
    sounds, no_sound = [""] * len(shown), ""
    try:
        sounds = [audio_uri(audio_of(crop.mel_TF, frontend), frontend.sample_rate_hz) for crop in shown]
    except TorchaudioError as error:
        _LOG.warning("%s", error)
        no_sound = str(error)
    return {
        "symbols": [crop_image(canvas, crop.mel_TF) for canvas, crop in zip(canvases, shown)],
        "canvases": canvases,  # for the other sections, which draw over the first crop
        "crops": [_crop_plate(*each) for each in zip(canvases, shown, sounds)],
        "masks": [_mask_plate(canvases[0], masks, strategy, grid=grid) for strategy in range(len(STRATEGIES))],
        "origin": gallery.url,
        "emblem": emblem(canvases[0], veil(~visible_patches(masks, RANDOM, grid=grid))),
        "no_sound": no_sound,
    }


def visible_patches(config: MaskConfig, strategy: int, *, grid: tuple[int, int]) -> np.ndarray:
    """Returns the boolean grid of the context of the mask that `prediction.py` fills first."""
    visible = np.zeros(grid[0] * grid[1], bool)
    visible[shown_mask(config, strategy, grid=grid, crop=0).context] = True
    return visible.reshape(grid)  # token index = step * bands + band


def shown_mask(config: MaskConfig, strategy: int, *, grid: tuple[int, int], crop: int) -> Mask:
    """Returns the mask of a strategy over crop number `crop`."""
    rng = generator(0, "report", "mask", strategy, crop)
    return draw_mask(rng, config, steps=grid[0], bands=grid[1], progress=1.0, strategy=strategy)


def strategy_name(strategy: int) -> str:
    """Returns the name of a strategy by its number."""
    return STRATEGIES[strategy].replace("_", "-")


def audio_of(mel_TF: np.ndarray, config: FrontendConfig) -> np.ndarray:
    """Returns mono audio [S] at the front end's rate, with a peak of 0.8, (T - 1) * hop samples long.

    Raises:
        TorchaudioError: torchaudio, which has Griffin-Lim, cannot be loaded.
    """
    griffinlim = torchaudio_functional(without="the page has no sound").griffinlim
    # the floor of the logarithm is silence, not noise
    energy_TF = (torch.from_numpy(np.ascontiguousarray(mel_TF)).double().exp() - config.floor).clamp_min(0)
    inverse = torch.linalg.pinv(mel_filter_bank(config).double())  # [F, n_fft / 2 + 1]
    magnitude_KT = (energy_TF @ inverse).clamp_min(0).T.float()  # least squares can give negative energy
    audio_S = griffinlim(
        magnitude_KT,
        window=torch.hann_window(config.window_samples),
        n_fft=config.n_fft,
        hop_length=config.hop_samples,
        win_length=config.window_samples,
        power=1.0,
        n_iter=ITERATIONS,
        momentum=MOMENTUM,
        length=None,
        # a random start would draw from the global generator
        rand_init=False,
    )
    ramp = torch.linspace(0, 1, min(round(FADE_S * config.sample_rate_hz), len(audio_S) // 2))
    audio_S[: len(ramp)] *= ramp
    audio_S[len(audio_S) - len(ramp) :] *= ramp.flip(0)
    # QUIET: digital silence has no peak to be scaled up
    return (audio_S * (PEAK / audio_S.abs().max().clamp_min(QUIET))).numpy()


def audio_uri(audio_S: np.ndarray, rate_hz: int) -> str:
    """Returns the audio as an MP3 data URI, which every browser plays; as WAV if libsndfile has no MP3."""
    format_, kind = ("MP3", "mpeg") if "MP3" in soundfile.available_formats() else ("WAV", "wav")
    buffer = io.BytesIO()
    soundfile.write(buffer, audio_S, rate_hz, format=format_)
    return f"data:audio/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()


def _crop_plate(canvas: Canvas, crop: SampleCrop, sound: str) -> Plate:
    labels = crop.labels
    # labels that a reader can check in the picture
    chips = [str(labels["key"])] if labels.get("key") else []
    if labels.get("tempo_bpm"):
        chips.append(f"{labels['tempo_bpm']:.0f} bpm")
    chips += [str(i) for i in labels.get("instruments") or ()]
    if labels.get("note_density_hz"):
        chips.append(f"{significant(labels['note_density_hz'], 2)} notes/s")
    if labels.get("collection") and labels["collection"] != crop.source:
        chips.append(str(labels["collection"]))
    # labels count seconds of the track, pictures those of the crop
    beats, downbeats = ([t - crop.offset_s for t in labels.get(key) or ()] for key in ("beats", "downbeats"))
    described = f"Log-mel spectrogram of {fixed(canvas.duration_s, 1)} s from {crop.track}; {listed(chips)}"
    svg = picture(canvas, described, beat_marks(canvas, beats, downbeats) + playhead())
    title, sentence = crop.track.replace("_", " "), f"{crop.source}, from {fixed(crop.offset_s, 1)} s"
    return Plate(title, sentence, svg, tuple(chips), sound)


def _mask_plate(canvas: Canvas, config: MaskConfig, strategy: int, *, grid: tuple[int, int]) -> Plate:
    hidden, name = ~visible_patches(config, strategy, grid=grid), strategy_name(strategy)
    described = f"The same crop under a {name} mask: {percent(hidden.mean(), 0)} of {hidden.size} patches are veiled"
    weights = (config.random, config.block, config.time_frequency)
    chip = f"{percent(weights[strategy] / sum(weights), 0)} of crops"
    chip += " after the warm-up" if config.warmup_end > 0 else ""
    return Plate(name, STRATEGY_SENTENCES[STRATEGIES[strategy]], picture(canvas, described, veil(hidden)), (chip,))

"""Pictures: pixels, veils and axes stand where the patches and frequencies are."""

import base64
import io
import re
from itertools import pairwise

import librosa
import numpy as np
import pytest
from PIL import Image

from distributed.drawing.wording import EN_DASH
from distributed.report.pictures import (
    LEFT,
    PLOT_HEIGHT,
    PLOT_WIDTH,
    TOP,
    Canvas,
    band_name,
    colour,
    image_uri,
    outline,
    veil,
)
from pupujepa.attention.picture import glow
from pupujepa.attention.region import Box

CANVAS = Canvas("crop-0", 2.56, 128, 0.0, 12_000.0)


def decoded(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


def test_colours_keep_the_order_of_values_and_low_is_at_the_bottom():
    """The luminance of the map grows with the value; the first band is the last row."""
    values = np.linspace(0, 1, 12).reshape(3, 4)  # [T, F]
    pixels = colour(values, 0.0, 1.0)
    assert pixels.shape == (4, 3, 3)
    luminance = pixels @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance[::-1].T.ravel()) > 0).all()


def test_lossless_images_come_back_exactly():
    """Masks and maps are data, not photographs."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 64, 3)).astype(np.uint8)
    np.testing.assert_array_equal(decoded(image_uri(pixels, lossless=True)), pixels)


def test_a_glow_is_as_opaque_as_its_value_and_clear_without_one():
    """Nothing, a half, everything, and no value at all."""
    alpha = np.rint(255 * glow(np.array([[0.0, 0.5, 1.0, np.nan, 7.0]])))[0, :, 3]
    assert alpha.tolist() == [0, 117, 235, 0, 235]


def test_the_veil_covers_the_targets_and_nothing_else():
    """Rectangles of the path, painted on the grid, give the mask back."""
    targets = np.random.default_rng(1).random((64, 8)) < 0.8
    painted = np.zeros((64, 8), int)
    for x, y, width in re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)v", veil(targets)):
        step = round((float(x) - LEFT) / PLOT_WIDTH * 64)
        steps = round(float(width) / PLOT_WIDTH * 64)
        band = 7 - round((float(y) - TOP) / PLOT_HEIGHT * 8)
        painted[step : step + steps, band] += 1
    np.testing.assert_array_equal(painted, targets.astype(int))


def test_a_region_is_framed_in_place():
    """Two steps from the left edge, one band from the bottom."""
    rect = outline(Box(2, 4, 1, 2), (64, 8))
    x, y, width, height = (float(re.search(rf' {n}="([\d.]+)"', rect).group(1)) for n in ("x", "y", "width", "height"))
    assert (x, width) == pytest.approx((LEFT + 2 * PLOT_WIDTH / 64, 4 * PLOT_WIDTH / 64), abs=0.06)
    assert (y + height, height) == pytest.approx((TOP + PLOT_HEIGHT * 7 / 8, PLOT_HEIGHT / 4), abs=0.06)


def test_frequencies_stand_at_the_band_that_holds_them():
    """Against librosa's filter centres: the tick of a centre frequency lies in the middle of its band."""
    centres_hz = librosa.mel_frequencies(n_mels=130, fmin=0, fmax=12_000)[1:-1]
    for band in (0, 40, 127):
        expected = TOP + PLOT_HEIGHT * (1 - (band + 0.5) / 128)
        assert CANVAS.y(centres_hz[band]) == pytest.approx(expected, abs=0.01)


def test_rows_of_patches_are_named_by_their_range():
    """Neighbouring rows touch, and together they span the axis."""
    edges = [CANVAS.band_edges(i, 1, 8) for i in range(8)]
    assert edges[0][0] == 0
    assert edges[-1][1] == pytest.approx(12_000)
    assert all(a[1] == pytest.approx(b[0]) for a, b in pairwise(edges))
    assert band_name(CANVAS, 0, 8) == f"0{EN_DASH}{edges[0][1]:.0f} Hz"

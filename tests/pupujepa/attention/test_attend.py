"""The attend command: pictures by block and head, and a page in a real browser whose numbers are the library's."""

import matplotlib.image
import numpy as np
import pytest
import soundfile
import torch

from docs.browser import Browser, View
from pupujepa.attention.maps import region_attention
from pupujepa.attention.picture import coded_maps, panels_of
from pupujepa.attention.region import Box, Look, box_in, boxes_over, mel_edges_hz, read_crop
from pupujepa.audio.log_mel import FrontendConfig, log_mel
from pupujepa.errors import UserError
from pupujepa.weights.weights import load, save_release
from tests.pupujepa.commands import run
from tests.pupujepa.models import SMALL, random_model
from tests.pupujepa.tones import tone

READY = """new Promise((go) => { const timer = setInterval(() => {
  if (document.documentElement.dataset.ready) { clearInterval(timer); go(); } }, 10); })"""


@pytest.fixture
def song(tmp_path):
    """A chirp with a pause, 0.64 s: one crop of the small model."""
    time_s = np.arange(24_000) / 24_000
    audio = 0.4 * np.sin(2 * np.pi * (200 + 3000 * time_s) * time_s).astype(np.float32)
    audio[8000:9000] = 0
    soundfile.write(tmp_path / "chirp <b>.wav", audio, 24_000)
    return tmp_path / "chirp <b>.wav"


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; without one these tests fail and say how to install it."""
    with Browser() as browser:
        yield browser


@pytest.fixture
def page(weights, song, tmp_path):
    """A page with 4 x 2 regions besides the requested one."""
    path = tmp_path / "a.html"
    assert run("attend", weights, song, "--time", 0.2, 0.28, "--bands", 0, 2, "--regions", "4x2", "--out", path) == 0
    return path


def look_at(weights, song, box):
    """Computes the same look with the library."""
    model = load(weights)
    crop = read_crop(model, song, start_s=0.0)
    return Look(box, region_attention(model, crop.mel_TF, box.mask((crop.steps, crop.bands)))), crop


def test_a_picture_is_written(weights, song, tmp_path, capsys):
    """The PNG has a plausible size and content; the command prints the region's patches, seconds and hertz."""
    out = tmp_path / "pictures" / "a.png"
    assert run("attend", weights, song, "--out", out, "--time", 0.2, 0.28, "--bands", 0, 2) == 0
    image = matplotlib.image.imread(out)
    assert min(image.shape[:2]) > 300
    assert len(np.unique(image.reshape(-1, image.shape[-1]), axis=0)) > 100
    told = capsys.readouterr().err
    assert "6 patches looked from: 0.20 to 0.28 s, 0 to 1" in told
    assert str(out) in told


@pytest.mark.parametrize("name", ["Ke$ha - Tik_$.wav", "$\\frac$ {x^$"])
def test_a_name_is_no_formula(weights, song, tmp_path, name):
    """Two dollar signs in a file name are not mathematics."""
    for out in ("a.png", "a.html"):
        assert run("attend", weights, song.rename(song.with_name(name)), "--out", tmp_path / out) == 0
        song = song.with_name(name)
        assert (tmp_path / out).stat().st_size > 1000


def test_pictures_differ_by_block_and_head(weights, song, tmp_path):
    """The mean, one head and another head are three pictures; all of them together are a larger one."""
    images = {}
    for name, words in {
        "mean": (),
        "one": ("--layer", 1, "--head", 1),
        "other": ("--layer", 2, "--head", 1),
        "all": ("--layer", "all", "--head", "all"),
    }.items():
        assert run("attend", weights, song, "--out", tmp_path / f"{name}.png", *words) == 0
        images[name] = matplotlib.image.imread(tmp_path / f"{name}.png")
    assert images["mean"].shape == images["one"].shape == images["other"].shape
    assert not np.array_equal(images["mean"], images["one"])
    assert not np.array_equal(images["one"], images["other"])
    assert images["all"].shape[0] > images["mean"].shape[0]


def test_panels_are_the_heads_that_were_chosen(weights, song):
    """Numbers from 1 on name blocks and heads; mean is their mean; all is a row per block; others are errors."""
    look, _ = look_at(weights, song, Box(5, 2, 0, 3))
    maps = look.times_even()
    np.testing.assert_array_equal(panels_of(look, "2", "1")[0][0].times_even, maps[1, 0])
    np.testing.assert_allclose(panels_of(look, "mean", "mean")[0][0].times_even, maps.mean((0, 1)))
    rows = panels_of(look, "all", "all")
    assert [[p.title for p in row] for row in rows] == [
        [f"layer {layer}, head {head}" for head in (1, 2)] for layer in (1, 2)
    ]
    np.testing.assert_array_equal(rows[1][0].times_even, maps[1, 0])
    for wrong in ("0", "3", "last"):
        with pytest.raises(UserError, match=f"--layer {wrong} does not exist; choose 1 to 2, mean or all"):
            panels_of(look, wrong, "mean")


def test_an_even_spread_is_one():
    """An even map over all patches outside the region is 1 there."""
    even = np.full((1, 1, 16, 8), 1 / 122)
    even[..., 5:7, 0:3] = 0
    times = Look(Box(5, 2, 0, 3), even).times_even()
    np.testing.assert_allclose(times[even > 0], 1)


def test_a_region_is_every_patch_that_the_box_touches(weights, song):
    """Spans of time and ranges of frequency are rounded outwards to whole patches."""
    crop = read_crop(load(weights), song, start_s=0.0)
    edges = crop.band_edges_hz
    assert box_in(crop, time_s=[0.2, 0.28], frequency_hz=None) == Box(5, 2, 0, 8)
    assert box_in(crop, time_s=[0.21, 0.27], frequency_hz=[edges[2] + 1, edges[3] - 1]) == Box(5, 2, 2, 1)
    assert box_in(crop, time_s=[0.0, 0.64], frequency_hz=[edges[2] - 1, edges[3] + 1]) == Box(0, 16, 1, 3)
    assert box_in(crop, time_s=[0.0, 0.04], frequency_hz=[0, 12_000]) == Box(0, 1, 0, 8)


def test_bands_lie_at_their_frequencies():
    """A tone in the middle between two edges is loudest in the mel band between them."""
    edges = mel_edges_hz(FrontendConfig())
    assert len(edges) == 129
    assert (np.diff(edges) > 0).all()
    for band in (20, 60, 100):
        hz = (edges[band] + edges[band + 1]) / 2
        mel = log_mel(torch.from_numpy(tone(0.5, hz=hz))[None])[0].mean(0)
        assert int(mel.argmax()) == band


def test_regions_tile_the_crop(weights, song):
    """Every patch is in exactly one region, also if the numbers do not divide the grid."""
    crop = read_crop(load(weights), song, start_s=0.0)
    for columns, rows in ((4, 2), (5, 3), (16, 8)):
        boxes = boxes_over(crop, columns, rows)
        assert len(boxes) == columns * rows
        assert (sum(box.mask((crop.steps, crop.bands)).astype(int) for box in boxes) == 1).all()


def test_regions_outside_the_crop_are_refused(weights, song, tmp_path, capsys):
    """Regions, starts and formats that do not exist are errors, before anything is written."""
    base = ("attend", weights, song, "--out", tmp_path / "a.png")
    cases = {
        "region 0.5-9 s is not within the crop of 0-0.64 s": (*base, "--time", 0.5, 9),
        "bands 3 to 8 are not within 0 to 7": (*base, "--bands", 3, 8),
        "region 80-20000 Hz is not within the spectrogram of 0-12000 Hz": (*base, "--frequency", 80, 20_000),
        "less than two patches of audio": (*base, "--start", 0.99),
        "--head 3 does not exist; choose 1 to 2": (*base, "--head", 3),
        "--regions 99x2 does not fit": (*base, "--regions", "99x2"),
        "--regions many: give columns x rows": (*base, "--regions", "many"),
        "--ratio 1.0 must be between 0 and 1": (*base, "--ratio", 1),
        "a.gif: no such format": (*base[:4], tmp_path / "a.gif"),
        "the region covers the whole crop": (*base, "--time", 0, 0.64),
    }
    for message, words in cases.items():
        assert run(*words) == 2, message
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("a.*"))


def test_codes_keep_weak_attention():
    """A map decoded from its bytes is off by less than a two-hundredth of its maximum."""
    maps = np.random.default_rng(0).exponential(size=(2, 3, 16, 8)) ** 3
    codes, peaks = coded_maps(maps)
    read = (codes / 255.0) ** 2 * peaks[:, None, None]
    error = np.abs(read - maps.reshape(6, 16, 8)) / peaks[:, None, None]
    assert error.max() < 1 / 200
    weak = maps.reshape(6, 16, 8) < 0.01 * peaks[:, None, None]
    assert error[weak].max() < 1 / 1000


def test_the_page_stands_alone(browser, page):
    """The page renders without an error and without a request, and a name with markup stays text."""
    visit = browser.visit(page.as_uri(), f"{READY}.then(() => document.querySelector('main b').innerText)")
    assert visit.errors == []
    assert [url for url in visit.requests if not url.startswith("data:")] == [page.as_uri()]
    assert visit.result == "chirp <b>.wav"
    assert page.stat().st_size < 1_000_000


def test_the_page_shows_what_the_library_computes(browser, page, weights, song):
    """For every block and head, and for their means, the strongest patch and its value are the library's."""
    look, _ = look_at(weights, song, Box(5, 2, 0, 3))
    maps = look.times_even()
    script = (
        READY
        + """.then(() => {
      const found = {};
      const choose = (id, value) => { const select = document.getElementById(id);
        select.value = value; select.dispatchEvent(new Event("change")); };
      for (const layer of [-1, 0, 1]) for (const head of [-1, 0, 1]) {
        choose("layer", layer); choose("head", head);
        const { peak, peakAt } = document.getElementById("picture").dataset;
        found[`${layer} ${head}`] = [+peak, +peakAt, document.getElementById("readout").textContent];
      }
      return found; })"""
    )
    found = browser.visit(page.as_uri(), script).result
    for layer in (-1, 0, 1):
        for head in (-1, 0, 1):
            of_layer = maps.mean(0) if layer < 0 else maps[layer]
            expected = (of_layer.mean(0) if head < 0 else of_layer[head]).ravel()
            peak, where, readout = found[f"{layer} {head}"]
            assert peak == pytest.approx(expected.max(), rel=0.01)
            assert expected[where] == pytest.approx(expected.max(), rel=0.01)
            assert "Hidden: 0.20 to 0.28 s, 0 to" in readout
            assert f"{expected.max():.1f}"[:2] in readout
    assert len({tuple(value) for value in found.values()}) == 9


def test_heads_and_regions_can_be_chosen(browser, page):
    """A click on a small map shows it; a click and the arrow keys in the picture choose another region."""
    script = (
        READY
        + """.then(() => {
      const picture = document.getElementById("picture"), box = document.getElementById("box");
      const readout = document.getElementById("readout"), heat = document.getElementById("heat");
      const state = () => [heat.getAttribute("href"), box.getAttribute("x"), box.getAttribute("y"),
        readout.textContent, document.querySelectorAll('[aria-pressed="true"]').length];
      const states = [state()];
      const buttons = document.querySelectorAll("#heads button");
      buttons[3].click(); states.push(state());
      const b = picture.getBoundingClientRect();
      const place = (x, y) => ({ clientX: b.left + x * b.width, clientY: b.top + y * b.height });
      const click = (x, y) => picture.dispatchEvent(new MouseEvent("click", place(x, y)));
      const press = (key) => picture.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
      click(0.95, 0.1); states.push(state());
      press("ArrowLeft"); states.push(state());
      press("ArrowDown"); states.push(state());
      picture.dispatchEvent(new PointerEvent("pointermove", place(0.5, 0.5)));
      return { states, heads: buttons.length, hover: readout.textContent }; })"""
    )
    visit = browser.visit(page.as_uri(), script)
    assert visit.errors == []
    first, head, clicked, left, down = visit.result["states"]
    assert visit.result["heads"] == 4
    assert (first[4], head[4]) == (0, 1)
    assert head[0] != first[0] and head[1:3] == first[1:3]
    assert "layer 2, head 2" in head[3]
    assert "Hidden: 0.48 to 0.64 s" in clicked[3]
    assert "Hidden: 0.32 to 0.48 s" in left[3]
    assert "Hidden: 0.32 to 0.48 s, 0 to" in down[3]
    assert len({state[0] for state in (first, head, clicked, left, down)}) == 5
    assert "times an even share." in visit.result["hover"]


@pytest.mark.parametrize("view", [View(375, 800), View(375, 800, dark=True), View(1920, 1080)], ids=str)
def test_the_page_fits_every_screen(browser, page, view):
    """The page fits a phone and a wide screen, in light and dark."""
    script = f"{READY}.then(() => document.documentElement.scrollWidth - innerWidth)"
    visit = browser.visit(page.as_uri(), script, view=view)
    assert visit.result <= 0
    assert visit.errors == []


@pytest.mark.parametrize("changes", [{"structure": "frames", "patch_bands": 0}, {"position_code": "learned"}], ids=str)
def test_variants_are_drawn_too(song, tmp_path, changes):
    """The 1-D structure has one row of patches, other position codes no rotation: picture and page are made alike."""
    config = type(SMALL)(**{**SMALL.__dict__, **changes})
    save_release(random_model(config), config, tmp_path / "weights")
    out = (tmp_path / "a.png", tmp_path / "a.html")
    assert run("attend", tmp_path / "weights", song, "--layer", "all", "--head", 2, "--out", *out) == 0
    assert all(path.stat().st_size > 10_000 for path in out)

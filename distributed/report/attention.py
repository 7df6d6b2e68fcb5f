"""The section on attention: the patches to which the mask tokens of a hidden region attend.

Every patch outside the region takes part as content (see `pupujepa.attention.maps.region_attention`). Attention between
mask tokens, which hold only a position, is left out, and the rest is scaled to sum to one.

Shapes: L predictor blocks, H heads, T frames, F mel bands; a grid is [steps, bands] of patches.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from data.store.store import open_store
from distributed.drawing.tables import Group, Table, texts
from distributed.drawing.wording import fixed, percent
from distributed.report.music import Plate
from distributed.report.pictures import (
    Canvas,
    band_name,
    emblem,
    explorer,
    heat,
    hertz,
    packed,
)
from distributed.report.similarity import Similarity, similarity
from pupujepa.attention import maps as library
from pupujepa.model.model import ModelConfig, PupuJEPA
from pupujepa.progress import follow
from pupujepa.training.masks import MaskConfig
from pupujepa.weights.weights import load

TILES_ALONG_TIME = 8
TILES_ALONG_BANDS = 4
# an untrained predictor has no fine preferences, so a third of the tiles is enough; 3 is coprime to the 4 rows, so it
# visits all of them
UNTRAINED_STRIDE = 3
NEIGHBOURHOOD_S = 0.25
MAX_HEADS = 8
PLACES = (
    "same moment, other bands",
    f"same bands, up to {NEIGHBOURHOOD_S} s away",
    f"same bands, more than {NEIGHBOURHOOD_S} s away",
    "everywhere else",
)


@dataclass(frozen=True)
class Tile:
    """A rectangle of patches."""

    step: int
    steps: int
    band: int
    bands: int

    def mask(self, grid: tuple[int, int]) -> np.ndarray:
        """Returns the boolean grid [steps, bands] of the tile."""
        inside = np.zeros(grid, bool)
        inside[self.step : self.step + self.steps, self.band : self.band + self.bands] = True
        return inside


@dataclass(frozen=True)
class AttentionSection:
    """Drawings, data and sentences of the section."""

    svg: str
    payload: str
    readout: str
    sentence: str
    shares: Table
    multiples: tuple[tuple[Plate, ...], ...]
    multiples_note: str
    similarity: Similarity


def attention_section(model: PupuJEPA, canvas: Canvas, mel_TF: Tensor, *, masks: MaskConfig) -> AttentionSection:
    """Draws the section for one normalised crop, beside an untrained model of the same shape."""
    untrained = PupuJEPA(model.config, seed=0).eval()
    tiles = tile_grid(model.config)
    maps = {
        name: [
            tile_attention(net, mel_TF, tile, masks=masks)
            for tile in follow(chosen, total=len(chosen), title=f"attention, {name}", unit="regions")
        ]
        for name, net, chosen in (("trained", model, tiles), ("untrained", untrained, tiles[::UNTRAINED_STRIDE]))
    }
    return _arrange(model, canvas, mel_TF, tiles=tiles, maps=maps)


def load_export(run_dir: str) -> PupuJEPA:
    """Loads export/ of a run, through a temporary copy when the run is not on this machine.

    Raises:
        WeightsError: the files cannot be read as weights.
    """
    store = open_store(f"{run_dir.rstrip('/')}/export")
    local = store.local_path()
    if local is not None:
        return load(Path(local)).eval()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("args.json", "model.safetensors"):
            store.download(name, Path(folder) / name)
        return load(Path(folder)).eval()


def tile_grid(config: ModelConfig) -> list[Tile]:
    """Returns the regions that a reader can choose, column by column, low bands first."""
    along_time = min(TILES_ALONG_TIME, config.grid_steps)
    along_bands = min(TILES_ALONG_BANDS, config.grid_bands)
    steps, bands = config.grid_steps // along_time, config.grid_bands // along_bands
    return [Tile(t * steps, steps, b * bands, bands) for t in range(along_time) for b in range(along_bands)]


def tile_attention(model: PupuJEPA, mel_TF: Tensor, tile: Tile, *, masks: MaskConfig) -> np.ndarray:
    """Returns each head's attention from a hidden tile, [L, H, steps, bands]: sums to 1, zero inside."""
    inside = tile.mask((len(mel_TF) // model.config.patch_frames, model.config.grid_bands))
    return library.region_attention(model, mel_TF, inside, ratio=masks.ratio)


def patch_places(tile: Tile, grid: tuple[int, int], *, step_s: float) -> np.ndarray:
    """Returns the index in PLACES of each patch, relative to the tile; -1 inside it."""
    step, band = np.indices(grid)
    # steps between a patch and the tile; 0 beside it
    distance = np.maximum(tile.step - step, step - (tile.step + tile.steps - 1)).clip(0)
    same_band = (band >= tile.band) & (band < tile.band + tile.bands)
    places = np.full(grid, 3)
    places[same_band] = 2
    places[same_band & (distance * step_s <= NEIGHBOURHOOD_S)] = 1
    places[(distance == 0) & ~same_band] = 0
    places[tile.mask(grid)] = -1
    return places


def place_shares(maps: Sequence[np.ndarray], tiles: Sequence[Tile], *, step_s: float) -> np.ndarray:
    """Returns the share of attention on each of PLACES, averaged over tiles, layers and heads."""
    shares = []
    for tile, grid in zip(tiles, maps, strict=True):
        mean = grid.mean((0, 1))
        places = patch_places(tile, mean.shape, step_s=step_s)
        shares.append([mean[places == i].sum() for i in range(len(PLACES))])
    return np.mean(shares, axis=0)


def times_even(shares: np.ndarray, even: np.ndarray) -> np.ndarray:
    """Returns shares as multiples of an even spread's; 0 for a place without patches."""
    return np.divide(shares, even, out=np.zeros_like(even), where=even > 0)


def _arrange(
    model: PupuJEPA, canvas: Canvas, mel_TF: Tensor, *, tiles: list[Tile], maps: dict[str, list[np.ndarray]]
) -> AttentionSection:
    grid = (len(mel_TF) // model.config.patch_frames, model.config.grid_bands)
    step_s = canvas.duration_s / grid[0]
    start = _start(tiles)
    even = [np.where(t.mask(grid), 0.0, 1.0 / (grid[0] * grid[1] - t.steps * t.bands))[None, None] for t in tiles]
    shares = {
        "even": place_shares(even, tiles, step_s=step_s),
        "trained": place_shares(maps["trained"], tiles, step_s=step_s),
        "untrained": place_shares(maps["untrained"], tiles[::UNTRAINED_STRIDE], step_s=step_s),
    }
    readouts = [_readout(t, m, canvas, grid, step_s) for t, m in zip(tiles, maps["trained"], strict=True)]
    shown = [_brightness(m.mean((0, 1))) for m in maps["trained"]]
    across = (tiles[-1].step // tiles[0].steps + 1, tiles[-1].band // tiles[0].bands + 1)
    multiples, note = _multiples(canvas, maps["trained"][start])
    payload = {
        "grid": grid,
        "tiles": across,
        "size": (tiles[0].steps, tiles[0].bands),
        "start": (start // across[1], start % across[1]),
        "readouts": readouts,
        "maps": packed(np.stack(shown), 255, np.uint8),
    }
    return AttentionSection(
        svg=explorer(
            canvas,
            shown[start],
            (tiles[start].step, tiles[start].steps, tiles[start].band, tiles[start].bands),
            label="Attention of the predictor from a hidden region",
        ),
        payload=json.dumps(payload, ensure_ascii=False),
        readout=readouts[start],
        sentence=_sentence(shares, len(tiles)),
        shares=_share_table(shares),
        multiples=multiples,
        multiples_note=note,
        similarity=similarity(model, canvas, mel_TF, patch=(tiles[start].step, tiles[start].band)),
    )


def _share_table(shares: dict[str, np.ndarray]) -> Table:
    rows = [texts(place, *(percent(of_place[i]) for of_place in shares.values())) for i, place in enumerate(PLACES)]
    head = texts("Place, seen from the hidden region", "even spread", "trained", "untrained")
    return Table("Share of attention by place", head, (Group("", tuple(rows)),))


def _start(tiles: Sequence[Tile]) -> int:
    """Returns the index of the middle tile in the second-lowest row, where melodies and chords are."""
    rows = tiles[-1].band // tiles[0].bands + 1
    return (len(tiles) // rows // 2) * rows + min(1, rows - 1)


def _brightness(grid: np.ndarray) -> np.ndarray:
    """Returns a map in [0, 1]: 0 up to the attention of an even spread, 1 at the strongest patches."""
    even = 1 / np.count_nonzero(grid)
    top = np.quantile(grid, 0.995)
    return np.clip((grid - even) / max(top - even, 1e-12), 0, 1)


def _readout(tile: Tile, maps: np.ndarray, canvas: Canvas, grid: tuple[int, int], step_s: float) -> str:
    mean = maps.mean((0, 1))
    peak_step, peak_band = np.unravel_index(int(mean.argmax()), mean.shape)
    places = patch_places(tile, mean.shape, step_s=step_s)
    near = mean[(places == 0) | (places == 1)].sum()
    lowest, highest = canvas.band_edges(tile.band, tile.bands, grid[1])
    return (
        f"Hidden: {fixed(tile.step * step_s, 2)} to {fixed((tile.step + tile.steps) * step_s, 2)} s, "
        f"{hertz(lowest)} to {hertz(highest)}. {percent(near, 0)} of the attention goes to the same moment or to the "
        f"same bands close by; the strongest single patch is at {fixed(peak_step * step_s, 2)} s, "
        f"{band_name(canvas, int(peak_band), grid[1])}."
    )


def _sentence(shares: dict[str, np.ndarray], tiles: int) -> str:
    lift, untrained = (times_even(shares[name], shares["even"]) for name in ("trained", "untrained"))
    first = int(np.argmax(lift))
    return (
        f"Share of attention by place, averaged over {tiles} hidden regions of this crop, all layers and heads. An "
        f"even spread has no preference. The trained predictor prefers “{PLACES[first]}” most: "
        f"{fixed(lift[first], 1)} times the even share, against {fixed(untrained[first], 1)} times untrained."
    )


def _multiples(canvas: Canvas, maps_LHTF: np.ndarray) -> tuple[tuple[tuple[Plate, ...], ...], str]:
    layers, heads = maps_LHTF.shape[:2]
    rows = []
    for layer in range(layers):
        # the heads with the largest total variation from their layer's mean
        departure = np.abs(maps_LHTF[layer] - maps_LHTF[layer].mean(0)).sum((-2, -1))
        chosen = sorted(np.argsort(-departure, kind="stable")[:MAX_HEADS])
        rows.append(tuple(_head(canvas, maps_LHTF[layer, h], layer, int(h)) for h in chosen))
    note = f" (of {heads} heads, the {MAX_HEADS} that differ most from their layer's mean)"
    return tuple(rows), note if heads > MAX_HEADS else ""


def _head(canvas: Canvas, grid: np.ndarray, layer: int, head: int) -> Plate:
    label = f"Attention of head {head + 1} in layer {layer + 1}"
    svg = emblem(canvas, [heat(_brightness(grid))], grey=True, label=label)
    return Plate(f"head {head + 1}", "", svg)

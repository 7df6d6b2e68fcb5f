"""The section on attention: the patches to which the mask tokens of a hidden region attend.

Every patch outside the region takes part as content (see `pupujepa.attention.maps.region_attention`). Attention between
mask tokens, which hold only a position, is left out, and the rest is scaled to sum to one.

Shapes: T frames, F mel bands; a grid is [steps, bands] of patches; a map is the mean over layers and heads on it.
"""

import base64
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from data.store.store import open_store
from distributed.drawing.tables import Group, Table, texts
from distributed.drawing.wording import fixed, percent
from distributed.report.pictures import Canvas, band_name, explorer, hertz
from pupujepa.attention.maps import region_attention
from pupujepa.attention.picture import strength
from pupujepa.attention.region import Box
from pupujepa.model.model import ModelConfig, PupuJEPA
from pupujepa.progress import follow
from pupujepa.training.masks import MaskConfig
from pupujepa.weights.weights import load

REGIONS = (8, 4)  # along time and bands
# an untrained predictor has no fine preferences, so a third of the regions is enough; 3 is coprime to the 4 rows, so it
# visits all of them
UNTRAINED_STRIDE = 3
NEIGHBOURHOOD_S = 0.25  # half a beat at 120 bpm
PLACES = (
    "same moment, other bands",
    f"same bands, up to {NEIGHBOURHOOD_S} s away",
    f"same bands, more than {NEIGHBOURHOOD_S} s away",
    "everywhere else",
)


def attention_section(model: PupuJEPA, canvas: Canvas, mel_TF: Tensor, *, masks: MaskConfig) -> dict[str, Any]:
    """Draws the section for one normalised crop, beside an untrained model of the same shape."""
    config = model.config
    grid = (len(mel_TF) // config.patch_frames, config.grid_bands)
    step_s = canvas.duration_s / grid[0]
    boxes, untrained = region_grid(config), PupuJEPA(config, seed=0).eval()
    few = boxes[::UNTRAINED_STRIDE]  # each region costs several passes of the model
    trained_maps, untrained_maps = (
        [
            region_attention(net, mel_TF, box.mask(grid), ratio=masks.ratio).mean((0, 1))
            for box in follow(chosen, total=len(chosen), title=f"attention, {name}", unit="regions")
        ]
        for name, net, chosen in (("trained", model, boxes), ("untrained", untrained, few))
    )
    even_maps = [np.where(inside := box.mask(grid), 0.0, 1 / np.count_nonzero(~inside)) for box in boxes]
    shares = {
        "even spread": place_shares(even_maps, boxes, step_s=step_s),
        "trained": place_shares(trained_maps, boxes, step_s=step_s),
        "untrained": place_shares(untrained_maps, few, step_s=step_s),
    }
    across = (boxes[-1].step // boxes[0].steps + 1, boxes[-1].band // boxes[0].bands + 1)
    # first shown: the middle of the second-lowest row, where melodies and chords are
    column, row = across[0] // 2, min(1, across[1] - 1)
    start = column * across[1] + row
    shown = [strength(each * np.count_nonzero(each)) for each in trained_maps]
    readouts = [_readout(box, each, canvas, step_s) for box, each in zip(boxes, trained_maps)]
    payload = {
        "grid": grid,
        "tiles": across,
        "size": (boxes[0].steps, boxes[0].bands),
        "start": (column, row),
        "readouts": readouts,
        "maps": base64.b64encode(np.rint(np.stack(shown) * 255).astype(np.uint8).tobytes()).decode(),
    }
    return {
        "svg": explorer(canvas, shown[start], boxes[start], label="Attention of the predictor from a hidden region"),
        "payload": json.dumps(payload, ensure_ascii=False),
        "readout": readouts[start],
        "sentence": _sentence(shares, len(boxes)),
        "shares": _share_table(shares),
    }


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
        return load(Path(folder)).eval()  # reads everything before the folder goes


def region_grid(config: ModelConfig) -> list[Box]:
    """Returns the regions that a reader can choose, of one size, column by column, low bands first."""
    along_time, along_bands = min(REGIONS[0], config.grid_steps), min(REGIONS[1], config.grid_bands)
    steps, bands = config.grid_steps // along_time, config.grid_bands // along_bands
    return [Box(t * steps, steps, b * bands, bands) for t in range(along_time) for b in range(along_bands)]


def patch_places(box: Box, grid: tuple[int, int], *, step_s: float) -> np.ndarray:
    """Returns the index in PLACES of each patch, relative to the region; -1 inside it."""
    step, band = np.indices(grid)
    # steps between a patch and the region; 0 beside it
    distance = np.maximum(box.step - step, step - (box.step + box.steps - 1)).clip(0)
    same_band = (band >= box.band) & (band < box.band + box.bands)
    places = np.full(grid, 3)
    places[same_band] = 2
    places[same_band & (distance * step_s <= NEIGHBOURHOOD_S)] = 1
    places[(distance == 0) & ~same_band] = 0
    places[box.mask(grid)] = -1
    return places


def place_shares(maps: Sequence[np.ndarray], boxes: Sequence[Box], *, step_s: float) -> np.ndarray:
    """Returns the share of attention on each of PLACES, averaged over the maps [steps, bands] of regions."""
    shares = []
    for box, attention in zip(boxes, maps, strict=True):
        places = patch_places(box, attention.shape, step_s=step_s)
        shares.append([attention[places == i].sum() for i in range(len(PLACES))])
    return np.mean(shares, axis=0)


def times_even(shares: np.ndarray, even: np.ndarray) -> np.ndarray:
    """Returns shares as multiples of an even spread's; 0 for a place without patches."""
    return np.divide(shares, even, out=np.zeros_like(even), where=even > 0)


def _share_table(shares: dict[str, np.ndarray]) -> Table:
    rows = [texts(place, *(percent(of_place[i]) for of_place in shares.values())) for i, place in enumerate(PLACES)]
    head = texts("Place, seen from the hidden region", *shares)
    return Table("Share of attention by place", head, (Group("", tuple(rows)),))


def _readout(box: Box, attention: np.ndarray, canvas: Canvas, step_s: float) -> str:
    bands = attention.shape[1]
    peak_step, peak_band = np.unravel_index(int(attention.argmax()), attention.shape)
    places = patch_places(box, attention.shape, step_s=step_s)
    near = attention[(places == 0) | (places == 1)].sum()
    lowest, highest = canvas.band_edges(box.band, box.bands, bands)
    return (
        f"Hidden: {fixed(box.step * step_s, 2)} to {fixed((box.step + box.steps) * step_s, 2)} s, "
        f"{hertz(lowest)} to {hertz(highest)}. {percent(near, 0)} of the attention goes to the same moment or to the "
        f"same bands close by; the strongest single patch is at {fixed(peak_step * step_s, 2)} s, "
        f"{band_name(canvas, int(peak_band), bands)}."
    )


def _sentence(shares: dict[str, np.ndarray], regions: int) -> str:
    lift, untrained = (times_even(shares[name], shares["even spread"]) for name in ("trained", "untrained"))
    first = int(np.argmax(lift))
    return (
        f"Share of attention by place, averaged over {regions} hidden regions of this crop, all layers and heads. An "
        f"even spread has no preference. The trained predictor prefers “{PLACES[first]}” most: "
        f"{fixed(lift[first], 1)} times the even share, against {fixed(untrained[first], 1)} times untrained."
    )

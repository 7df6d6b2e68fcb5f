"""Readouts: from the grid of token features to one embedding per frame, per clip or per region.

- frames: the bands of a time step concatenated, [steps, bands * D] at 25 Hz (8D wide for the released models).
- mean: the mean over all patches, [D].
- region(f, t): the grid average-pooled to f x t blocks, concatenated frequency-major, [f * t * D].

Shapes: B batch, T time steps, N patches, D width, L layers, F bands of patches.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pupujepa.errors import UserError

Readout = str | tuple[str, int, int]


@dataclass(frozen=True)
class ReadoutSpec:
    """A readout by name; `region` has blocks along frequency and along time."""

    name: str
    frequency_blocks: int = 1
    time_blocks: int = 1

    def __str__(self) -> str:
        return f"region:{self.frequency_blocks}x{self.time_blocks}" if self.name == "region" else self.name


def parse_readout(readout: Readout, *, bands: int) -> ReadoutSpec:
    """Reads "frames", "mean", ("region", f, t) or "region:FxT".

    Raises:
        UserError: another name, or more blocks than the grid has bands.
    """
    if isinstance(readout, str) and readout.startswith("region:"):
        frequency, _, time = readout.removeprefix("region:").partition("x")
        if not (frequency.isdigit() and time.isdigit()):
            raise UserError(f"readout {readout!r} is not of the form region:FxT, e.g. region:4x2")
        readout = ("region", int(frequency), int(time))
    if readout in ("frames", "mean"):
        return ReadoutSpec(str(readout))
    if isinstance(readout, tuple) and len(readout) == 3 and readout[0] == "region":
        _, frequency_blocks, time_blocks = readout
        if not 1 <= frequency_blocks <= bands or time_blocks < 1:
            raise UserError(
                f"readout region:{frequency_blocks}x{time_blocks} needs 1 to {bands} blocks along frequency (the "
                f"model's bands) and at least one along time"
            )
        return ReadoutSpec("region", frequency_blocks, time_blocks)
    raise UserError(f'readout {readout!r} is unknown; choose "frames", "mean" or ("region", f, t)')


def layout(states_BND: Tensor, *, bands: int) -> Tensor:
    """Returns the tokens with the bands of each time step side by side: [B, steps, bands * D]."""
    return states_BND.unflatten(1, (-1, bands)).flatten(2)


def pool_region(states_BND: Tensor, *, bands: int, frequency_blocks: int, time_blocks: int) -> Tensor:
    """Returns the grid pooled to frequency x time blocks, frequency-major: [B, f * t * D]."""
    grid_BDFT = states_BND.unflatten(1, (-1, bands)).permute(0, 3, 2, 1)  # tokens are time-major
    pooled_BDft = functional.adaptive_avg_pool2d(grid_BDFT, (frequency_blocks, time_blocks))
    return pooled_BDft.permute(0, 2, 3, 1).flatten(1)


class RunningReadout:
    """Readout of a clip of any length from consecutive pieces of its grid; it holds only the result.

    Sums are float64: an hour of music is a mean over 720,000 patches.

    Args:
        steps: time steps of the whole clip.
        layers: number of layers in each piece.
    """

    def __init__(self, spec: ReadoutSpec, *, steps: int, bands: int, layers: int, width: int) -> None:
        self.spec = spec
        self.steps = steps
        self._seen = 0
        if spec.name == "frames":
            self._values = torch.empty(layers, steps, bands * width)  # once, so that pieces are never held twice
        else:
            self._time_edges = block_edges(spec.time_blocks, steps)
            self._band_edges = block_edges(spec.frequency_blocks, bands)
            self._sums = torch.zeros(layers, spec.frequency_blocks, spec.time_blocks, width, dtype=torch.float64)

    def add(self, piece_LTND: Tensor) -> None:
        """Adds the next steps of the clip, [layers, steps of the piece, bands, D]."""
        start, stop = self._seen, self._seen + piece_LTND.shape[1]
        if self.spec.name == "frames":
            self._values[:, start:stop] = piece_LTND.flatten(2)
        else:
            self._add_to_blocks(piece_LTND, start, stop)
        self._seen = stop

    def finish(self) -> Tensor:
        """Returns [layers, steps, bands * D] for frames, else [layers, blocks * D]; float32."""
        assert self._seen == self.steps, f"{self._seen} of {self.steps} steps were read"
        if self.spec.name == "frames":
            return self._values
        bands_f = torch.tensor([stop - start for start, stop in self._band_edges])
        steps_t = torch.tensor([stop - start for start, stop in self._time_edges])
        return (self._sums / (bands_f[:, None] * steps_t)[None, :, :, None]).float().flatten(1)

    def _add_to_blocks(self, piece_LTND: Tensor, start: int, stop: int) -> None:
        for t, (first, last) in enumerate(self._time_edges):
            if first >= stop or last <= start:
                continue
            steps_LTND = piece_LTND[:, max(first - start, 0) : last - start].double()  # the block's steps in this piece
            for f, (low, high) in enumerate(self._band_edges):
                self._sums[:, f, t] += steps_LTND[:, :, low:high].sum((1, 2))


def block_edges(blocks: int, length: int) -> list[tuple[int, int]]:
    """Returns [start, stop) of each block, as in adaptive average pooling; neighbours may share a cell."""
    return [(i * length // blocks, -(-(i + 1) * length // blocks)) for i in range(blocks)]

"""Frozen features for probes: all in memory, or read from the store by batch if they do not fit.

Frames of all layers of a corpus take tens to hundreds of gigabytes (GTZAN with 13 layers of 768 at 75 frames/s: 42 GB
of float16). They stay in the store, and each batch is read, converted and standardised when needed. Both ways give the
same values to the last bit: memory affects speed only.

Legend: L layers, N slices, T frames, D width, S seeds, B slices in a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distributed.marble.datasets.corpus import Slice
from distributed.marble.features.features import FeatureKind, FeatureSet

# frames per chunk when all slices of a split are read in order
FRAMES_AT_ONCE = 8192
CPU_RESIDENT_BYTES = 4 << 30
GPU_RESIDENT_SHARE = 0.25


@dataclass(frozen=True)
class Features:
    """Features of some slices in memory, [L, N, T, D]; any float type."""

    values_LNTD: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """L, N, T, D."""
        layers, slices, frames, width = self.values_LNTD.shape
        return layers, slices, frames, width

    @property
    def device(self) -> torch.device:
        """Device of the returned rows."""
        return self.values_LNTD.device

    def rows(self, index: Tensor | slice) -> Tensor:
        """Returns a range of slices, or those of an index of any shape, [L, *index, T, D]."""
        return self.values_LNTD[:, index]

    def layers(self, start: int, stop: int) -> "Features":
        """Returns a range of layers."""
        return Features(self.values_LNTD[start:stop])

    def standardised(self, mean_LD: Tensor, scale_LD: Tensor) -> "Features":
        """Returns centred and scaled features, float32."""
        return Features(standardise_features(self.values_LNTD, mean_LD, scale_LD))


@dataclass(frozen=True)
class StoredFeatures:
    """Features of some slices in the store, with the methods of `Features`."""

    store: FeatureSet
    slices: Sequence[Slice]
    kind: FeatureKind  # "pooled" for time means of every layer, or "frames"
    of_layers: range  # range of layers to read
    device: torch.device
    statistics: tuple[Tensor, Tensor] | None = None  # mean and scale [L, D] of these layers; None: values as stored

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """L, N, T, D."""
        _, frames, width = self.store.shape(self.kind)
        return len(self.of_layers), len(self.slices), frames, width

    def rows(self, index: Tensor | slice) -> Tensor:
        """Returns a range of slices, or those of an index of any shape, [L, *index, T, D]."""
        if isinstance(index, slice):
            return self._read(self.slices[index])
        # seeds draw in different orders: read a slice once, even if several seeds want it
        wanted, position = index.cpu().unique(return_inverse=True)
        values_LNTD = self._read([self.slices[i] for i in wanted.tolist()])
        return values_LNTD[:, position.to(self.device)]

    def layers(self, start: int, stop: int) -> "StoredFeatures":
        """Returns a range of layers."""
        statistics = self.statistics and (self.statistics[0][start:stop], self.statistics[1][start:stop])
        return replace(self, of_layers=self.of_layers[start:stop], statistics=statistics)

    def standardised(self, mean_LD: Tensor, scale_LD: Tensor) -> "StoredFeatures":
        """Returns features that are centred and scaled when read, float32."""
        return replace(self, statistics=(mean_LD, scale_LD))

    def _read(self, slices: Sequence[Slice]) -> Tensor:
        values_LNTD = self.store.read(slices, self.kind, layers=self.of_layers).to(self.device)
        return values_LNTD if self.statistics is None else standardise_features(values_LNTD, *self.statistics)


FrozenFeatures = Features | StoredFeatures


def open_features(
    store: FeatureSet, slices: Sequence[Slice], *, framed: bool, layers: range | None, device: torch.device
) -> FrozenFeatures:
    """Returns features of some slices and layers (None: all), in memory if they fit as float32."""
    kind: FeatureKind = "frames" if framed else "pooled"
    wanted = range(store.shape(kind)[0]) if layers is None else layers
    stored = StoredFeatures(store, slices, kind, wanted, device)
    count, num_slices, frames, width = stored.shape
    on_gpu = device.type == "cuda"
    most = GPU_RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0] if on_gpu else CPU_RESIDENT_BYTES
    if 4 * count * num_slices * frames * width > int(most):  # bytes of float32
        return stored
    return Features(stored.rows(slice(None)).contiguous())


def spans(features: FrozenFeatures) -> Iterator[Tensor]:
    """Yields all slices in order, in chunks [L, n, T, D] of some thousand frames."""
    _, slices, frames, _ = features.shape
    step = max(1, FRAMES_AT_ONCE // frames)  # slices per chunk
    for start in range(0, slices, step):
        yield features.rows(slice(start, start + step))


def statistics_of(features: FrozenFeatures) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation [L, D] over slices and frames."""
    layers, slices, frames, width = features.shape
    total_LD = torch.zeros(layers, width, dtype=torch.float64, device=features.device)
    squares_LD = torch.zeros_like(total_LD)
    for x_LNTD in spans(features):
        # float64, because the difference of squares below cancels
        x_LND = x_LNTD.double().flatten(1, 2)
        total_LD += x_LND.sum(1)
        squares_LD += x_LND.square().sum(1)
    mean_LD = total_LD / (slices * frames)
    spread_LD = (squares_LD / (slices * frames) - mean_LD.square()).clamp_min(0).sqrt()
    # a constant dimension has no information; dividing by its rounding error would amplify noise
    scale_LD = torch.where(spread_LD > 1e-6 * (1 + mean_LD.abs()), spread_LD, torch.ones_like(spread_LD))
    return mean_LD.float(), scale_LD.float()


def standardise_features(x_LNTD: Tensor, mean_LD: Tensor, scale_LD: Tensor) -> Tensor:
    """Returns the features centred and scaled, float32."""
    return x_LNTD.float().sub(mean_LD[:, None, None, :]).div_(scale_LD[:, None, None, :])

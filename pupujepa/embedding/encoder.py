"""Embeddings from audio of 40 ms to hours, in memory that does not grow with the length.

Long audio is encoded in windows of the training crop's length. They overlap by half and are blended with triangular
weights; the last one is moved back to end with the clip, so that every window has full context. Only audio shorter than
a window gives a shorter grid, which length-exact rotary positions handle exactly. Silence fills up the last patch.

The result of `frames` does grow: 25 rows a second of 8 D values, 2.9 GB an hour for Large. `Encoder.stream` yields the
same rows piece by piece.

Shapes: B batch of windows, S samples, T frames (of LTND: time steps), F mel bands, N patches (of LTND: bands of
patches), D width, L layers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pupujepa.audio.clip import Audio, Clip, clip_of, log_mel_of_clip
from pupujepa.audio.log_mel import FrontendConfig, normalise
from pupujepa.audio.read import AudioError
from pupujepa.embedding.readout import Readout, RunningReadout, block_edges, layout, parse_readout
from pupujepa.errors import UserError
from pupujepa.model.model import PupuJEPA, resolve_layers
from pupujepa.precision import usable_device

# a clip of exactly one patch may lose a sample to the rounding of its rate
_SHORTEST_TOLERANCE = 0.995


@dataclass(frozen=True)
class Embedding:
    """Features of one clip, or of a stretch of it, float32 on the CPU.

    values: for readout frames [steps, bands * D] at 25 Hz, else [width]; with a leading axis if layers were given.
    times_s: centres of the time steps, or of the region's blocks in time, in seconds from the start of the clip.
    layers: layer indices of the values, 0 = patch embedding.
    """

    values: NDArray[np.float32]
    times_s: NDArray[np.float64]
    layers: tuple[int, ...]
    readout: str


class Encoder:
    """Encoder of audio into frozen features of a PupuJEPA.

    A window's features do not depend on the rest of its batch. The batch size changes them only where the device's
    matrix products choose their order of summation by the number of rows, and then within the precision's rounding.

    Args:
        model: is set to evaluation mode.
        device: target device of the model; None does not move it.
        autocast_dtype: torch.bfloat16 halves the time on hardware that has it; None computes in float32.
        batch_size: windows encoded together.

    Raises:
        UserError: a batch without windows, or a device that cannot be used here.
    """

    def __init__(
        self,
        model: PupuJEPA,
        *,
        device: str | torch.device | None = None,
        autocast_dtype: torch.dtype | None = None,
        batch_size: int = 8,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1")
        self.model = model.to(None if device is None else usable_device(device)).eval()
        self.device = model.patch_embed.proj.weight.device  # with its index: cuda has become cuda:0
        self.autocast_dtype = autocast_dtype
        self.batch_size = batch_size

    @property
    def frontend(self) -> FrontendConfig:
        """The front end of the weights."""
        return self.model.frontend

    @property
    def step_s(self) -> float:
        """Seconds of audio per time step of the grid: 0.04 for the released models."""
        return self.model.config.patch_frames / self.frontend.frames_per_s

    def encode(
        self,
        audio: Audio,
        sample_rate_hz: float | None = None,
        *,
        readout: Readout = "frames",
        layers: Sequence[int] | None = None,
        which: str = "teacher",
    ) -> Embedding:
        """Encodes one clip.

        Args:
            audio: a path or an open binary file, samples [S] or [channels, S] of full scale 1, a pair (samples, rate),
                a dict {"array", "sampling_rate"}, or a clip at the front end's rate.
            sample_rate_hz: of samples that come without their rate.
            readout: "frames", "mean" or ("region", f, t); see readout.py.
            layers: None gives the last one without a leading axis.
            which: "teacher" or "student".

        Raises:
            UserError: audio that is unreadable, empty, not finite or shorter than 40 ms, an unknown readout or layer.
        """
        chosen = self._chosen(layers, which)  # a wrong request fails before any audio is read
        config = self.model.config
        spec = parse_readout(readout, bands=config.grid_bands)
        clip = self._open(audio, sample_rate_hz)
        steps = self._steps(clip)
        if spec.time_blocks > steps:
            raise UserError(f"readout {spec} asks for more blocks in time than the clip's {steps} steps")
        running = RunningReadout(spec, steps=steps, bands=config.grid_bands, layers=len(chosen), width=config.width)
        for piece_LTND in self._pieces(clip, steps, layers=chosen, which=which):
            running.add(piece_LTND)
        values = running.finish().numpy()
        blocks = steps if spec.name == "frames" else spec.time_blocks
        times_s = np.array(block_edges(blocks, steps), dtype=np.float64).mean(1) * self.step_s
        return Embedding(values[0] if layers is None else values, times_s, tuple(chosen), str(spec))

    def stream(
        self,
        audio: Audio,
        sample_rate_hz: float | None = None,
        *,
        layers: Sequence[int] | None = None,
        which: str = "teacher",
    ) -> Iterator[Embedding]:
        """Yields the frames of `encode` in consecutive stretches of about five seconds, holding one batch.

        Arguments are those of `encode`.

        Raises:
            UserError: as `encode` does, but errors within a file only when it is read that far.
        """
        chosen = self._chosen(layers, which)
        clip = self._open(audio, sample_rate_hz)
        seen = 0
        for piece_LTND in self._pieces(clip, self._steps(clip), layers=chosen, which=which):
            values = piece_LTND.flatten(2).numpy()
            times_s = (np.arange(seen, seen + values.shape[1], dtype=np.float64) + 0.5) * self.step_s
            seen += values.shape[1]
            yield Embedding(values[0] if layers is None else values, times_s, tuple(chosen), "frames")

    @torch.no_grad()
    def encode_mel(
        self, mel_BTF: Tensor, *, which: str = "teacher", layers: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Encodes normalised spectrograms of one length, `batch_size` at a time.

        Returns:
            For each layer (None: all L + 1) a float32 tensor [B, steps, bands * D] on the encoder's device.
        """
        bands = self.model.config.grid_bands
        parts = [
            [layout(state, bands=bands) for state in self._states(mel, which=which, layers=layers)]
            for mel in mel_BTF.split(self.batch_size)
        ]
        return [torch.cat(states) for states in zip(*parts, strict=True)]

    @property
    def _samples_per_step(self) -> int:
        return self.model.config.patch_frames * self.frontend.hop_samples

    def _steps(self, clip: Clip) -> int:
        return -(-clip.samples // self._samples_per_step)

    def _chosen(self, layers: Sequence[int] | None, which: str) -> list[int]:
        """Returns the layers' indices."""
        self.model.encoder(which)  # raises for an unknown name
        if layers is not None and not len(layers):
            raise UserError("layers is empty, so nothing would be returned; give at least one, or None for the last")
        return resolve_layers([-1] if layers is None else layers, self.model.config.depth)

    def _states(self, mel_BTF: Tensor, *, which: str, layers: Sequence[int] | None) -> list[Tensor]:
        with torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None):
            states = self.model.encode(mel_BTF.to(self.device), which=which, layers=layers)
        return [state.float() for state in states]

    def _open(self, audio: Audio, sample_rate_hz: float | None) -> Clip:
        """Returns mono audio at the front end's rate."""
        clip = clip_of(audio, sample_rate_hz, to_hz=self.frontend.sample_rate_hz)
        if clip.samples < self._samples_per_step * _SHORTEST_TOLERANCE:
            raise AudioError(
                f"{clip.origin}: {1000 * clip.samples / self.frontend.sample_rate_hz:.1f} ms of audio is shorter than "
                f"one patch ({1000 * self.step_s:g} ms); give a longer clip"
            )
        return clip

    @torch.no_grad()
    def _pieces(self, clip: Clip, steps: int, *, layers: list[int], which: str) -> Iterator[Tensor]:
        """Yields consecutive stretches [L, steps, bands, D] of the blended grid."""
        window_steps = min(self.model.config.grid_steps, steps)
        starts = window_starts(steps, window_steps)
        fade = CrossFade(starts, window_steps)
        remaining = iter(starts)
        while batch := list(islice(remaining, self.batch_size)):
            mel_BTF = torch.cat([self._mel(clip, start, window_steps, steps) for start in batch])
            states = [state.cpu() for state in self._states(mel_BTF, which=which, layers=layers)]  # L times [B, N, D]
            for i in range(len(batch)):
                window_LND = torch.stack([state[i] for state in states])
                yield fade.add(window_LND.unflatten(1, (window_steps, self.model.config.grid_bands)))

    def _mel(self, clip: Clip, start_step: int, window_steps: int, steps: int) -> Tensor:
        """Returns the normalised spectrogram [1, T, F] of one window; silence fills the clip up to `steps`."""
        config, frames = self.model.config, self.model.config.patch_frames
        samples = steps * self._samples_per_step
        mel_BTF = log_mel_of_clip(
            clip, start_step * frames, window_steps * frames, samples=samples, config=self.frontend
        )
        return normalise(mel_BTF, config.mel_mean, config.mel_std)


def window_starts(steps: int, window_steps: int) -> list[int]:
    """Returns the first steps of windows that overlap by half, the last one possibly by more."""
    hop = max(window_steps // 2, 1)
    starts = list(range(0, steps - window_steps, hop))
    return [*starts, steps - window_steps]  # range excludes this last one, so it comes exactly once


class CrossFade:
    """Blend of overlapping windows, added in order; it holds only steps of later windows."""

    def __init__(self, starts: Sequence[int], window_steps: int) -> None:
        self._starts = list(starts)
        self._taken = 0
        ramp = torch.arange(1, window_steps + 1, dtype=torch.float32)
        self._weights = torch.minimum(ramp, ramp.flip(0))  # a triangle that is nowhere 0, so no sum of weights is 0
        self._sum: Tensor | None = None
        self._weight_sum = torch.zeros(0)

    def add(self, window_LTND: Tensor) -> Tensor:
        """Adds the next window [L, window_steps, bands, D] and returns the steps that are now final."""
        weighted = window_LTND * self._weights[:, None, None]
        if self._sum is None:
            total, weight = weighted, self._weights
        else:
            held = self._sum.shape[1]
            total = torch.cat([self._sum + weighted[:, :held], weighted[:, held:]], dim=1)
            weight = torch.cat([self._weight_sum + self._weights[:held], self._weights[held:]])
        start = self._starts[self._taken]
        self._taken += 1
        last = self._taken == len(self._starts)
        final = len(self._weights) if last else self._starts[self._taken] - start
        self._sum, self._weight_sum = total[:, final:], weight[final:]
        return total[:, :final] / weight[:final, None, None]

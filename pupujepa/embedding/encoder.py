"""Embeddings from audio: any rate, mono or stereo, 40 ms to hours, in memory that does not grow with the length.

Long audio is encoded in windows of the training crop's length, overlapping by half and cross-faded (windows.py), in
batches. Only audio shorter than one window gives a shorter grid, which length-exact rotary positions handle exactly.
Audio is filled up with silence to a whole patch (40 ms).

What an array of `frames` needs does grow: 25 rows a second of 8 D values, 2.9 GB an hour for Large. `Encoder.stream`
gives the same rows piece by piece.

Shapes: B batch of windows, S samples, T frames (of LTND: time steps), F mel bands, N patches (of LTND: those of a time
step), D width, L layers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pupujepa.audio.clip import Clip, clip_of_file, clip_of_samples
from pupujepa.audio.log_mel import FrontendConfig, frame_span, log_mel_of_span, normalise
from pupujepa.audio.read import AudioError
from pupujepa.devices import usable_device
from pupujepa.embedding.readout import Readout, RunningReadout, block_edges, layout, parse_readout
from pupujepa.embedding.windows import CrossFade, window_starts
from pupujepa.errors import UserError
from pupujepa.model.model import PupuJEPA, resolve_layers

Audio = str | Path | NDArray | Tensor | Clip

# A clip of exactly one patch may lose a sample to the rounding of its rate.
_SHORTEST_TOLERANCE = 0.995


@dataclass(frozen=True)
class Embedding:
    """Features of one clip, or of a stretch of it, float32 on the CPU.

    values: for readout frames [steps, bands * D] at 25 Hz, else [width]; with a leading axis when several layers were
        asked for.
    times_s: centres of the time steps, or of the region's blocks in time, in seconds from the start of the clip.
    layers: layer indices that values holds, 0 = patch embedding.
    """

    values: NDArray[np.float32]
    times_s: NDArray[np.float64]
    layers: tuple[int, ...]
    readout: str


class Encoder:
    """Turns audio into frozen features of a PupuJEPA.

    A window's features depend on nothing else in its batch. The batch size changes them by no more than the order of
    summation in the device's matrix products: not at all where kernels do not choose by the number of rows (float32 and
    bfloat16 on the CPU of the benchmarks), elsewhere by the rounding of the precision.

    Args:
        model: is set to evaluation mode.
        device: where to move the model; None leaves it where it is.
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
        self.device = model.patch_embed.proj.weight.device
        self.autocast_dtype = autocast_dtype
        self.batch_size = batch_size

    @property
    def frontend(self) -> FrontendConfig:
        """The front end that belongs to the weights."""
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
            audio: a file, or samples [S] or [channels, S], full scale 1, or a clip at the front end's rate.
            sample_rate_hz: of the samples; not needed for a file or a clip, which knows its own.
            readout: "frames", "mean" or ("region", f, t); see readout.py.
            layers: which layers; None gives the last one without a leading axis.
            which: "teacher" or "student".

        Raises:
            UserError: audio that is unreadable, empty, not finite or shorter than 40 ms, an unknown readout or layer.
        """
        chosen = self._chosen(layers, which)
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
        """Yields the frames of `encode` in consecutive stretches of about five seconds, holding no more than a batch.

        Arguments are those of `encode`.

        Raises:
            UserError: as `encode` does; of what is wrong far into a file, when that is reached.
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
        """Returns the layers' indices; what is wrong with the request is said before any audio is read."""
        self.model.encoder(which)
        if layers is not None and not len(layers):
            raise UserError("layers is empty, so there is nothing to return; name at least one, or None for the last")
        return resolve_layers([-1] if layers is None else layers, self.model.config.depth)

    def _states(self, mel_BTF: Tensor, *, which: str, layers: Sequence[int] | None) -> list[Tensor]:
        with torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None):
            states = self.model.encode(mel_BTF.to(self.device), which=which, layers=layers)
        return [state.float() for state in states]

    def _open(self, audio: Audio, sample_rate_hz: float | None) -> Clip:
        """Returns mono audio at the front end's rate."""
        if isinstance(audio, Clip):
            clip = audio
        elif isinstance(audio, (str, Path)):
            clip = clip_of_file(Path(audio), self.frontend.sample_rate_hz, declared_hz=sample_rate_hz)
        elif sample_rate_hz is None:
            raise UserError("sample_rate_hz is missing; it is needed for audio given as samples")
        else:
            clip = clip_of_samples(_as_array(audio), sample_rate_hz, self.frontend.sample_rate_hz)
        if clip.samples < self._samples_per_step * _SHORTEST_TOLERANCE:
            raise AudioError(
                f"{clip.origin}: {1000 * clip.samples / self.frontend.sample_rate_hz:.1f} ms of audio is shorter than "
                f"one patch ({1000 * self.step_s:g} ms), so there is nothing to encode; give a longer clip"
            )
        return clip

    @torch.no_grad()
    def _pieces(self, clip: Clip, steps: int, *, layers: list[int], which: str) -> Iterator[Tensor]:
        """Yields finished stretches [L, steps, bands, D] of the cross-faded grid in order."""
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
        """Returns the normalised spectrogram [1, T, F] of one window of a clip that is filled up to `steps`."""
        config, frames = self.model.config, self.model.config.patch_frames
        start, stop = frame_span(start_step * frames, window_steps * frames, self.frontend)
        samples = steps * self._samples_per_step
        first = max(start, 0)
        audio_BS = clip.read(first, min(stop, samples))[None]
        span_BS = functional.pad(audio_BS, (first - start, max(stop - samples, 0)), mode="reflect")
        return normalise(log_mel_of_span(span_BS, self.frontend), config.mel_mean, config.mel_std)


def _as_array(audio: NDArray | Tensor) -> NDArray:
    if isinstance(audio, Tensor):
        audio = audio.detach().cpu()
        return (audio.float() if audio.is_floating_point() else audio).numpy()  # numpy has no bfloat16
    return audio

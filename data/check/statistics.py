"""Statistics of a shard set: mean, deviation, silence, track lengths, mel profile.

  python -m data stats shards/train
  python -m data stats s3://bucket/scores/train --png profile.png

Run it before a long training: a constant band, much silence, or a mean far from the manifest's means broken data.
"""

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.shards.format import decode_mel, index_name, read_index, read_sample
from data.shards.manifest import Manifest, read_manifest
from data.store.files import local_copy
from data.store.store import open_store
from pupujepa.audio.log_mel import FrontendConfig, mel_filter_bank
from pupujepa.progress import Progress

# a frame whose loudest band is below 1e-4 in mel magnitude, 80 dB under a sine of full scale
_SILENT_LOG_MEL = float(np.log(1e-4))
_HISTOGRAM_BINS = 12
_BAR_CHARACTERS = 40
_BANDS_PER_ROW = 16


class Moments:
    """Sums over all frames so far, float64 per mel band."""

    def __init__(self, mel_bands: int):
        self.frames = 0
        self.sum_F = np.zeros(mel_bands)
        self.sum_of_squares_F = np.zeros(mel_bands)

    def add(self, mel_TF: NDArray[np.float32]) -> None:
        """Adds the frames of a log-mel spectrogram [T, F]."""
        wide_TF = mel_TF.astype(np.float64)  # float32 sums lose digits over a corpus
        self.frames += len(mel_TF)
        self.sum_F += wide_TF.sum(0)
        self.sum_of_squares_F += np.square(wide_TF).sum(0)

    @property
    def band_means(self) -> NDArray[np.float64]:
        """Mean of each band."""
        return self.sum_F / self.frames

    @property
    def band_stds(self) -> NDArray[np.float64]:
        """Standard deviation of each band."""
        return np.sqrt(np.maximum(self.sum_of_squares_F / self.frames - np.square(self.band_means), 0.0))

    @property
    def mean(self) -> float:
        """Mean of all values."""
        return float(self.band_means.mean())

    @property
    def std(self) -> float:
        """Standard deviation of all values."""
        mean_of_squares = self.sum_of_squares_F.sum() / (self.frames * len(self.sum_F))
        return float(np.sqrt(max(mean_of_squares - self.mean**2, 0.0)))


@dataclass(frozen=True)
class Statistics:
    """Statistics of a shard set.

    Args:
        moments: over all frames, by band.
        silent_frames: frames whose loudest band is below ln 1e-4.
        floor_values: values at the floor of the front end.
        seconds_of_track: audio of each track in this set.
        seconds_of_source: of each collection.
    """

    manifest: Manifest
    moments: Moments
    silent_frames: int
    floor_values: int
    seconds_of_track: dict[str, float]
    seconds_of_source: dict[str, float]

    @property
    def silence_share(self) -> float:
        """Share of silent frames, 0..1."""
        return self.silent_frames / self.moments.frames

    @property
    def floor_share(self) -> float:
        """Share of values at the floor, 0..1."""
        return self.floor_values / (self.moments.frames * len(self.moments.sum_F))


def measure_set(url: str) -> Statistics:
    """Returns the statistics of all samples of the set at `url`.

    Raises:
        ManifestError: no shard set. ShardError: a damaged sample. StoreError: the store cannot be read.
    """
    manifest, store = read_manifest(url), open_store(url)
    moments = Moments(int(manifest.frontend["mel_bands"]))
    silent = floor = 0
    tracks: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    lowest = manifest.lo + (manifest.hi - manifest.lo) / 510  # what rounds to the lowest code
    with Progress(manifest.samples, title=f"stats {url}", unit="samples") as progress:
        for entry in manifest.shards:
            index = read_index(store.read(index_name(entry.name)), expected_sha256=entry.index_sha256)
            with local_copy(store, entry.name) as file:
                content = file.read_bytes()
            for position in range(len(index)):
                stored_TF, info = read_sample(content, index, position)
                mel_TF = decode_mel(stored_TF, lo=manifest.lo, hi=manifest.hi)
                moments.add(mel_TF)
                silent += int((mel_TF.max(1) < _SILENT_LOG_MEL).sum())
                floor += int((mel_TF <= lowest).sum())
                tracks[info["track"]] += info["duration_s"]
                sources[info["source"]] += info["duration_s"]
                progress.advance()
    return Statistics(manifest, moments, silent, floor, dict(tracks), dict(sources))


def to_text(statistics: Statistics) -> str:
    """Returns the statistics as a page of plain text."""
    manifest, moments = statistics.manifest, statistics.moments
    seconds = np.array(list(statistics.seconds_of_track.values()))
    lines = [
        f"split {manifest.split}, {manifest.dtype}: {manifest.audio_hours:.2f} h of {len(seconds)} tracks, "
        f"{manifest.samples} samples in {len(manifest.shards)} shards, {manifest.clipped_values} values clipped",
        f"mean {moments.mean:.4f}, std {moments.std:.4f} (in training: {manifest.mean:.4f}, {manifest.std:.4f})",
        f"silent frames {statistics.silence_share:.2%}, values at the floor {statistics.floor_share:.2%}",
        "",
        f"track length: median {np.median(seconds):.1f} s, {seconds.min():.1f} to {seconds.max():.1f} s",
        *_histogram(seconds),
        "",
        "source",
        *(f"  {s / 3600:9.2f} h  {name}" for name, s in _largest_first(statistics.seconds_of_source)),
        "",
        "mel bands            centre       mean     std   mean from floor to ceiling",
        *_profile(statistics),
    ]
    return "\n".join(lines) + "\n"


def draw(statistics: Statistics, file: Path) -> None:
    """Writes the profile over the bands and the track lengths as a PNG."""
    from matplotlib.figure import Figure

    moments = statistics.moments
    bands = np.arange(len(moments.band_means))
    figure = Figure(figsize=(11, 4), layout="constrained")
    profile, lengths = figure.subplots(1, 2)
    profile.fill_between(
        bands, moments.band_means - moments.band_stds, moments.band_means + moments.band_stds, alpha=0.25
    )
    profile.plot(bands, moments.band_means)
    profile.axhline(moments.mean, linestyle=":", color="grey")
    profile.set(xlabel="mel band", ylabel="log-mel (natural log)", title="mean and deviation of each band")
    lengths.hist(list(statistics.seconds_of_track.values()), bins=_HISTOGRAM_BINS)
    lengths.set(xlabel="seconds", ylabel="tracks", title="track length")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def _largest_first(shares: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(shares.items(), key=lambda item: (-item[1], item[0]))


def _histogram(seconds: NDArray[np.float64]) -> list[str]:
    if seconds.max() - seconds.min() < 1.0:
        return []  # all in one bar
    counts, edges = np.histogram(seconds, bins=_HISTOGRAM_BINS)
    return [
        f"  {low:8.1f} - {high:8.1f} s {count:7d}  {'#' * round(_BAR_CHARACTERS * count / counts.max())}"
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def _profile(statistics: Statistics) -> list[str]:
    """Returns one line per row of patches (16 bands)."""
    manifest, moments = statistics.manifest, statistics.moments
    config = FrontendConfig(**manifest.frontend)
    filters_KF = mel_filter_bank(config).numpy().astype(np.float64)
    bins_hz = np.linspace(0, config.sample_rate_hz / 2, len(filters_KF))  # [K]
    centres_hz = (bins_hz @ filters_KF) / filters_KF.sum(0)  # centre of gravity of each filter, [F]
    lines = []
    for start in range(0, len(moments.band_means), _BANDS_PER_ROW):
        row = slice(start, start + _BANDS_PER_ROW)
        mean = moments.band_means[row].mean()
        # of all values of the bands
        std = np.sqrt(np.mean(np.square(moments.band_stds[row]) + np.square(moments.band_means[row] - mean)))
        filled = round(_BAR_CHARACTERS * (mean - manifest.lo) / (manifest.hi - manifest.lo))
        centre_hz = centres_hz[row].mean()
        stop = min(row.stop, len(moments.band_means)) - 1
        lines.append(f"  {start:3d} - {stop:3d}       {centre_hz:8.0f} Hz   {mean:7.3f} {std:7.3f}   {'#' * filled}")
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares `stats`."""
    parser.add_argument("url", metavar="URL", help="folder of one split: path, file:// or s3://")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the profile and the track lengths too")


def run(args: argparse.Namespace) -> int:
    """Measures and shows."""
    statistics = measure_set(args.url)
    sys.stdout.write(to_text(statistics))
    if args.png:
        draw(statistics, args.png)
    return 0

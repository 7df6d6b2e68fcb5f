"""Features of a track: audio to stored log-mel parts. Shapes: S samples, T frames, F bands."""

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from data.building.tracks import SilentError, SourceTrack, TooShortError
from data.shards.format import decode_mel, encode_mel, npy_bytes
from pupujepa.audio.clip import Clip, log_mel_of_clip, measured_clip, mixed_blocks, resampled
from pupujepa.audio.log_mel import LOG_FLOOR, FrontendConfig, frontend_digest
from pupujepa.audio.source import AudioSource
from pupujepa.errors import UserError

# No audio within [-1, 1] has a log-mel above 2.7091: |X_k| <= max over phi of sum_n w_n |cos(2 pi k n / N + phi)| for
# every bin k, and mel filters are sums of bins; the loudest signals found by search reach 2.602. Lossy decoders may
# exceed full scale: higher values are clipped to this and counted.
LOG_CEILING = 2.71
# -80 dB of full scale: digital silence and dither
SILENT_PEAK = 1e-4
_FRAMES_AT_ONCE = 1024
# lists round the ends of stretches; a file that ends earlier is the wrong file
_END_TOLERANCE_S = 0.1


@dataclass(frozen=True)
class FeatureConfig:
    """Settings of the features.

    Args:
        dtype: "uint8" or "float16".
        part_frames: a track is cut into ceil(T / part_frames) nearly equal parts.
        min_frames: shorter tracks are rejected.
        lo, hi: range of the uint8 codes.
    """

    dtype: str = "uint8"
    part_frames: int = 3072
    min_frames: int = 256
    lo: float = LOG_FLOOR
    hi: float = LOG_CEILING
    frontend: FrontendConfig = field(default_factory=FrontendConfig)

    @property
    def digest(self) -> str:
        """Identity of the parts that these settings make of equal audio."""
        facts = {**asdict(self), "frontend": frontend_digest(self.frontend)}
        return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class FeaturePart:
    """One stored part of a track: frames [start_frame, start_frame + frames), and its .npy in the spool."""

    start_frame: int
    frames: int
    offset: int
    bytes: int
    crc32: int


@dataclass(frozen=True)
class TrackFacts:
    """Outcome of a track.

    Args:
        rejected: reason for leaving the track out, or "".
        kind: of the reason, one of those in tracks.py; "" if the track is used.
        note: remark on a track that is used, such as a length other than announced; or "".
        total, total_of_squares: sums over all decoded values, float64.
        clipped: values above the ceiling.
        audio_sha256: of the decoded audio; "" if rejected.
    """

    rejected: str
    parts: tuple[FeaturePart, ...] = ()
    total: float = 0.0
    total_of_squares: float = 0.0
    clipped: int = 0
    audio_sha256: str = ""
    kind: str = ""
    note: str = ""

    @property
    def frames(self) -> int:
        """Frames of all parts."""
        return sum(part.frames for part in self.parts)


def extract(
    path: Path,
    config: FeatureConfig,
    *,
    into: BinaryIO,
    start_s: float = 0.0,
    end_s: float | None = None,
    origin: str | None = None,
) -> TrackFacts:
    """Writes the .npy files of all parts, one after the other, and returns the facts about them.

    Its memory does not grow with the length of the audio.

    Args:
        start_s, end_s: the stretch of the file that is the track.
        origin: name of the audio in messages; default: the path.

    Raises:
        TooShortError, SilentError: whole audio that makes no track.
        UserError: the file cannot be decoded, is empty, has NaN, or ends before the stretch.
        UnreadableError: it cannot be read now.
    """
    origin = str(path) if origin is None else origin
    duration_s = None if end_s is None else end_s - start_s
    frontend = config.frontend
    heard = _Heard()

    def decode(source: AudioSource) -> Iterator[NDArray[np.float32]]:
        nonlocal heard
        heard = _Heard(source.rate_hz)  # audio of more than five minutes is decoded twice
        samples = None if duration_s is None else round(duration_s * source.rate_hz)
        blocks = mixed_blocks(source, first=round(start_s * source.rate_hz), samples=samples)
        return resampled(heard.listen(blocks), source.rate_hz, frontend.sample_rate_hz)

    clip = measured_clip(path, decode, start_s=start_s, origin=origin)
    if duration_s is not None and heard.samples < (duration_s - _END_TOLERANCE_S) * heard.rate_hz:
        end = start_s + heard.samples / heard.rate_hz
        raise UserError(f"{origin}: the file ends at {end:.2f} s; correct start or end")
    if heard.peak < SILENT_PEAK:
        raise SilentError(f"{origin}: silent (peak below {SILENT_PEAK:g} of full scale)")
    frames = clip.samples // frontend.hop_samples  # a last part of a hop is dropped
    if frames < config.min_frames or clip.samples <= frontend.padding_samples:
        per_s = frontend.frames_per_s
        raise TooShortError(
            f"{origin}: too short ({frames} frames = {frames / per_s:.2f} s, fewer than {config.min_frames} = "
            f"{config.min_frames / per_s:.2f} s)"
        )
    audio_sha256 = heard.digest.hexdigest()
    return replace(_write_parts(clip, frames, config, into=into), audio_sha256=audio_sha256, note=clip.note)


class _Heard:
    """Length, peak and digest of audio before its resampling; digests of wav and flac are equal."""

    def __init__(self, rate_hz: int = 0) -> None:
        self.rate_hz, self.samples, self.peak = rate_hz, 0, 0.0
        self.digest = sha256(f"{rate_hz} Hz".encode())

    def listen(self, blocks: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        """Yields the blocks [S]."""
        for block_S in blocks:
            self.samples += len(block_S)
            self.peak = max(self.peak, float(np.abs(block_S).max()))
            self.digest.update(block_S.data)
            yield block_S


def _write_parts(clip: Clip, frames: int, config: FeatureConfig, *, into: BinaryIO) -> TrackFacts:
    parts: list[FeaturePart] = []
    total = total_of_squares = 0.0
    clipped = offset = 0
    for start, stop in cut_evenly(frames, config.part_frames):
        with torch.inference_mode():
            # with context of neighbouring parts; in pieces, because a part's spectrum alone takes 50 MB
            pieces = [
                log_mel_of_clip(clip, start + first, last - first, samples=clip.samples, config=config.frontend)[0]
                for first, last in cut_evenly(stop - start, _FRAMES_AT_ONCE)
            ]
        mel_TF = torch.cat(pieces).numpy()
        if not np.isfinite(mel_TF).all():
            raise UserError(f"{clip.origin}: samples far beyond full scale, whose spectrum is not finite; repair it")
        clipped += int((mel_TF > config.hi).sum()) if config.dtype == "uint8" else 0
        stored_TF = encode_mel(mel_TF, config.dtype, lo=config.lo, hi=config.hi)
        # moments of what training will read
        decoded_TF = decode_mel(stored_TF, lo=config.lo, hi=config.hi).astype(np.float64)
        total += float(decoded_TF.sum())
        total_of_squares += float(np.square(decoded_TF).sum())
        piece = npy_bytes(stored_TF)
        into.write(piece)
        parts.append(FeaturePart(start, stop - start, offset, len(piece), zlib.crc32(piece)))
        offset += len(piece)
    return TrackFacts("", tuple(parts), total, total_of_squares, clipped)


def cut_evenly(frames: int, part_frames: int) -> list[tuple[int, int]]:
    """Returns (start, stop) of ceil(frames / part_frames) parts whose lengths differ by at most one."""
    count = -(-frames // part_frames)
    edges = [frames * i // count for i in range(count + 1)]
    return list(pairwise(edges))


def sample_info(track: SourceTrack, uid: str, *, part: FeaturePart, frames_per_s: float) -> Mapping[str, Any]:
    """Returns the JSON member of a sample."""
    info: dict[str, Any] = {
        "uid": uid,
        "track": track.track,
        "source": track.source,
        "start_s": part.start_frame / frames_per_s,
        "duration_s": part.frames / frames_per_s,
        "frames": part.frames,
    }
    return info if track.labels is None else {**info, "labels": dict(track.labels)}

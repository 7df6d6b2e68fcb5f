"""Audio file -> stored log-mel parts, one file at a time, spooled so that a killed build goes on where it was.

A track's parts lie in `<spool>/<id>.parts`, its facts in `<spool>/<id>.json`, which is written second: it exists if and
only if the track is done. The id is a digest of all that the result depends on. Shapes: S samples, T frames, F bands.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.corpus import Track
from data.shards import decode_mel, encode_mel, npy_bytes
from pupujepa.audio import read_audio, resample
from pupujepa.durable import atomic_file
from pupujepa.errors import UserError
from pupujepa.frontend import LOG_FLOOR, FrontendConfig, frontend_digest, log_mel_slice

# No audio within [-1, 1] has a log-mel above 2.7091: |X_k| <= max over phi of sum_n w_n |cos(2 pi k n / N + phi)| for
# every bin k, and the mel filters are sums of bins; the loudest signals that a search found reach 2.602. Lossy decoders
# overshoot full scale now and then: what lies above is cut to this and counted.
LOG_CEILING = 2.71
# -80 dB of full scale: digital silence and dither
SILENT_PEAK = 1e-4


@dataclass(frozen=True)
class FeatureConfig:
    """How a track becomes parts.

    Args:
        dtype: "uint8" or "float16".
        part_frames: a track is cut into ceil(T / part_frames) nearly equal parts.
        min_frames: a shorter track is rejected.
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
        """Identity of all parts that this makes of equal audio."""
        facts = {**asdict(self), "frontend": frontend_digest(self.frontend)}
        return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Part:
    """One stored part of a track: frames [start_frame, start_frame + frames), and where its .npy lies in the spool."""

    start_frame: int
    frames: int
    offset: int
    bytes: int
    crc32: int


@dataclass(frozen=True)
class TrackFacts:
    """What became of a track.

    Args:
        rejected: why nothing did, or "".
        total, total_of_squares: sums over all decoded values, float64.
        clipped: values above the ceiling.
    """

    rejected: str
    parts: tuple[Part, ...] = ()
    total: float = 0.0
    total_of_squares: float = 0.0
    clipped: int = 0

    @property
    def frames(self) -> int:
        """Frames of all parts."""
        return sum(part.frames for part in self.parts)


def spool_id(track: Track, config: FeatureConfig) -> str:
    """Returns the name of the track's files in the spool: another file, time of change or setting is another name."""
    status = track.path.stat() if track.path.exists() else None
    state = (status.st_size, status.st_mtime_ns) if status else (0, 0)
    return sha256(repr((track.track, str(track.path.resolve()), state, config.digest)).encode()).hexdigest()[:32]


def spooled_facts(spool: Path, name: str) -> TrackFacts | None:
    """Returns the facts of a track that is done, else None."""
    file = spool / f"{name}.json"
    if not file.is_file():
        return None
    raw: dict[str, Any] = json.loads(file.read_bytes())
    facts = TrackFacts(parts=tuple(Part(**part) for part in raw.pop("parts")), **raw)
    return facts if facts.rejected or (spool / f"{name}.parts").is_file() else None


def spool_track(track: Track, *, name: str, spool: Path, config: FeatureConfig) -> TrackFacts:
    """Makes the parts of a track, or finds why it cannot be used, and records either."""
    try:
        stored, facts = extract(track.path, config)
    except UserError as error:
        stored, facts = b"", TrackFacts(rejected=str(error))
    if stored:
        with atomic_file(spool / f"{name}.parts") as temporary:
            temporary.write_bytes(stored)
    with atomic_file(spool / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(asdict(facts)))
    return facts


def extract(path: Path, config: FeatureConfig) -> tuple[bytes, TrackFacts]:
    """Returns the .npy files of all parts, end to end, and the facts about them.

    Raises:
        UserError: the file cannot be decoded, is empty, too short or silent, or holds NaN.
    """
    audio_S, rate_hz = read_audio(path)
    if float(np.abs(audio_S).max()) < SILENT_PEAK:
        raise UserError(f"{path}: silent (peak below {SILENT_PEAK:g} of full scale)")
    audio_S = resample(audio_S, rate_hz, config.frontend.sample_rate_hz)
    frames = len(audio_S) // config.frontend.hop_samples
    if frames < config.min_frames:
        raise UserError(f"{path}: too short ({frames} frames, fewer than {config.min_frames})")
    audio_1S = torch.from_numpy(audio_S)[None]
    pieces: list[bytes] = []
    parts: list[Part] = []
    total = total_of_squares = 0.0
    clipped = offset = 0
    for start, stop in cut_evenly(frames, config.part_frames):
        with torch.inference_mode():
            mel_TF = log_mel_slice(audio_1S, start, num_frames=stop - start, config=config.frontend)[0].numpy()
        clipped += int((mel_TF > config.hi).sum()) if config.dtype == "uint8" else 0
        stored_TF = encode_mel(mel_TF, config.dtype, lo=config.lo, hi=config.hi)
        decoded_TF = decode_mel(stored_TF, lo=config.lo, hi=config.hi).astype(np.float64)
        total += float(decoded_TF.sum())
        total_of_squares += float(np.square(decoded_TF).sum())
        pieces.append(npy_bytes(stored_TF))
        parts.append(Part(start, stop - start, offset, len(pieces[-1]), zlib.crc32(pieces[-1])))
        offset += len(pieces[-1])
    return b"".join(pieces), TrackFacts("", tuple(parts), total, total_of_squares, clipped)


def cut_evenly(frames: int, part_frames: int) -> list[tuple[int, int]]:
    """Returns (start, stop) of ceil(frames / part_frames) parts whose lengths differ by one at most."""
    count = -(-frames // part_frames)
    edges = [frames * i // count for i in range(count + 1)]
    return list(pairwise(edges))


def read_part(spool: Path, name: str, part: Part) -> bytes:
    """Returns the .npy bytes of a part. Raises UserError when the spool was damaged."""
    with (spool / f"{name}.parts").open("rb") as file:
        file.seek(part.offset)
        content = file.read(part.bytes)
    if zlib.crc32(content) != part.crc32:
        raise UserError(f"{spool / name}.parts is damaged; remove the folder {spool} and build again")
    return content


def sample_info(track: Track, uid: str, *, part: Part, frames_per_s: float) -> Mapping[str, Any]:
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

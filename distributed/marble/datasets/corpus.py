"""A labelled corpus on disk: its track list, the digest of its content, and the slices of its tracks."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

from distributed.marble.tasks.tasks import TRACKS, Clips
from distributed.processes.collectives import gather
from distributed.processes.topology import Topology
from pupujepa.errors import UserError
from pupujepa.track_rows import ListRow, list_rows, list_text

SPLITS = ("train", "valid", "test")
_FINGERPRINT_BYTES = 65536
_REMEDY = "write an object with track, path, split, duration_s and labels"


@dataclass(frozen=True)
class LabelledTrack:
    """One line of the list."""

    uid: str
    path: Path
    split: str
    group: str  # the piece that this is a take of; pieces, not takes, are independent
    duration_s: float
    labels: Mapping[str, Any]
    rate_hz: int | None = None  # sample rate of the file if windows are counted in samples; None counts them in seconds
    num_samples: int = 0  # length of the file at that rate
    num_channels: int = 1
    item: str = ""  # the item that its slices belong to; "" for the track itself

    def window_samples(self, seconds: float) -> int:
        """Returns the length of a window in samples at the file's own rate, rounded down."""
        if self.rate_hz is None:
            raise ValueError(f"{self.uid}: windows of this track are counted in seconds")
        return int(seconds * self.rate_hz)  # as upstream does

    def start_s(self, index: int, seconds: float) -> float:
        """Returns the start of the `index`-th window."""
        return index * seconds if self.rate_hz is None else index * self.window_samples(seconds) / self.rate_hz


@dataclass(frozen=True)
class LabelledCorpus:
    """The tracks of a list, with a digest of the list and its audio."""

    tracks: tuple[LabelledTrack, ...]
    digest: str
    # of the tracks' audio, by uid; empty if `digest` alone identifies the audio
    fingerprints: Mapping[str, str] = field(default_factory=dict)

    def of_split(self, split: str) -> tuple[LabelledTrack, ...]:
        """Returns the tracks of one split, in list order."""
        return tuple(t for t in self.tracks if t.split == split)


@dataclass(frozen=True, order=True, slots=True)
class Slice:
    """The `index`-th window of a track; (uid, index) identifies it everywhere."""

    uid: str
    index: int
    channel: str = "mix"  # "mix" is the mean of all channels, "0", "1", ... one of them.

    @property
    def name(self) -> list[str | int]:
        """Fields for JSON; the channel only if it is not the mix."""
        return [self.uid, self.index] if self.channel == "mix" else [self.uid, self.index, self.channel]


def read_labelled_corpus(folder: Path) -> LabelledCorpus:
    """Reads a track list.

    Raises:
        UserError: no list, one that is not UTF-8, an invalid line, a repeated id, or a missing audio file.
    """
    path = folder / TRACKS
    if not path.is_file():
        raise UserError(
            f"no {TRACKS} in {folder}, so there is nothing to evaluate on; "
            f"make a labelled corpus with `python -m data scores {folder}`"
        )
    content = path.read_bytes()
    rows = list_rows(list_text(content, origin=str(path)), origin=str(path), remedy=_REMEDY)
    tracks = tuple(_track_of(row, folder) for row in rows)
    seen: set[str] = set()
    for track in tracks:
        if track.uid in seen:
            raise UserError(f"{path}: track id {track.uid!r} appears twice, so features would collide; make ids unique")
        seen.add(track.uid)
    digest = sha256(content)
    for track in tracks:
        digest.update(audio_fingerprint(track.path))
    return LabelledCorpus(tracks, digest.hexdigest())


def cut(track: LabelledTrack, clips: Clips) -> list[Slice]:
    """Returns the slices of a track; none if it is too short, unless `clips.keep_short`."""
    if track.rate_hz is None:
        # the margin absorbs rounding: a whole last slice must not count as partial
        whole, rest = divmod(track.duration_s + 1e-6, clips.seconds)
        count = int(whole) + (rest / clips.seconds >= clips.min_ratio)
    else:
        window = track.window_samples(clips.seconds)
        full, remaining = divmod(track.num_samples, window)
        count = full + (remaining / window >= clips.min_ratio)
    if not count and clips.keep_short:
        count = 1
    kept = min(count, clips.max_slices or count)
    # the middle of each of `kept` equal stretches
    return [Slice(track.uid, (2 * i + 1) * count // (2 * kept)) for i in range(kept)]


def union(corpora: Sequence[LabelledCorpus]) -> LabelledCorpus:
    """Returns the audio of several corpora as one: tasks with separate lists share a feature pass.

    Its digest depends on the audio, not on labels; each track has the labels of the first list that contains it.
    Corpora without fingerprints all have one list, which is returned.
    """
    if not corpora[0].fingerprints:
        return corpora[0]
    # reversed, so that the first list wins
    tracks = {t.uid: t for corpus in reversed(corpora) for t in corpus.tracks}
    fingerprints = {uid: print_ for corpus in corpora for uid, print_ in corpus.fingerprints.items()}  # by uid
    digest = audio_digest(fingerprints)
    return LabelledCorpus(tuple(tracks[uid] for uid in sorted(tracks)), digest, fingerprints)


def audio_digest(fingerprints: Mapping[str, str]) -> str:
    """Returns a digest of the audio of tracks; their list and its order do not matter."""
    return sha256(json.dumps(sorted(fingerprints.items())).encode()).hexdigest()


def thin_tracks(tracks: Iterable[LabelledTrack], most: int | None) -> list[LabelledTrack]:
    """Returns at most `most` tracks, in list order, the same on every machine and for every encoder."""
    tracks = list(tracks)
    if most is None:
        return tracks
    # a hash of the id: independent of the list's order, and fewer tracks are a subset of more
    kept = sorted(tracks, key=lambda t: blake2b(t.uid.encode(errors="surrogatepass"), digest_size=8).digest())[:most]
    names = {t.uid for t in kept}
    return [t for t in tracks if t.uid in names]


def _track_of(row: ListRow, folder: Path) -> LabelledTrack:
    duration_s = row.seconds("duration_s")
    if duration_s is None or duration_s < 0:
        raise row.error(f"duration_s is {duration_s}, not a length in seconds")
    uid = row.text("track")
    track = LabelledTrack(
        uid=uid,
        path=folder / row.text("path"),
        split=row.text("split"),
        group=row.name("group") or uid,
        duration_s=duration_s,
        labels=row.labels() or {},
    )
    if track.split not in SPLITS:
        raise UserError(f"{row.where}: split {track.split!r} is not one of {', '.join(SPLITS)}; correct the line")
    if not track.path.is_file():
        raise UserError(f"{row.where}: the audio file {track.path} does not exist; render or copy it, or drop the line")
    return track


def audio_fingerprint(path: Path) -> bytes:
    """Returns a digest of a file's size, start and end; it detects a corpus that was rendered again."""
    size = path.stat().st_size
    digest = blake2b(size.to_bytes(8, "little"), digest_size=16)
    with path.open("rb") as file:
        digest.update(file.read(_FINGERPRINT_BYTES))
        if size > 2 * _FINGERPRINT_BYTES:  # else the two reads cover the whole file
            file.seek(-_FINGERPRINT_BYTES, 2)
        digest.update(file.read(_FINGERPRINT_BYTES))
    return digest.digest()


def agreed(corpus: LabelledCorpus, topology: Topology) -> LabelledCorpus:
    """Returns the corpus; raises UserError if ranks read different ones: features must not be mixed."""
    digests = gather(corpus.digest, topology)
    if len(set(digests)) > 1:
        raise UserError(
            f"the ranks read different corpora (digests {', '.join(sorted({d[:8] for d in digests}))}); "
            "--data must be one shared folder, or equal copies"
        )
    return corpus

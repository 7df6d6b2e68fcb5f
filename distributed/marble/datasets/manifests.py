"""MARBLE's own manifests: one JSON object a line, three files a task, trusted or checked.

DIR is MARBLE's checkout or its data folder. A row has `audio_path` (relative to the checkout), `label`, `sample_rate`,
`num_samples` and `channels`, and for some tasks `ori_uid`. Protocol marble trusts these facts, as upstream does; clean
takes the file's. docs/marble.md explains the labels.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from distributed.marble.datasets.corpus import SPLITS, LabelledCorpus, LabelledTrack, audio_digest, audio_fingerprint
from distributed.marble.tasks.chords import ChordSegment, majmin_class
from distributed.marble.tasks.marble_tasks import SECTION_ALIASES, SECTIONS
from distributed.marble.tasks.tasks import LabelRule, Task, TaskSource
from pupujepa.audio.read import AudioError
from pupujepa.audio.source import measure_audio
from pupujepa.errors import UserError
from pupujepa.track_rows import list_rows, list_text

log = logging.getLogger(__name__)

_READERS = 16

Row = dict[str, Any]
Labels = dict[str, Any]


@dataclass(frozen=True)
class ManifestLine:
    """One row of a manifest, and its file and line."""

    row: Row
    where: str

    def field(self, name: str) -> Any:
        """Returns a field; raises UserError if the row lacks it."""
        if self.row.get(name) is None:
            raise UserError(
                f"{self.where}: the row has no {name!r}, so the track cannot be used; "
                "each line must have audio_path, label, sample_rate, num_samples and channels"
            )
        return self.row[name]


def manifest_path(root: Path, source: TaskSource, split: str) -> Path:
    """Returns the path of a split's manifest below MARBLE's checkout or data folder."""
    return audio_path(root, source.manifest(split))


def audio_path(root: Path, written: str) -> Path:
    """Returns root/data/x for data/x, or root/x if root is the data folder; others are below root."""
    parts = Path(written).parts
    if parts[:1] == ("data",) and not (root / "data").is_dir():
        return root.joinpath(*parts[1:])
    return root / written


def read_manifest_lines(path: Path) -> Iterator[ManifestLine]:
    """Yields the rows of a manifest, without empty lines.

    Raises UserError for a line that is not UTF-8 or not a JSON object.
    """
    text = list_text(path.read_bytes(), origin=str(path))
    for row in list_rows(text, origin=str(path), remedy="the split would not be MARBLE's, so fetch the manifest again"):
        yield ManifestLine(dict(row.fields), row.where)


def read_marble(root: Path, task: Task) -> LabelledCorpus:
    """Reads the three manifests of a task, under the protocol of its row (see `Task.under`).

    Raises:
        UserError: a manifest or an audio file is missing, or a row is invalid.
    """
    source = task.source
    if source is None:
        raise ValueError(f"task {task.name!r} has no manifests of MARBLE")
    digest = sha256()
    tracks: list[LabelledTrack] = []
    seen: dict[str, int] = {}
    for split in SPLITS:
        path = manifest_path(root, source, split)
        if not path.is_file():
            raise UserError(f"no {path}, the {split} split of {task.name}: {where_from(source)}")
        digest.update(path.read_bytes())
        for line in read_manifest_lines(path):
            try:
                tracks.append(_track(line, root, split, source, seen))
            except UserError:
                raise
            except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
                raise UserError(
                    f"{line.where}: a field is of the wrong kind ({error!r}), so the track cannot be used; "
                    "fetch the manifest again"
                ) from error
    with ThreadPoolExecutor(_READERS) as readers:
        if task.header_facts:
            tracks = list(readers.map(_with_header_facts, tracks))
        prints = {t.uid: p for t, p in zip(tracks, readers.map(_fingerprint, tracks))}
    # of all tracks, before leaks are dropped: the digest is of the files
    digest.update(audio_digest(prints).encode())
    if task.drop_leaks:
        tracks = _without_leaks(task.name, tracks)
    return LabelledCorpus(tuple(tracks), digest.hexdigest(), prints)


def where_from(source: TaskSource) -> str:
    """Returns instructions for getting a task's files, as part of a sentence."""
    gate = ", to those who asked its publisher for access" if source.gated else ""
    extract = " and runs its extract.sh" if source.folder == "HookTheory" else ""
    return (
        f"MARBLE's download.py puts the data set m-a-p/{source.folder} into data/{source.folder}/ of its "
        f"checkout{extract}{gate}; --data names that checkout or its data folder"
    )


def _track(line: ManifestLine, root: Path, split: str, source: TaskSource, seen: dict[str, int]) -> LabelledTrack:
    written = str(line.field("audio_path"))
    path = audio_path(root, written)
    if not path.is_file():
        raise UserError(
            f"{line.where}: the audio file {path} is missing, so scores would be of another data set; "
            f"{where_from(source)}"
        )
    rate_hz, num_samples = int(line.field("sample_rate")), int(line.field("num_samples"))
    if rate_hz <= 0:
        raise UserError(f"{line.where}: sample_rate {rate_hz} is not positive; fetch the manifest again")
    seen[written] = seen.get(written, 0) + 1
    return LabelledTrack(
        # a file listed twice is two tracks of one item
        uid=written if seen[written] == 1 else f"{written}#{seen[written]}",
        path=path,
        split=split,
        group=str(line.row.get("ori_uid") or written),
        duration_s=num_samples / rate_hz,
        labels=LABELS[source.label](line),
        rate_hz=rate_hz,
        num_samples=num_samples,
        num_channels=int(line.row.get("channels") or 1),
        item=str(line.field(source.item_key)),
    )


def _with_header_facts(track: LabelledTrack) -> LabelledTrack:
    try:
        facts = measure_audio(track.path)
    except AudioError as error:
        raise UserError(f"{error}: the {track.split} split would lack a track") from error
    return replace(
        track,
        rate_hz=facts.rate_hz,
        num_samples=facts.samples,
        num_channels=facts.channels,
        duration_s=facts.samples / facts.rate_hz,
    )


def _fingerprint(track: LabelledTrack) -> str:
    return f"{track.rate_hz}/{audio_fingerprint(track.path).hex()}"


def _without_leaks(task: str, tracks: Sequence[LabelledTrack]) -> list[LabelledTrack]:
    """Returns the tracks whose group is in no later split: no test recording is trained or chosen on."""
    # later splits overwrite earlier ones
    last = {track.group: track.split for split in SPLITS for track in tracks if track.split == split}
    kept = [track for track in tracks if last[track.group] == track.split]
    if len(kept) < len(tracks):
        log.info(
            "%s: %d tracks are left out because their recording is in a later split too", task, len(tracks) - len(kept)
        )
    return kept


def _arousal_valence(line: ManifestLine) -> Labels:
    values = line.field("label")
    if not isinstance(values, list) or len(values) != 2:
        raise UserError(f"{line.where}: label {values!r} is not [arousal, valence]; fetch the manifest again")
    return {"arousal": float(values[0]), "valence": float(values[1])}


def _text(name: str) -> Callable[[ManifestLine], Labels]:
    return lambda line: {name: str(line.field("label"))}


def _beats(line: ManifestLine) -> Labels:
    label = line.field("label")
    return {f"{name}s": [float(time_s) for time_s in label.get(name, [])] for name in ("beat", "downbeat")}


def _section(line: ManifestLine) -> Labels:
    label = line.field("label")
    joined = "_".join(label) if isinstance(label, list) else str(label)
    section = SECTION_ALIASES.get(joined, joined)
    if section not in SECTIONS:
        raise UserError(
            f"{line.where}: {joined!r} is not a section of MARBLE's ({', '.join((*SECTIONS, *SECTION_ALIASES))}), "
            "which refuses it too; fetch the manifest again"
        )
    return {"section": section}


def _tags(line: ManifestLine) -> Labels:
    if not isinstance(line.row.get("label"), list):
        raise UserError(
            f"{line.where}: label {line.row.get('label')!r} is not a list of tags; fetch the manifest again"
        )
    return {"tags": [str(tag) for tag in line.row["label"]]}


def _chords(line: ManifestLine) -> Labels:
    segments = [
        ChordSegment(float(s["start_time"]), float(s["end_time"]), str(s["chord_str"])) for s in line.field("label")
    ]
    # report an unreadable chord now, with its line, not during training
    for label in {s.label for s in segments}:
        majmin_class(label, origin=line.where)
    return {"chords": sorted(segments, key=lambda s: s.start_s)}


# readers of the field `label`; their keys are the names in `Task.labels`
LABELS: dict[LabelRule, Callable[[ManifestLine], Labels]] = {
    "arousal_valence": _arousal_valence,
    "key": _text("key"),
    "genre": _text("genre"),
    "beats": _beats,
    "section": _section,
    "tags": _tags,
    "chords": _chords,
}

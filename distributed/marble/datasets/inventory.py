"""Inventory of every task: its lists, tracks and audio files, or where to get missing files.

It reads no audio, so it reports a missing file in seconds, not after hours of computing features.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from distributed.marble.datasets.corpus import SPLITS
from distributed.marble.datasets.manifests import audio_path, manifest_path, read_manifest_lines, where_from
from distributed.marble.tasks.marble_tasks import MTG_CLASSES
from distributed.marble.tasks.tasks import Task
from pupujepa.errors import UserError

_LOOKERS = 16
_SHOWN = 3


@dataclass(frozen=True)
class InventoryFinding:
    """Files of one task, present and missing.

    Attributes:
        tracks: number of tracks in the list of each split.
        missing_lists: expected paths of absent lists.
        missing_audio: absent files that the lists name.
        files: number of files that the lists name.
        remark: warning about the labels, or "".
    """

    task: Task
    tracks: dict[str, int]
    missing_lists: tuple[Path, ...]
    missing_audio: tuple[Path, ...]
    files: int
    remark: str = ""

    @property
    def is_complete(self) -> bool:
        """True if the task can be measured."""
        return not self.missing_lists and not self.missing_audio

    @property
    def is_absent(self) -> bool:
        """True if no list of the task was found."""
        return not self.tracks

    @property
    def text(self) -> str:
        """One line for the user."""
        sizes = ", ".join(f"{count} {split}" for split, count in self.tracks.items())
        found = f"{self.task.list_name}: {sizes} tracks{self.remark}"
        if self.is_complete:
            return f"{self.task.name}: found {found}; all {self.files} audio files are there"
        if self.missing_lists:
            return f"{self.task.name}: missing {', '.join(map(str, self.missing_lists))}; {_whence(self.task)}"
        shown = ", ".join(str(p) for p in self.missing_audio[:_SHOWN])
        more = ", ..." if len(self.missing_audio) > _SHOWN else ""
        return (
            f"{self.task.name}: found {found}, but {len(self.missing_audio)} of {self.files} audio files are missing: "
            f"{shown}{more}; {_whence(self.task)}"
        )


def take_inventory(tasks: Sequence[Task], root: Path) -> tuple[InventoryFinding, ...]:
    """Looks for the lists and the audio of tasks below `root`; raises UserError for an unreadable list."""
    known: dict[str, InventoryFinding] = {}
    findings = []
    for task in tasks:
        if task.list_name not in known:
            known[task.list_name] = _look(task, root)
        findings.append(replace(known[task.list_name], task=task))
    return tuple(findings)


def measurable(findings: Sequence[InventoryFinding], names: Sequence[str], root: Path) -> tuple[Task, ...]:
    """Returns the tasks to measure: the complete ones.

    A task of a group (all, offline, marble) without any file is left out. A task requested by name, or with only some
    of its files, must be complete.

    Raises:
        UserError: such a task is incomplete, or no task is left.
    """
    broken = [f for f in findings if not f.is_complete and (not f.is_absent or f.task.name in names)]
    if broken:
        raise UserError("nothing was computed: " + "\n".join(f.text for f in broken))
    complete = tuple(f.task for f in findings if f.is_complete)
    if not complete:
        raise UserError(
            f"no tracks.jsonl in {root} and no manifest of MARBLE's, so there is nothing to evaluate on; make a "
            f"labelled corpus with `python -m data scores {root}`, or list the expected files with --check"
        )
    return complete


def _look(task: Task, root: Path) -> InventoryFinding:
    lists = _lists(task, root)
    tracks: dict[str, int] = {}
    audio: dict[Path, None] = {}  # an ordered set: many lines can name one file
    classes: set[str] = set()
    for path, split in lists:
        if not path.is_file():
            continue
        if split is not None:
            tracks[split] = 0
        for line in read_manifest_lines(path):
            own = split or str(line.row.get("split"))
            tracks[own] = tracks.get(own, 0) + 1
            written = str(line.field("audio_path" if task.source else "path"))
            audio[audio_path(root, written) if task.source else root / written] = None
            if task.name in MTG_CLASSES and own == "train":
                classes.update(line.row.get("label") or ())
    with ThreadPoolExecutor(_LOOKERS) as lookers:
        there = list(lookers.map(Path.is_file, audio))
    return InventoryFinding(
        task=task,
        tracks=tracks,
        missing_lists=tuple(path for path, _ in lists if not path.is_file()),
        missing_audio=tuple(path for path, is_there in zip(audio, there) if not is_there),
        files=len(audio),
        remark=_remark(task, len(classes)),
    )


def _lists(task: Task, root: Path) -> list[tuple[Path, str | None]]:
    """Returns the paths of a task's lists with their splits; None for our list, which has all splits."""
    if task.source is None:
        return [(root / task.manifest, None)]
    return [(manifest_path(root, task.source, split), split) for split in SPLITS]


def _remark(task: Task, classes: int) -> str:
    expected = MTG_CLASSES.get(task.name)
    if not classes or classes == expected:
        return ""
    return f" (of {classes} classes; MARBLE's training split has {expected}, so scores are not comparable)"


def _whence(task: Task) -> str:
    if task.source is None:
        return "`python -m data scores DIR` makes it in DIR"
    return where_from(task.source)

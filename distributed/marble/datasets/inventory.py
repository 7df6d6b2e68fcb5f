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
    """Files of one task, present and missing."""

    task: Task
    tracks: dict[str, int]  # number of tracks in the list of each split; empty if no list was found
    missing_lists: tuple[Path, ...]  # expected paths of absent lists
    missing_audio: tuple[Path, ...]  # absent files that the lists name
    files: int  # number of files that the lists name
    remark: str = ""  # warning about the labels, or ""

    @property
    def is_complete(self) -> bool:
        """True if the task can be measured."""
        return not self.missing_lists and not self.missing_audio

    @property
    def text(self) -> str:
        """One line for the user."""
        sizes = ", ".join(f"{count} {split}" for split, count in self.tracks.items())
        found = f"{self.task.list_name}: {sizes} tracks{self.remark}"
        if self.is_complete:
            return f"{self.task.name}: found {found}; all {self.files} audio files are there"
        shown = ", ".join(map(str, self.missing_audio[:_SHOWN])) + ", ..." * (len(self.missing_audio) > _SHOWN)
        absent = f"found {found}, but {len(self.missing_audio)} of {self.files} audio files are missing: {shown}"
        if self.missing_lists:
            absent = f"missing {', '.join(map(str, self.missing_lists))}"
        source = self.task.source
        remedy = where_from(source) if source else "`python -m data scores DIR` makes it in DIR"
        return f"{self.task.name}: {absent}; {remedy}"


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
    broken = [f for f in findings if not f.is_complete and (f.tracks or f.task.name in names)]
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
    source = task.source
    # our list has all splits
    lists = {split: manifest_path(root, source, split) for split in SPLITS} if source else {"": root / task.list_name}
    there = {split: path for split, path in lists.items() if path.is_file()}
    tracks = dict.fromkeys(filter(None, there), 0)
    audio: dict[Path, None] = {}  # an ordered set: many lines can name one file
    classes: set[str] = set()
    for split, path in there.items():
        for line in read_manifest_lines(path):
            own = split or str(line.row.get("split"))
            tracks[own] = tracks.get(own, 0) + 1
            audio[audio_path(root, str(line.field("audio_path"))) if source else root / str(line.field("path"))] = None
            if task.name in MTG_CLASSES and own == "train":
                classes.update(line.row.get("label") or ())
    with ThreadPoolExecutor(_LOOKERS) as lookers:
        found = list(lookers.map(Path.is_file, audio))
    expected, remark = MTG_CLASSES.get(task.name), ""
    if classes and len(classes) != expected:
        remark = f" (of {len(classes)} classes; MARBLE's training split has {expected}, so scores are not comparable)"
    return InventoryFinding(
        task=task,
        tracks=tracks,
        missing_lists=tuple(path for split, path in lists.items() if split not in there),
        missing_audio=tuple(path for path, is_there in zip(audio, found) if not is_there),
        files=len(audio),
        remark=remark,
    )

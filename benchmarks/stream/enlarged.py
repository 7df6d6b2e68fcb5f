"""Enlarged copies of a corpus of the streaming benchmark, to measure resuming in a large epoch.

The files are hard links under new names, and the index of each format has full length. Samples of different copies
share their uids, which matter only once they are read.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Any

from data.shards.format import index_name
from data.shards.manifest import read_manifest, write_manifest


def enlarged(corpus: Path, layout: str, times: int) -> Path:
    """Returns the folder of a corpus in one format, `times` as large; written unless it exists."""
    source, folder = corpus / layout, corpus / f"{layout}-x{times}"
    done = corpus / f"{folder.name}.done"
    if not done.is_file():
        rmtree(folder, ignore_errors=True)
        folder.mkdir()
        {"tar": _tar, "mds": _mds, "litdata": _litdata}[layout](source, folder, times)
        done.touch()
    return folder


def _tar(source: Path, folder: Path, times: int) -> None:
    manifest = read_manifest(str(source))
    entries = []
    for copy in range(times):
        for entry in manifest.shards:
            name = f"{copy:05d}-{entry.name}"
            _link(source / entry.name, folder / name)
            _link(source / index_name(entry.name), folder / index_name(name))
            entries.append(replace(entry, name=name))
    write_manifest(str(folder), replace(manifest, shards=tuple(entries)))


def _mds(source: Path, folder: Path, times: int) -> None:
    def renamed(shard: dict[str, Any], copy: int) -> dict[str, Any]:
        name = f"{copy:05d}.{shard['raw_data']['basename']}"
        _link(source / shard["raw_data"]["basename"], folder / name)
        return {**shard, "raw_data": {**shard["raw_data"], "basename": name}}

    _index(source, folder, times, column="shards", renamed=renamed)


def _litdata(source: Path, folder: Path, times: int) -> None:
    def renamed(chunk: dict[str, Any], copy: int) -> dict[str, Any]:
        name = f"{copy:05d}-{chunk['filename']}"
        _link(source / chunk["filename"], folder / name)
        return {**chunk, "filename": name}

    _index(source, folder, times, column="chunks", renamed=renamed)


def _index(
    source: Path, folder: Path, times: int, *, column: str, renamed: Callable[[dict[str, Any], int], dict[str, Any]]
) -> None:
    index = json.loads((source / "index.json").read_text())
    index[column] = [renamed(entry, copy) for copy in range(times) for entry in index[column]]
    (folder / "index.json").write_text(json.dumps(index))


def _link(source: Path, target: Path) -> None:
    target.hardlink_to(source)

"""A part of a shard set, for an axis over the amount of data: its first shards, under a manifest of their own.

Samples were shuffled over all shards when these were built, so the first of them are a random draw of the corpus. The
shards are not copied: the part is a folder of links. Mean and deviation stay those of the whole, so that the input of
all trials is the same.
"""

from dataclasses import replace
from pathlib import Path

from data.shards.format import index_name
from data.shards.manifest import Manifest, read_manifest, write_manifest
from data.store.locations import is_remote
from pupujepa.errors import UserError


def part_of(manifest: Manifest, share: float) -> Manifest:
    """Returns the manifest of the first shards, at least one, that hold about `share` of them.

    Hours and tracks are taken in proportion to the frames; which tracks have a piece in them is not known.
    """
    shards = manifest.shards[: max(1, round(share * len(manifest.shards)))]
    frames = sum(shard.frames for shard in shards) / manifest.frames
    return replace(
        manifest,
        shards=shards,
        audio_hours=manifest.audio_hours * frames,
        tracks=max(1, round(manifest.tracks * frames)),
    )


def part_url(shards: str, parts: str, share: float) -> str:
    """Returns where `write_part` puts a part of the shards at `shards`.

    Raises:
        UserError: the shards lie in an object store, which has no links.
    """
    if is_remote(shards):
        raise UserError(
            f"data.share takes a part of {shards} by links, which an object store does not have; build or copy smaller "
            f"sets and vary stream.url, or give --shards a folder"
        )
    return str(Path(parts) / f"{share:g}")


def write_part(shards: str, parts: str, share: float) -> None:
    """Writes the folder of a part; the manifest comes last."""
    folder, source = Path(part_url(shards, parts, share)), Path(shards.removeprefix("file://")).resolve()
    manifest = part_of(read_manifest(shards), share)
    folder.mkdir(parents=True, exist_ok=True)
    for shard in manifest.shards:
        for name in (shard.name, index_name(shard.name)):
            link = folder / name
            link.unlink(missing_ok=True)
            link.symlink_to(source / name)
    write_manifest(str(folder), manifest)

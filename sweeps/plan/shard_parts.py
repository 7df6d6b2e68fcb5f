"""A part of a shard set, for an axis over the amount of data: its first shards with a manifest.

The build shuffles samples over all shards, so the first shards are a random draw of the corpus. The part is a folder of
links. It keeps the mean and deviation of the whole, so that all trials normalise alike.
"""

from dataclasses import replace
from pathlib import Path

from data.shards.format import index_name
from data.shards.manifest import Manifest, read_manifest, write_manifest
from data.store.locations import is_remote
from pupujepa.errors import UserError


def part_of(manifest: Manifest, share: float) -> Manifest:
    """Returns the manifest of the first shards, at least one, that hold about `share` of them.

    Hours and tracks are in proportion to the frames, as the manifest does not list the tracks of a shard.
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
    """Returns the folder of a part of `shards`.

    Raises:
        UserError: the shards are in an object store, which has no links.
    """
    if is_remote(shards):
        raise UserError(
            f"data.share links to shards, and {shards} is in an object store without links; build smaller sets and "
            f"vary stream.url, or give --shards a folder"
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

"""Locations of single files and objects: their parts, stores and versions."""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

from data.store.files import LocalStore, Location, Store
from data.store.store import open_store


@lru_cache(maxsize=64)
def open_location(url: Location) -> Store:
    """Returns the store at `url`, one per process, to keep its connections."""
    return open_store(url)


def split_url(url: Location) -> tuple[Location, str]:
    """Returns the folder of a file or object, and its name there."""
    folder, slash, name = url.rpartition("/")
    return (folder or slash or ".", name)


def is_remote(url: Location) -> bool:
    """Returns True if the content is in an object store."""
    return not isinstance(open_location(split_url(url)[0]), LocalStore)


def beside(list_url: Location, path: str) -> Location:
    """Returns the location of a path in the list at `list_url`: relative to the list, absolute, or a url."""
    return path if path.startswith("/") or "://" in path else f"{split_url(list_url)[0].rstrip('/')}/{path}"


def common_folder(urls: Sequence[Location]) -> Location:
    """Returns the deepest folder that holds all, or ""."""
    folders = [split_url(url)[0].split("/") for url in urls]
    depth = next((i for i, names in enumerate(zip(*folders)) if len(set(names)) > 1), min(map(len, folders)))
    return "/".join(folders[0][:depth])


def collection_name(folder: Location) -> str:
    """Returns the name of a folder, which names the collection in it."""
    path = open_location(folder).local_path()
    return path.resolve().name if path is not None else folder.rstrip("/").rpartition("/")[2]


def object_versions(urls: Sequence[Location]) -> dict[Location, str]:
    """Returns the version of each object, "" for a missing one, by listing their common folder."""
    of_bucket: dict[str, list[Location]] = defaultdict(list)
    for url in urls:
        of_bucket["/".join(url.split("/")[:3])].append(url)
    versions: dict[Location, str] = {}
    for same_bucket in of_bucket.values():
        folder = common_folder(same_bucket)
        listed = open_location(folder).versions()
        versions |= {url: listed.get(url.removeprefix(f"{folder}/"), "") for url in same_bucket}
    return versions

"""Locations of single files and objects: taken apart, opened, and asked for the versions of their content."""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

from data.store.files import LocalStore, Location, Store
from data.store.store import open_store


@lru_cache(maxsize=64)
def opened(url: Location) -> Store:
    """Returns the store at `url`, one for each process: its connections are worth keeping."""
    return open_store(url)


def split_url(url: Location) -> tuple[Location, str]:
    """Returns the folder of a file or object, and its name there."""
    folder, slash, name = url.rpartition("/")
    return (folder or slash or ".", name)


def is_remote(url: Location) -> bool:
    """Whether the content lies in an object store."""
    return not isinstance(opened(split_url(url)[0]), LocalStore)


def beside(list_url: Location, path: str) -> Location:
    """Returns what a path means that is written in the list at `list_url`: relative to it, absolute, or a url."""
    return path if path.startswith("/") or "://" in path else f"{split_url(list_url)[0].rstrip('/')}/{path}"


def common_folder(urls: Sequence[Location]) -> Location:
    """Returns the deepest folder that all lie in; "" when there is none."""
    folders = [split_url(url)[0].split("/") for url in urls]
    depth = next((i for i, names in enumerate(zip(*folders)) if len(set(names)) > 1), min(map(len, folders)))
    return "/".join(folders[0][:depth])


def collection_name(folder: Location) -> str:
    """Returns the name of a folder, which is that of the collection in it."""
    path = opened(folder).local_path()
    return path.resolve().name if path is not None else folder.rstrip("/").rpartition("/")[2]


def object_versions(urls: Sequence[Location]) -> dict[Location, str]:
    """Returns the version of each object, "" for one that is missing.

    It lists the folder that they share: one request for a thousand objects, where asking for each would be a thousand.
    """
    of_bucket: dict[str, list[Location]] = defaultdict(list)
    for url in urls:
        of_bucket["/".join(url.split("/")[:3])].append(url)
    versions: dict[Location, str] = {}
    for same_bucket in of_bucket.values():
        folder = common_folder(same_bucket)
        listed = opened(folder).versions()
        versions |= {url: listed.get(url.removeprefix(f"{folder}/"), "") for url in same_bucket}
    return versions

"""Stores of plain paths, `file://` and `s3://` urls, and locations of single objects."""

import random
import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from data.store.files import LocalStore, Location, MissingObjectError, RetryPolicy, Store, StoreError
from data.store.s3 import S3Store

__all__ = [
    "LocalStore",
    "Location",
    "MissingObjectError",
    "RetryPolicy",
    "S3Store",
    "Store",
    "StoreError",
    "open_store",
]


def open_store(
    url: Location,
    *,
    policy: RetryPolicy = RetryPolicy(),  # noqa: B008  (frozen)
    rng: random.Random | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Store:
    """Returns the store at `url`: a plain path, `file://` or `s3://bucket/prefix`; does not connect yet.

    Args:
        rng: draws the jitter; default: one per process, seeded with its id.
        clock, sleep: for the waits between tries.

    Raises:
        StoreError: unknown scheme, no bucket, or credentials in the url.
    """
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*(?=://)", url)
    if scheme is None:
        return LocalStore(url, root=Path(url))
    _refuse_credentials(url, scheme.group())
    parts = urlsplit(url)
    if scheme.group() == "file" and parts.netloc in ("", "localhost"):
        return LocalStore(url, root=Path(unquote(parts.path)))
    if scheme.group() != "s3":
        raise StoreError(f"{url} cannot be opened: {scheme.group()}:// is not known; use a path, file:// or s3://")
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise StoreError(f"{url} names no bucket; write it as s3://bucket/prefix")
    return S3Store(url, bucket=bucket, prefix=prefix.strip("/"), policy=policy, rng=rng, clock=clock, sleep=sleep)


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


def _refuse_credentials(url: Location, scheme: str) -> None:
    """Raises StoreError for a url with credentials; the message must not repeat them."""
    authority = url.partition("://")[2].partition("/")[0]
    # the signature of a signed link is as good as the key until it expires
    if "@" in authority or re.search(r"[?&](x-amz-(credential|signature|security-token)|awsaccesskeyid)=", url, re.I):
        raise StoreError(
            f"a {scheme}:// url carries credentials, which would enter configs, logs and manifests; write "
            f"{scheme}://bucket/prefix and export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        )

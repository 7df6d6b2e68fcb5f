"""Bytes from and to plain paths, `file://` and `s3://`: one function opens them all."""

import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from data.files import LocalStore, Location, MissingObjectError, Store, StoreError
from data.retries import RetryPolicy
from data.s3 import S3Store

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
    """Returns the store at `url`: a plain path, `file://` or `s3://bucket/prefix`. Connects to nothing yet.

    Args:
        rng: draws the jitter; by default one per process, seeded with its id.
        clock, sleep: of the waits between tries.

    Raises:
        StoreError: unknown scheme, or no bucket.
    """
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*(?=://)", url)
    if scheme is None:
        return LocalStore(url, root=Path(url))
    parts = urlsplit(url)
    if scheme.group() == "file" and parts.netloc in ("", "localhost"):
        return LocalStore(url, root=Path(unquote(parts.path)))
    if scheme.group() != "s3":
        raise StoreError(f"{url} cannot be opened: {scheme.group()}:// is not known; use a path, file:// or s3://")
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise StoreError(f"{url} names no bucket; write it as s3://bucket/prefix")
    return S3Store(url, bucket=bucket, prefix=prefix.strip("/"), policy=policy, rng=rng, clock=clock, sleep=sleep)

"""Stores of plain paths, `file://` and `s3://` urls, opened by one function."""

import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from data.store.files import LocalStore, Location, MissingObjectError, Store, StoreError
from data.store.retries import RetryPolicy
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


def _refuse_credentials(url: Location, scheme: str) -> None:
    """Raises StoreError for a url with credentials; the message must not repeat them."""
    authority = url.partition("://")[2].partition("/")[0]
    # the signature of a signed link is as good as the key until it expires
    if "@" in authority or re.search(r"[?&](x-amz-(credential|signature|security-token)|awsaccesskeyid)=", url, re.I):
        raise StoreError(
            f"a {scheme}:// url carries credentials, which would enter configs, logs and manifests; write "
            f"{scheme}://bucket/prefix and export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        )

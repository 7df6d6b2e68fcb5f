"""Which tars are meant: names, patterns with `*` or `{000..099}`, and lists of them."""

from collections.abc import Sequence

from webdataset.shardlists import expand_urls

from data.files import Location
from data.locations import common_folder, is_remote, object_versions, opened, split_url
from data.tar_input import TAR_SUFFIX, TarError, TarFile


def find_tars(written: Sequence[Location]) -> list[TarFile]:
    """Returns the tars in the order in which they are written, each once; those of a `*` by name.

    A tar is called by its file name, or, when two share one, by its path from the folder that all lie in.

    Raises:
        TarError: a pattern that matches nothing, or a tar that is not there. StoreError: the store cannot be read.
    """
    urls: list[Location] = []
    for pattern in written:
        for url in expand_urls(pattern):
            urls += _matching(url) if "*" in url else [url]
    urls = list(dict.fromkeys(urls))
    versions = object_versions([url for url in urls if is_remote(url)])
    for url in urls:
        if not (versions[url] if url in versions else _is_file(url)):
            raise TarError(f"{url} does not exist, so its tracks would be missing; restore it or leave it out")
    names = [split_url(url)[1] for url in urls]
    if len(set(names)) < len(names):
        root = common_folder(urls)
        names = [url.removeprefix(root).lstrip("/") for url in urls]
    return [
        TarFile(*split_url(url), name.removesuffix(TAR_SUFFIX), versions.get(url, ""))
        for url, name in zip(urls, names, strict=True)
    ]


def _matching(pattern: Location) -> list[Location]:
    folder, name = split_url(pattern)
    before, _, behind = name.partition("*")
    if "*" in folder + behind:
        raise TarError(f"{pattern} has more than one * or one in a folder; write a .txt with the name of a tar a line")
    names = [path for path in opened(folder).list(before) if "/" not in path and path.endswith(behind)]
    found = [path for path in names if len(path) >= len(before) + len(behind)]
    if not found:
        raise TarError(f"no tar matches {pattern}; correct the pattern")
    return [f"{folder.rstrip('/')}/{path}" for path in found]


def _is_file(url: Location) -> bool:
    folder, name = split_url(url)
    return opened(folder).exists(name)

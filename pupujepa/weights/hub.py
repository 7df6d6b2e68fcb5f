"""Weights from the Hugging Face hub: `owner/repository[/folder][@revision]`.

All files come from one commit. A branch, a tag or a missing revision is resolved to its current commit, and the log
gives the id that pins it. huggingface_hub is an optional extra; its cache, token and offline mode (HF_HUB_OFFLINE=1)
work as usual.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pupujepa.names import require_plain_path
from pupujepa.weights.release_args import ARGS_NAME, WEIGHTS_NAME, WeightsError

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)(?:@([\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")  # a full SHA-1
_DEFAULT_REVISION = "main"


@dataclass(frozen=True)
class HubId:
    """A folder ("" for the root) of a repository at a revision: a commit, a tag or a branch."""

    repository: str
    folder: str
    revision: str

    def __str__(self) -> str:
        return f"{self.repository}{self.folder and '/' + self.folder}@{self.revision}"


def parse_hub_id(text: str, *, revision: str | None = None) -> HubId | None:
    """Returns the parts of a hub id, or None if the text is not one.

    Raises:
        WeightsError: the id and `revision` differ. UserError: the folder leads out of the repository.
    """
    match = _HUB_ID.fullmatch(text)
    if not match:
        return None
    repository, folder, inside = match.groups()
    if inside and revision and inside != revision:
        raise WeightsError(f"{text} names one revision and revision={revision!r} another; give one")
    if folder:
        require_plain_path(folder.strip("/"), origin=text)
    return HubId(repository, folder.strip("/"), inside or revision or _DEFAULT_REVISION)


def download(hub_id: HubId) -> Path:
    """Downloads the description and the weights of one commit; returns their cached folder.

    Raises:
        WeightsError: huggingface_hub is not installed, the hub gives no files and the cache has none, or the repository
            has no such folder of weights; the message lists those it has.
    """
    prefix = f"{hub_id.folder}/" if hub_id.folder else ""
    names = (ARGS_NAME, WEIGHTS_NAME, f"checkpoint/*/{WEIGHTS_NAME}")
    root = _snapshot(hub_id, [prefix + name for name in names])
    if not (root / hub_id.folder / ARGS_NAME).is_file():
        whole = _snapshot(hub_id, [f"*{ARGS_NAME}"])  # small files, to list the folders that exist
        found = sorted(str(path.parent.relative_to(whole)) for path in whole.rglob(ARGS_NAME))
        raise WeightsError(
            f"{hub_id} holds no {ARGS_NAME}, so it has no weights; its folders that hold one: "
            f"{', '.join(found) or 'none'}"
        )
    commit = root.name  # huggingface_hub names a snapshot's folder by its commit
    if hub_id.revision != commit:
        pinned = HubId(hub_id.repository, hub_id.folder, commit)
        logger.warning("%s can move; load %s to get the same weights again", hub_id, pinned)
    return root / hub_id.folder


def _snapshot(hub_id: HubId, patterns: Sequence[str]) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise WeightsError(
            f"there is no folder {hub_id.repository}, and reading it from the hub needs huggingface_hub: "
            "pip install 'pupujepa[hub]'"
        ) from error
    try:
        root = Path(snapshot_download(hub_id.repository, revision=hub_id.revision, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise WeightsError(
            f"there is no folder {hub_id.repository}, and the hub does not give {hub_id} either: {error}"
        ) from error
    assert _COMMIT.fullmatch(root.name), f"{root} is not a snapshot of a commit"
    return root

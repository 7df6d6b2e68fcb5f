"""wandb, beside metrics.jsonl: one wandb run per run, for all its sessions.

The id is in the run directory, so a resumed session continues the run in wandb too. Our step is the axis: wandb's own
counter only grows, but a resumed run logs some steps again. wandb never stops the training: an unreachable server is
logged once. The numbers stay in metrics.jsonl and in offline files; `wandb sync RUN/wandb/offline-run-*` sends them.
"""

import logging
import re
import secrets
import shlex
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from distributed.run.directory import RunDirectory, write_atomically
from pupujepa.errors import UserError

ID_NAME = "wandb-id.txt"
REMOVED = "(removed)"
# words of secret keys, such as aws_secret_access_key
_SECRET_WORDS = frozenset(("secret", "secrets", "password", "passwd", "token", "credentials", "apikey"))
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
# exit codes for wandb, which shows a run with another code than 0 as crashed or preempted
_EXIT_CODES = {FINISHED: 0, STOPPED: 85, FAILED: 1}

logger = logging.getLogger(__name__)


class WandbSink:
    """A sink that sends rows to wandb; only rank 0 has one.

    Args:
        mode: "online" or "offline".
        settings: the resolved configuration; possible secrets are removed.

    Raises:
        UserError: mode "online" without a key.
    """

    def __init__(self, run: RunDirectory, *, project: str, name: str | None, mode: str, settings: Mapping[str, Any]):
        import wandb

        self._errors = (wandb.errors.Error, ConnectionError, BrokenPipeError)
        self._silenced = False
        own_id = run.root / ID_NAME
        if not own_id.is_file():
            write_atomically(own_id, secrets.token_hex(4) + "\n")
        start: dict[str, Any] = {
            "project": project,
            "name": name or run.root.resolve().name,
            "id": own_id.read_text().strip(),
            "resume": "allow",  # continue the run of this id, or begin it
            "dir": run.root,
            "config": scrubbed(settings),
            # output, command line, environment and source code must not leave the machine
            "settings": wandb.Settings(
                silent=True, console="off", x_disable_meta=True, disable_git=True, disable_code=True
            ),
        }
        try:
            self._run = wandb.init(mode=mode, **start)  # type: ignore[arg-type]
        except wandb.errors.CommError as error:
            logger.warning("wandb cannot be reached (%s): its numbers are kept offline, in %s/wandb", error, run.root)
            self._run = wandb.init(mode="offline", **start)
        except wandb.errors.UsageError as error:
            raise UserError(
                f"telemetry.wandb={mode}: wandb refuses to start ({error}); export WANDB_API_KEY or run `wandb login`, "
                f"or set telemetry.wandb=offline"
            ) from error
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")  # our step is the axis of every chart

    def write(self, row: Mapping[str, Any]) -> None:
        """Logs the row under its step."""
        if self._silenced:
            return
        try:
            self._run.log(dict(row))
        except self._errors as error:
            self._silence(error)

    def close(self, outcome: str = FINISHED) -> None:
        """Ends the session; the id stays in the run directory."""
        if self._silenced:
            return
        try:
            if outcome == STOPPED:
                self._run.mark_preempting()  # wandb then expects the run to continue
            self._run.finish(exit_code=_EXIT_CODES[outcome])
        except self._errors as error:
            self._silence(error)

    def _silence(self, error: Exception) -> None:
        self._silenced = True
        logger.warning("wandb failed (%s): nothing more is sent there; all numbers are in metrics.jsonl", error)


def scrubbed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration without possible secrets.

    Secrets may be values of suspicious keys, or users and queries of URLs.
    """
    return {key: REMOVED if _is_secret(key) else _scrubbed_value(value) for key, value in settings.items()}


def scrubbed_command(words: Sequence[str]) -> str:
    """Returns a command line for a shell, without possible secrets.

    Secrets may be in KEY=VALUE, --key=VALUE, --key VALUE, or URLs.
    """
    kept = []
    for before, word in zip(["", *words], words):
        key, equals, value = word.partition("=")
        if before.startswith("--") and "=" not in before and _is_secret(before):
            kept.append(REMOVED)
        elif equals and "://" not in key:
            kept.append(f"{key}={REMOVED if _is_secret(key) else _scrubbed_value(value)}")
        else:
            kept.append(_scrubbed_value(word))
    return shlex.join(kept)


def _scrubbed_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return scrubbed(value)
    if isinstance(value, list | tuple):
        return [_scrubbed_value(item) for item in value]
    if isinstance(value, str) and "://" in value:
        parts = urlsplit(value)
        # without user and password, and without the query, which may sign a request
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    return value


def _is_secret(key: str) -> bool:
    words = re.split(r"[_.-]", key.lower())
    return words[-1] == "key" or words[-2:] == ["key", "id"] or not _SECRET_WORDS.isdisjoint(words)

"""facts.json: settings and results of a finished run, for the report."""

import subprocess
from pathlib import Path
from typing import Any

from distributed.processes.collectives import sum_over_ranks
from distributed.run.directory import read_sessions, write_json
from distributed.run.installed import installed_versions
from distributed.run.log import read_metrics
from distributed.sessions.session import Session
from distributed.trainer import Parts

PACKAGES = ("torch", "torchaudio", "deepspeed", "webdataset", "numpy", "omegaconf")


def write_facts(session: Session, parts: Parts) -> None:
    """Writes facts.json, the last file of a run; all ranks call it together."""
    counters = parts.stream.counters()
    names = sorted(counters)
    *sums, waited_s, seconds = sum_over_ranks(
        [*(counters[name] for name in names), parts.log.waited_s, parts.log.seconds], device=session.device
    )
    if not session.topology.is_first:
        return
    stream = dict(zip(names, sums)) | {"left_out": counters["left_out"]} | parts.stream.mixture()
    pace = {
        "crops_per_s": _per(parts.log.steps * session.sizes.global_batch, parts.log.seconds),
        "data_wait_fraction": _per(waited_s, seconds),
    }
    write_json(session.directory.facts, _setting(session, parts) | _outcome(session, parts) | pace | {"stream": stream})


def git_commit() -> str | None:
    """Returns the commit of the checkout, or None without git."""
    root = Path(__file__).parents[2]
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None  # the field is only a convenience


def _setting(session: Session, parts: Parts) -> dict[str, Any]:
    experiment, corpora = session.experiment, session.corpora
    return {
        "ranks": session.topology.world_size,
        "zero_stage": experiment.engine.zero_stage,
        "precision": experiment.engine.precision,
        "device": str(session.device.type),
        "steps": experiment.train.steps,
        "global_batch": session.sizes.global_batch,
        "micro_batch": session.sizes.micro_batch,
        "parameters": sum(getattr(p, "ds_numel", p.numel()) for p in parts.step.parameters()),
        "audio_hours": sum(manifest.audio_hours for manifest in corpora.manifests),
        "tracks": sum(manifest.tracks for manifest in corpora.manifests),
        "shards": sum(len(manifest.shards) for manifest in corpora.manifests),
        "samples": sum(manifest.samples for manifest in corpora.manifests),
        "steps_per_epoch": parts.stream.steps_per_epoch,
        "store": ", ".join(corpora.urls),
        "manifest_digest": corpora.digest,
        "mix": corpora.describe() or None,
        "frontend_digest": corpora.frontend_digest,
        "git_commit": git_commit(),
        "versions": installed_versions(PACKAGES),
    }


def _outcome(session: Session, parts: Parts) -> dict[str, Any]:
    losses = [row["loss"] for row in read_metrics(session.directory.metrics) if row.get("loss") is not None]
    sessions = read_sessions(session.directory)
    last = parts.checkpoints.store.steps()[0]
    return {
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "explained_variance": parts.watch.last_diagnostics.get("diag/explained_variance"),
        "effective_rank": parts.watch.last_diagnostics.get("diag/effective_rank_teacher"),
        "checkpoint": f"step-{last:07d}",
        "resumed": [{"step": s["step"], "time": s["time"]} for s in sessions[1:]],
        "sessions": sessions,
    }


def _per(amount: float, seconds: float) -> float | None:
    return amount / seconds if seconds else None

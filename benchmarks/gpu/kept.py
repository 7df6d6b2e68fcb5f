"""Results of the parts of `make gpu`, one file per part, so the command can resume."""

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from distributed.sessions.facts import git_commit
from pupujepa.durable import atomic_file
from pupujepa.errors import UserError

CPU, CUDA = "cpu", "cuda"
PACKAGES = ("torch", "triton", "deepspeed")


@dataclass(frozen=True)
class Setting:
    """Where the parts run.

    Attributes:
        device: "cuda" or "cpu".
        tiny: sizes of a smoke test.
        out: folder of the results, of this device alone.
        device_name: from CUDA, or "CPU".
        versions: of torch, its compiler and DeepSpeed.
    """

    device: str
    tiny: bool
    out: Path
    device_name: str
    versions: dict[str, str]

    @classmethod
    def of(cls, device: str, *, tiny: bool, out: Path) -> "Setting":
        """Reads the device's name and the versions.

        Raises:
            UserError: there is no such device, or a CPU would run at a GPU's sizes.
        """
        if device == CUDA and not torch.cuda.is_available():
            raise UserError(
                "torch sees no CUDA device here, so there is nothing to measure; run it where nvidia-smi lists one, or "
                "give --device cpu --tiny for a smoke test"
            )
        if device == CPU and not tiny:
            raise UserError("--device cpu would take hours at a GPU's sizes; add --tiny for a smoke test")
        name = torch.cuda.get_device_name() if device == CUDA else "CPU"
        return cls(device, tiny, out.absolute() / device, name, _versions(device))

    @property
    def environ(self) -> dict[str, str]:
        """Environment of every process of a part: DeepSpeed's device, and a cache of compiled kernels."""
        return {"DS_ACCELERATOR": self.device, "TORCHINDUCTOR_CACHE_DIR": str(self.out / "inductor")}


@dataclass(frozen=True)
class Result:
    """Result of a part.

    Attributes:
        data: measurements; `summary` is a sentence about them.
        failure: the error; "" if there was none.
        where: device and versions; results of other settings are ignored.
    """

    data: dict[str, Any]
    seconds: float
    where: dict[str, Any]
    failure: str = ""
    ended: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="minutes"))
    commit: str = field(default_factory=lambda: (git_commit() or "")[:12])

    @property
    def summary(self) -> str:
        """One line."""
        return f"{'FAILED; ' if self.failure else ''}{self.data.get('summary', 'no result')}"


class Kept:
    """The results of a setting."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self.where = {"device": setting.device_name, "tiny": setting.tiny, "versions": setting.versions}
        self._folder = setting.out / "parts"
        self._folder.mkdir(parents=True, exist_ok=True)

    def has(self, name: str) -> bool:
        """Returns True if the part has run here, successfully or not."""
        path = self._path(name)
        return path.is_file() and json.loads(path.read_text())["where"] == self.where

    def is_done(self, name: str) -> bool:
        """Returns True if the part has succeeded here."""
        return self.has(name) and not self.result(name).failure

    def result(self, name: str) -> Result:
        """Returns the result of a part."""
        return Result(**json.loads(self._path(name).read_text()))

    def keep(self, name: str, result: Result) -> None:
        """Stores the result of a part."""
        with atomic_file(self._path(name)) as temporary:
            temporary.write_text(json.dumps(asdict(result), indent=2) + "\n")

    def _path(self, name: str) -> Path:
        return self._folder / f"{name.replace(' ', '-')}.json"


def _versions(device: str) -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # torch builds for CPUs have no triton
    if device == CUDA:
        found |= {"CUDA": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}
    return found

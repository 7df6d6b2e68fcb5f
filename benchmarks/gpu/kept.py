"""What the parts of `make gpu` gave, a file each, so that the command continues where it stopped."""

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
        tiny: sizes that show that it works, and measure nothing.
        out: folder of the results, of this device alone.
        device_name: as CUDA says it, or "CPU".
        versions: of what computes.
    """

    device: str
    tiny: bool
    out: Path
    device_name: str
    versions: dict[str, str]

    @classmethod
    def of(cls, device: str, *, tiny: bool, out: Path) -> "Setting":
        """Looks at the machine.

        Raises:
            UserError: there is no such device, or a CPU is to take a GPU's sizes.
        """
        if device == CUDA and not torch.cuda.is_available():
            raise UserError(
                "torch sees no CUDA device here, so there is nothing to measure; run it where nvidia-smi lists one, or "
                "give --device cpu --tiny to see that it works"
            )
        if device == CPU and not tiny:
            raise UserError("--device cpu would take hours at a GPU's sizes; add --tiny, which shows that it works")
        name = torch.cuda.get_device_name() if device == CUDA else "CPU"
        return cls(device, tiny, out.absolute() / device, name, _versions(device))

    @property
    def environ(self) -> dict[str, str]:
        """Variables of every process that a part starts: DeepSpeed's choice, and compiled kernels that are kept."""
        return {"DS_ACCELERATOR": self.device, "TORCHINDUCTOR_CACHE_DIR": str(self.out / "inductor")}


@dataclass(frozen=True)
class Result:
    """What a part gave.

    Attributes:
        data: of its own; `summary` says it in words.
        failure: why there is no data, or what is wrong with it; "" for nothing.
        where: the setting's device and versions; a result of others is not kept.
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
        """Returns True if the part has run here, well or not."""
        path = self._path(name)
        return path.is_file() and json.loads(path.read_text())["where"] == self.where

    def is_done(self, name: str) -> bool:
        """Returns True if the part has run here and need not run again."""
        return self.has(name) and not self.result(name).failure

    def result(self, name: str) -> Result:
        """Returns what a part gave."""
        return Result(**json.loads(self._path(name).read_text()))

    def keep(self, name: str, result: Result) -> None:
        """Writes it down."""
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
            continue  # a torch for CPUs alone brings no triton
    if device == CUDA:
        found |= {"CUDA": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}
    return found

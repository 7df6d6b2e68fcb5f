"""Speed, memory and stream counts for the rows of the log."""

import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist

from data.reading.fetching import COUNTED
from data.stream.stream import Stream
from pupujepa.audio.log_mel import FrontendConfig
from pupujepa.cost.cost import training_cost
from pupujepa.model.model import ModelConfig
from pupujepa.training.masks import MaskConfig
from pupujepa.training.objective import ObjectiveConfig

TERA = 1e12
_SUMMED = (*COUNTED, "wait_s")
PERCENTILES = (50, 95, 99)  # a mean hides single slow steps
# dense bf16 TFLOP/s from NVIDIA's data sheets; the first key that is part of the device's name counts
PEAK_BF16_TFLOPS = {
    "B200": 2250.0,
    "GH200": 989.4,
    "H200": 989.4,
    "H100 PCIe": 756.5,
    "H100 NVL": 835.5,
    "H100": 989.4,
    "H800": 989.4,
    "A100": 312.0,
    "A800": 312.0,
    "A10G": 70.0,
    "A40": 149.7,
    "L40S": 362.0,
    "RTX A6000": 154.8,
    "RTX 4090": 165.2,
}


@dataclass
class Pace:
    """Seconds of training steps, and of their waits for data, between two rows.

    Time between steps does not count.
    """

    step_s: list[float] = field(default_factory=list)
    waited_s: float = 0.0

    def add(self, seconds: float, waited_s: float) -> None:
        """Counts one step."""
        self.step_s.append(seconds)
        self.waited_s += waited_s


@dataclass(frozen=True)
class Yardstick:
    """Constants that turn step times into rates.

    peak_flops: operations per second of all ranks together; 0 if unknown.
    """

    global_batch: int
    tokens_per_crop: int
    seconds_per_crop: float
    flops_per_crop: int
    peak_flops: float = 0.0

    def rates(self, window: Pace) -> dict[str, float]:
        """Returns the speed entries of a row, for the steps since the previous row."""
        steps, seconds = len(window.step_s), sum(window.step_s)
        crops_per_s = steps * self.global_batch / seconds
        rates = {
            "crops_per_s": crops_per_s,
            "step_s": seconds / steps,
            "data_wait_s": window.waited_s / steps,
            "speed/tokens_per_s": crops_per_s * self.tokens_per_crop,
            "speed/audio_hours_per_hour": crops_per_s * self.seconds_per_crop,
        }
        if self.peak_flops:
            rates["speed/mfu"] = crops_per_s * self.flops_per_crop / self.peak_flops
        values = np.percentile(window.step_s, PERCENTILES)
        return rates | {f"speed/step_s_p{p}": float(value) for p, value in zip(PERCENTILES, values, strict=True)}


def yardstick(
    model: ModelConfig,
    masks: MaskConfig,
    objective: ObjectiveConfig,
    *,
    frontend: FrontendConfig,
    global_batch: int,
    peak_flops: float,
) -> Yardstick:
    """Returns the yardstick of a run, with operations counted by pupujepa/cost/cost.py."""
    return Yardstick(
        global_batch,
        tokens_per_crop=model.num_patches,
        seconds_per_crop=model.crop_frames * frontend.hop_samples / frontend.sample_rate_hz,
        flops_per_crop=training_cost(model, masks, objective).total,
        peak_flops=peak_flops,
    )


def peak_flops_of(device_name: str, *, precision: str, given_tflops: float = 0.0) -> float:
    """Returns the peak of one device in operations per second, 0 if unknown.

    Args:
        device_name: CUDA's name; "" for a CPU.
        precision: of the computation; the table has bf16 only.
        given_tflops: override from the config; 0 looks the device up by name.
    """
    if given_tflops:
        return given_tflops * TERA
    if precision != "bf16" or not device_name:
        return 0.0
    return TERA * next((peak for name, peak in PEAK_BF16_TFLOPS.items() if name in device_name), 0.0)


def peak_memory_of_ranks(device: torch.device) -> dict[str, float]:
    """Returns the largest peaks over all ranks, in bytes; all ranks call it together.

    `memory/rss_bytes`: peak host memory of a process. `memory/accelerator_peak_bytes`: peak allocation on the device;
    absent on CPU.
    """
    # ru_maxrss is in KiB on Linux, in bytes on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    own: Mapping[str, int] = {"memory/rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        own = {**own, "memory/accelerator_peak_bytes": torch.cuda.max_memory_allocated(device)}
    most = torch.tensor(list(own.values()), dtype=torch.float64, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)  # the rank that needs most decides what fits
    return dict(zip(own, most.tolist(), strict=True))


class StreamCounts:
    """Counts since the previous row, so the sum of all rows is the total of the run, resumed or not.

    A failed session writes the counts since its last row into its record (distributed/train.py).
    """

    def __init__(self, stream: Stream, *, device: torch.device):
        self._stream, self._device = stream, device
        self._before = dict.fromkeys(_SUMMED, 0.0)

    def since_last(self) -> dict[str, float]:
        """Returns the sums over ranks of `data/NAME`, for `tally.COUNTED` and wait_s; all ranks together."""
        own = self.unsaid()
        self._before = dict(self._stream.counters())
        total = torch.tensor(list(own.values()), dtype=torch.float64, device=self._device)
        dist.all_reduce(total)
        return dict(zip(own, total.tolist(), strict=True))

    def unsaid(self) -> dict[str, float]:
        """Returns the counts of this rank since the last row, which would be lost if the run ended now."""
        now = self._stream.counters()  # sums since the stream was made
        return {f"data/{name}": now[name] - self._before[name] for name in _SUMMED}

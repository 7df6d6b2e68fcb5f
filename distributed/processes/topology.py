"""Rank and world size of this process: read once from the launcher's environment, and frozen.

An incomplete environment (RANK without WORLD_SIZE, a SLURM allocation without srun) is an error, never "rank 0 of 1":
that default turns 64 GPUs into 64 runs that overwrite each other's checkpoints.
"""

import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from pupujepa.errors import UserError

TORCH_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# rank, world size and local rank as the launchers of MPI name them: Open MPI, MVAPICH, MPICH and Intel MPI, Cray, Flux
_MPI_NAMES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK"),
    ("FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID"),
)
# they count processes, but do not tell this one's place
_COUNTS = ("SLURM_NTASKS", "SLURM_NPROCS", "SLURM_STEP_NUM_TASKS", "LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS")
_PLACES = ("PMIX_RANK", "PALS_RANKID", "JSM_NAMESPACE_RANK")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# below Linux's ephemeral range (32768 and up), so that no outgoing connection already holds the port
FIRST_SLURM_PORT, SLURM_PORTS = 20_000, 12_000


class TopologyError(UserError):
    """The launcher's environment is incomplete or contradicts itself, or the ranks could not meet."""


@dataclass(frozen=True)
class Topology:
    """Position of this process in the world.

    Attributes:
        rank: 0 .. world_size - 1.
        world_size: number of processes that train together.
        local_rank: index of this process on its node; the GPU that it takes.
        master: host and port where the ranks meet; None for a single process.
        launcher: "torch" (torchrun, deepspeed), "slurm", "mpi" or "alone".
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    master: tuple[str, int] | None = None
    launcher: str = "alone"

    def __post_init__(self):
        if not 0 <= self.rank < self.world_size:
            raise TopologyError(
                f"rank {self.rank} of a world of {self.world_size}: the launcher's variables contradict each other, so "
                f"the ranks would wait forever; check {' '.join(TORCH_NAMES[:2])} or srun's --ntasks"
            )
        if not 0 <= self.local_rank <= self.rank:
            raise TopologyError(
                f"local rank {self.local_rank} cannot belong to rank {self.rank}: processes would share a GPU, or miss "
                f"one; check LOCAL_RANK, which counts from 0 on each node"
            )

    @property
    def is_first(self) -> bool:
        """True for rank 0, which writes the shared files."""
        return self.rank == 0

    def environment(self) -> dict[str, str]:
        """Returns the variables that torch and DeepSpeed read, for every launcher."""
        values = (self.rank, self.world_size, self.local_rank, *(self.master or ()))
        # a single process has no master, so the last two names are left out
        return {name: str(value) for name, value in zip(TORCH_NAMES, values, strict=False)}


def discover(environ: Mapping[str, str], *, first_host: Callable[[str], str] | None = None) -> Topology:
    """Reads the topology that torchrun, deepspeed, srun or mpirun left in `environ`.

    Args:
        environ: usually os.environ.
        first_host: returns the first host of a SLURM node list; default: `scontrol show hostnames`.

    Raises:
        TopologyError: variables of a launcher are missing, or are not numbers.
    """
    mpi = max(_MPI_NAMES, key=lambda names: len(environ.keys() & names))
    for name in (*TORCH_NAMES[:3], *mpi, *_COUNTS, *_PLACES):
        if environ.get(name) == "":
            raise TopologyError(f"{name} is empty, so this process does not know its rank; set it, or unset it")
    if any(name in environ for name in TORCH_NAMES[:3]):
        return _from_torch(environ)
    if "SLURM_STEP_ID" in environ and _is_of_srun(environ, mpi):
        return _from_slurm(environ, first_host or _first_host_by_scontrol)
    if environ.keys() & mpi:
        return _from_mpi(environ, mpi)
    for name in _COUNTS:
        if _number(environ, name, default=1) > 1:
            raise TopologyError(
                f"{name}={environ[name]}, but no launcher gave this process a rank, so it would train alone; put srun "
                f"before the command: srun python -m distributed train ..."
            )
    for name in _PLACES:
        if name in environ:
            raise TopologyError(
                f"{name}={environ[name]} has no world size beside it, so this process would train alone; use srun or "
                f"torchrun, or unset it"
            )
    return Topology()


@contextmanager
def process_group(topology: Topology, *, timeout_s: float, device: torch.device) -> Iterator[None]:
    """Joins the process group (NCCL on GPUs, gloo on CPUs) and always leaves it again.

    Args:
        timeout_s: seconds that ranks wait, at the start and in every collective. Keep it below the cluster's grace
            period.

    Raises:
        TopologyError: the ranks did not meet in time.
    """
    kwargs: dict = {"store": dist.HashStore()} if topology.master is None else {"init_method": "env://"}
    if device.type == "cuda" and topology.world_size > 1:
        kwargs["device_id"] = device
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            rank=topology.rank,
            world_size=topology.world_size,
            timeout=timedelta(seconds=timeout_s),
            **kwargs,
        )
    except dist.DistError as error:
        address, port = topology.master or ("", 0)
        raise TopologyError(
            f"rank {topology.rank} of {topology.world_size} could not meet the others at {address}:{port} within "
            f"{timeout_s:.0f} s; check that all ranks started, that rank 0 runs on {address}, and that the port is "
            f"free ({str(error).splitlines()[0]})"
        ) from error
    succeeded = False
    try:
        yield
        succeeded = True
    finally:
        # without this, about one launch in three aborts at exit, after the right result; after an error, NCCL would
        # wait for ranks that are still in a collective
        if succeeded or device.type == "cpu":
            dist.destroy_process_group()


@contextmanager
def exported(environ: MutableMapping[str, str], topology: Topology) -> Iterator[None]:
    """Puts the topology into the environment inside the block, and restores it for a later run."""
    added = topology.environment() | {n: v for n, v in loopback_interface(topology).items() if n not in environ}
    before = {name: environ.get(name) for name in added}
    environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            environ.pop(name) if value is None else environ.update({name: value})


def loopback_interface(topology: Topology) -> dict[str, str]:
    """Returns gloo's interface if all ranks are on this host.

    Gloo's own guess needs a resolvable host name.
    """
    local = topology.master is not None and topology.master[0] in LOOPBACK
    return {"GLOO_SOCKET_IFNAME": "lo"} if local and "lo" in {name for _, name in socket.if_nameindex()} else {}


def usable_gpus(environ: Mapping[str, str]) -> int:
    """Counts the GPUs of this process; 0 if DS_ACCELERATOR=cpu keeps DeepSpeed off them."""
    return 0 if environ.get("DS_ACCELERATOR") == "cpu" else torch.cuda.device_count()


def choose_device(topology: Topology, *, cuda_devices: int) -> torch.device:
    """Returns the GPU of this rank, or the CPU on a machine without GPUs.

    Raises:
        TopologyError: this node has GPUs, but fewer than ranks.
    """
    if cuda_devices == 0:
        return torch.device("cpu")
    if cuda_devices == 1:
        # srun --gpus-per-task=1 shows each task its own GPU as number 0
        return torch.device("cuda", 0)
    if topology.local_rank >= cuda_devices:
        raise TopologyError(
            f"local rank {topology.local_rank} has no GPU: this node has {cuda_devices}; start at most one rank per "
            f"GPU (torchrun --nproc-per-node {cuda_devices}, or srun --ntasks-per-node={cuda_devices})"
        )
    return torch.device("cuda", topology.local_rank)


def _from_torch(environ: Mapping[str, str]) -> Topology:
    missing = [name for name in TORCH_NAMES if not environ.get(name)]
    if missing:
        there = [name for name in TORCH_NAMES if environ.get(name)]
        raise TopologyError(
            f"{', '.join(there)} set but not {', '.join(missing)}, so this process does not know its rank and would "
            f"train alone; start it with torchrun, deepspeed or srun, or unset them all"
        )
    return Topology(
        rank=_number(environ, "RANK"),
        world_size=_number(environ, "WORLD_SIZE"),
        local_rank=_number(environ, "LOCAL_RANK"),
        master=(environ["MASTER_ADDR"], _port(environ, "MASTER_PORT")),
        launcher="torch",
    )


def _is_of_srun(environ: Mapping[str, str], mpi: tuple[str, str, str]) -> bool:
    """Returns False if mpirun started this process: its daemon, a task of srun, passes its variables on."""
    place = environ.get("SLURM_PROCID"), environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS"))
    return all(environ.get(name, value) == value for name, value in zip(mpi, place, strict=False))


def _from_mpi(environ: Mapping[str, str], names: tuple[str, str, str]) -> Topology:
    if environ.get(names[1]) == "1":
        return Topology(launcher="mpi")
    missing = [name for name in (*names, *TORCH_NAMES[3:]) if not environ.get(name)]
    if missing:
        raise TopologyError(
            f"MPI started this process without {', '.join(missing)}, so the ranks cannot meet; export them to all "
            f"ranks, or start with torchrun or srun"
        )
    rank, world_size, local_rank = (_number(environ, name) for name in names)
    return Topology(rank, world_size, local_rank, (environ["MASTER_ADDR"], _port(environ, "MASTER_PORT")), "mpi")


def _from_slurm(environ: Mapping[str, str], first_host: Callable[[str], str]) -> Topology:
    size_name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    missing = [n for n in (size_name, "SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID") if not environ.get(n)]
    if missing:
        raise TopologyError(
            f"this is a SLURM step without {', '.join(missing)}, so this process does not know its rank; start it with "
            f"srun, without --export=NONE"
        )
    world_size = _number(environ, size_name)
    return Topology(
        rank=_number(environ, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=_number(environ, "SLURM_LOCALID"),
        master=(_slurm_address(environ, first_host), _slurm_port(environ)) if world_size > 1 else None,
        launcher="slurm",
    )


def _slurm_address(environ: Mapping[str, str], first_host: Callable[[str], str]) -> str:
    if environ.get("MASTER_ADDR"):
        return environ["MASTER_ADDR"]
    if environ.get("SLURM_STEP_NUM_NODES", environ.get("SLURM_NNODES")) == "1":
        return "127.0.0.1"
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    if not nodes:
        raise TopologyError(
            "SLURM lists no nodes, so the ranks cannot meet; export MASTER_ADDR with the host of rank 0"
        )
    return first_host(nodes)


def _slurm_port(environ: Mapping[str, str]) -> int:
    if environ.get("MASTER_PORT"):
        return _port(environ, "MASTER_PORT")
    # two steps of one job, or two jobs on one node, must not meet each other
    job, step = _number(environ, "SLURM_JOB_ID"), _number(environ, "SLURM_STEP_ID")
    return FIRST_SLURM_PORT + (job + 101 * step) % SLURM_PORTS


def _first_host_by_scontrol(nodes: str) -> str:
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise TopologyError(
            f"`{' '.join(command)}` failed ({error}), so the ranks cannot meet; export MASTER_ADDR with the address of "
            f"rank 0's node"
        ) from error


def _port(environ: Mapping[str, str], name: str) -> int:
    port = _number(environ, name)
    if not 0 < port < 65_536:
        raise TopologyError(f"{name}={port} is not a port, so the ranks cannot meet; use 1 to 65535")
    return port


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = environ.get(name, default)
    try:
        return int(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise TopologyError(f"{name}={value!r} is not an integer; check the launcher's environment") from error

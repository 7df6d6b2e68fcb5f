"""Topology: every launcher's environment gives the right place; half an environment is an error, never rank 0 of 1."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distributed.processes.topology import (
    Topology,
    TopologyError,
    choose_device,
    discover,
    exported,
    loopback_interface,
    process_group,
    usable_gpus,
)

TORCH = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node7", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}


def test_torchrun_and_deepspeed_set_the_same_variables():
    """torchrun's environment is read as it is."""
    assert discover(TORCH) == Topology(3, 8, 1, ("node7", 29500), "torch")


def test_no_launcher_is_one_process():
    """Plain python, without any launcher's variable, is alone."""
    assert discover({"PATH": "/bin"}) == Topology()


@pytest.mark.parametrize("missing", TORCH)
def test_half_an_environment_is_refused(missing):
    """Whichever variable is missing, the error names it and nothing trains alone."""
    environ = {name: value for name, value in TORCH.items() if name != missing}
    with pytest.raises(TopologyError, match=rf"not .*{missing}.*would train alone"):
        discover(environ)


@given(st.sets(st.sampled_from(sorted(TORCH)), min_size=1))
def test_any_part_of_an_environment_is_whole_or_refused(names):
    """No subset of the five variables that names a rank, a size or a local rank falls back to one process."""
    environ = {name: TORCH[name] for name in names}
    if not names & {"RANK", "WORLD_SIZE", "LOCAL_RANK"}:
        assert discover(environ) == Topology()
    elif len(names) == len(TORCH):
        assert discover(environ).world_size == 8
    else:
        with pytest.raises(TopologyError):
            discover(environ)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("RANK", "8", "rank 8 of a world of 8"),
        ("RANK", "x", "RANK='x' is not an integer"),
        ("LOCAL_RANK", "5", "local rank 5 cannot belong to rank 3"),
        ("MASTER_PORT", "70000", "not a port"),
    ],
)
def test_contradictions_are_refused(name, value, match):
    """A rank outside the world, a port that is none: the message names the value."""
    with pytest.raises(TopologyError, match=match):
        discover(TORCH | {name: value})


def test_srun_gives_ranks_and_the_first_node():
    """Under srun the first host of the node list is the meeting place, and the job decides the port."""
    topology = discover(SLURM, first_host=lambda nodes: {"n[1-2]": "n1"}[nodes])
    assert (topology.rank, topology.world_size, topology.local_rank, topology.launcher) == (9, 16, 1, "slurm")
    assert topology.master is not None
    assert topology.master[0] == "n1"
    assert 1024 < topology.master[1] < 32768


def test_steps_of_a_job_do_not_meet_each_other():
    """Two steps of one job, and two jobs, get different ports."""
    steps = [SLURM | {"SLURM_STEP_ID": str(i)} for i in range(3)] + [SLURM | {"SLURM_JOB_ID": "4712"}]
    ports = {discover(environ, first_host=lambda nodes: "n1").master[1] for environ in steps}
    assert len(ports) == 4


def test_a_site_may_give_the_address():
    """MASTER_ADDR and MASTER_PORT win over scontrol, for nodes whose names do not resolve."""
    environ = SLURM | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}
    assert discover(environ, first_host=lambda nodes: pytest.fail("asked scontrol")).master == ("10.0.0.1", 1234)


def test_one_node_needs_no_name():
    """A step on one node meets on the loopback interface."""
    environ = SLURM | {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "16"}
    assert discover(environ, first_host=lambda nodes: pytest.fail("asked scontrol")).master[0] == "127.0.0.1"


def test_a_slurm_allocation_without_srun_is_refused():
    """`python` in a batch script of many tasks would train alone; the error says to put srun before it."""
    environ = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    with pytest.raises(TopologyError, match="put srun before the command"):
        discover(environ)
    assert discover(environ | {"SLURM_NTASKS": "1"}) == Topology()


@pytest.mark.parametrize("missing", ["SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"])
def test_half_a_slurm_step_is_refused(missing):
    """A step whose environment was cleaned is an error that names what is missing."""
    environ = {name: value for name, value in SLURM.items() if name != missing}
    with pytest.raises(TopologyError, match="without SLURM_"):
        discover(environ)


MPI = [
    {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "PMIX_RANK": "3"},
    {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
    {"PMI_RANK": "3", "PMI_SIZE": "4", "PMI_LOCAL_RANK": "1", "PALS_RANKID": "3"},
    {"MV2_COMM_WORLD_RANK": "3", "MV2_COMM_WORLD_SIZE": "4", "MV2_COMM_WORLD_LOCAL_RANK": "1"},
    {"FLUX_TASK_RANK": "3", "FLUX_JOB_SIZE": "4", "FLUX_TASK_LOCAL_ID": "1"},
]
PLACE = {"MASTER_ADDR": "node7", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("environ", MPI)
def test_mpirun_gives_ranks(environ):
    """Every launcher of MPI names the rank; a job of one process is one process, and no variable alone is."""
    assert discover(environ | PLACE) == Topology(3, 4, 1, ("node7", 29500), "mpi")
    # the daemon that mpirun starts by srun hands down its own place
    assert discover(environ | PLACE | SLURM).rank == 3
    _, size, _ = list(environ)[:3]
    assert discover({size: "1"}).world_size == 1
    with pytest.raises(TopologyError, match="without MASTER_ADDR, MASTER_PORT, so the ranks cannot meet"):
        discover(environ)
    for name, value in environ.items():
        with pytest.raises(TopologyError):
            discover({name: value})


def test_srun_may_set_the_variables_of_pmi_too():
    """`srun --mpi=pmi2` tells one place twice; the node list of SLURM says where the ranks meet."""
    topology = discover(SLURM | {"PMI_RANK": "9", "PMI_SIZE": "16", "PMIX_RANK": "9"}, first_host=lambda nodes: "n1")
    assert (topology.rank, topology.world_size, topology.launcher) == (9, 16, "slurm")


@pytest.mark.parametrize(
    "name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_NTASKS", "PMI_SIZE", "OMPI_COMM_WORLD_RANK", "PMIX_RANK"]
)
def test_an_empty_variable_is_refused(name):
    """A script that exports a variable it has not set must not start a world of one."""
    with pytest.raises(TopologyError, match=f"^{name} is empty, so this process does not know its rank"):
        discover({name: ""})


@pytest.mark.parametrize("name", ["SLURM_NPROCS", "SLURM_STEP_NUM_TASKS", "LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS"])
def test_a_count_of_processes_without_a_rank_is_refused(name):
    """Several processes without ranks would be several runs; a count of one is one process."""
    with pytest.raises(TopologyError, match=f"{name}=4, but no launcher gave this process a rank"):
        discover({name: "4"})
    assert discover({name: "1"}) == Topology()


def test_torchrun_inside_a_slurm_step_wins():
    """`srun torchrun ...` starts several processes per task; torchrun's variables tell who they are."""
    assert discover(SLURM | TORCH).world_size == 8


def test_deepspeed_reads_the_same_place():
    """The variables for DeepSpeed describe the same topology."""
    topology = discover(TORCH)
    assert discover(topology.environment()) == topology
    environ = {"PATH": "/bin", "RANK": "9"}
    with exported(environ, topology):
        assert discover(environ) == topology
    assert environ == {"PATH": "/bin", "RANK": "9"}, "what was there is there again"
    with exported(environ, Topology()):
        assert environ["WORLD_SIZE"] == "1"


def test_a_training_can_be_kept_off_the_gpus(monkeypatch):
    """DS_ACCELERATOR=cpu, which DeepSpeed's launcher needs for CPU ranks, decides for the training too."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert usable_gpus({}) == usable_gpus({"DS_ACCELERATOR": "cuda"}) == 3
    assert usable_gpus({"DS_ACCELERATOR": "cpu"}) == 0


def test_more_ranks_than_gpus_are_refused():
    """Two ranks on one of several GPUs would be slow at best; a GPU per task hidden by srun is number 0."""
    assert choose_device(Topology(), cuda_devices=0) == torch.device("cpu")
    assert choose_device(discover(TORCH), cuda_devices=4) == torch.device("cuda", 1)
    assert choose_device(discover(TORCH), cuda_devices=1) == torch.device("cuda", 0)
    with pytest.raises(TopologyError, match="local rank 2 has no GPU"):
        choose_device(Topology(2, 4, 2, ("h", 1), "torch"), cuda_devices=2)


def test_local_ranks_meet_on_the_loopback_interface():
    """Gloo is told the interface only when all ranks are on this host."""
    assert loopback_interface(Topology(0, 2, 0, ("127.0.0.1", 5), "torch")) == {"GLOO_SOCKET_IFNAME": "lo"}
    assert loopback_interface(Topology(0, 2, 0, ("node7", 5), "torch")) == {}
    assert loopback_interface(Topology()) == {}


def test_a_failed_meeting_raises(monkeypatch):
    """When the other ranks never come, the error names rank, world, address and time; nobody trains alone."""
    with process_group(Topology(), timeout_s=5, device=torch.device("cpu")):
        pass  # the group is left again: a second one can be made below
    topology = Topology(1, 2, 1, ("127.0.0.1", 1), "torch")
    for name, value in topology.environment().items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(TopologyError, match=r"rank 1 of 2 could not meet the others at 127.0.0.1:1 within 1 s"),
        process_group(topology, timeout_s=1, device=torch.device("cpu")),
    ):
        pytest.fail("trained alone")

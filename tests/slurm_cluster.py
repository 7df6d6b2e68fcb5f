"""A real SLURM of two virtual nodes on this machine, for the tests: slurmctld, two slurmd and munge, without systemd.

Needs root and Debian's slurmctld, slurmd, slurm-client and munge, which `make test` installs.
"""

import os
import random
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

from tests.distributed.launch import environment as launch_environment

NODES = ("n1", "n2")

# cred_expire: a requeued job waits for its old credential to expire, 120 s by default. RequeueExit: the trainer's code
# for "saved, continue me". `low` is preempted by `high`. KillWait is short so that faults show quickly; GraceTime and
# the other limits are long, since only a machine that is too busy to answer reaches them. The nodes have the cores that
# are written here, whatever the machine has, and no memory is counted.
SLURM_CONF = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={root}/ctld
SlurmdSpoolDir={root}/%n
SlurmctldPidFile={root}/ctld.pid
SlurmdPidFile={root}/%n.pid
SlurmctldLogFile={root}/log/ctld.log
SlurmdLogFile={root}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={root}/jobcomp.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
MessageTimeout=100
RequeueExit=85
SlurmctldTimeout=300
SlurmdTimeout=300
KillWait=10
MinJobAge=600
InactiveLimit=0
JobRequeue=1
PreemptMode=REQUEUE
PreemptType=preempt/partition_prio
MailProg=/bin/true
NodeName=n1 NodeAddr=127.0.0.1 Port={port1} CPUs=2 State=UNKNOWN
NodeName=n2 NodeAddr=127.0.0.1 Port={port2} CPUs=2 State=UNKNOWN
PartitionName=low  Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1  PreemptMode=REQUEUE GraceTime=120
PartitionName=high Nodes=n1,n2             MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


@contextmanager
def slurm_cluster(root: Path):
    """Starts the cluster under `root`, yields the environment that SLURM's commands need, and stops what it started."""
    for tool in ("slurmctld", "slurmd", "sbatch", "munged"):
        if shutil.which(tool) is None:
            raise RuntimeError(f"{tool} is missing; `make system` as root installs it, and `make test` does so itself")
    for folder in ("ctld", "n1", "n2", "log", "munge"):
        (root / folder).mkdir(parents=True)
    (root / "munge").chmod(0o700)
    key = root / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    conf = root / "slurm.conf"
    port, port1, port2 = free_ports(3)
    conf.write_text(SLURM_CONF.format(root=root, port=port, port1=port1, port2=port2))
    environment = launch_environment() | {"SLURM_CONF": str(conf)}
    started: list[subprocess.Popen] = []
    try:
        _start_munge(root, environment, started)
        started.append(_daemon(["slurmctld", "-D", "-i", "-c"], root, environment))
        started += [_daemon(["slurmd", "-D", "-N", node], root, environment) for node in NODES]
        _wait_until_idle(environment, root)
        yield environment
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(timeout=200)


def free_ports(count: int) -> list[int]:
    """Returns ports that are free now, below the range from which outgoing connections take theirs."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(15000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


def _start_munge(root: Path, environment: dict, started: list) -> None:
    munge = root / "munge"
    options = [f"--key-file={munge}/key", f"--socket={munge}/socket", f"--pid-file={munge}/pid"]
    options += [f"--log-file={munge}/log", f"--seed-file={munge}/seed", "--num-threads=2"]
    started.append(_daemon(["munged", "-F", "-f", *options], root, environment))
    _wait_for((munge / "socket").exists, "munged's socket", root)


def _daemon(command: list[str], root: Path, environment: dict) -> subprocess.Popen:
    name = "-".join(word for word in (Path(command[0]).name, command[-1]) if word.isalnum())
    with (root / "log" / f"{name}.out").open("w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def _wait_until_idle(environment: dict, root: Path) -> None:
    def idle() -> bool:
        listed = subprocess.run(
            ["sinfo", "-h", "-N", "-o", "%N:%T"], check=False, env=environment, capture_output=True, text=True
        )
        return set(listed.stdout.split()) == {"n1:idle", "n2:idle"}

    _wait_for(idle, "both nodes to be idle", root)


def _wait_for(condition, what: str, root: Path, timeout_s: float = 200.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(p.read_text()[-1500:] for p in (root / "log").iterdir())
            raise RuntimeError(f"waited {timeout_s} s for {what}; the daemons said:\n{logs}")
        time.sleep(0.1)

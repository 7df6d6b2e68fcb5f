# The only site file: all settings of a cluster are here. The environment of `sbatch` overrides each line.

# The checkout and its virtual environment, visible from every node.
export PUPUJEPA_ROOT="${PUPUJEPA_ROOT:-$SLURM_SUBMIT_DIR}"
export PUPUJEPA_VENV="${PUPUJEPA_VENV:-$PUPUJEPA_ROOT/.venv}"

# Modules, if your site has them:
# module load cuda/13.0

# Maximum starts of a job that keeps losing ranks. Preemptions count too, but are not limited.
export PUPUJEPA_MAX_RESTARTS="${PUPUJEPA_MAX_RESTARTS:-20}"

# Seconds until SLURM ends the other tasks after the first has ended. A rank may save a moment longer than its neighbour;
# a rank that takes longer than this is frozen, and would hold the nodes for ever.
export PUPUJEPA_WAIT_S="${PUPUJEPA_WAIT_S:-300}"

# Shard cache of each node: fast, local, and as large as you can spare. The default is a private folder below TMPDIR.
# export PUPUJEPA_CACHE_DIR="${PUPUJEPA_CACHE_DIR:-/local/$(id -un)/pupujepa}"

# Object store: the standard variables or ~/.aws profile. Never write keys into this file.
# export AWS_ENDPOINT_URL=https://objects.example.org
# export AWS_PROFILE=pupujepa

# The interface between nodes, if it is not the default route:
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

export PATH="$PUPUJEPA_VENV/bin:$PATH"
export PYTHONPATH="$PUPUJEPA_ROOT${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
cd "$PUPUJEPA_ROOT"

# The only site file: everything here that a cluster decides is set in this file and nowhere else.
# Each line may be overridden from the environment of `sbatch`.

# The checkout and its virtual environment, visible from every node.
export PUPUJEPA_ROOT="${PUPUJEPA_ROOT:-$SLURM_SUBMIT_DIR}"
export PUPUJEPA_VENV="${PUPUJEPA_VENV:-$PUPUJEPA_ROOT/.venv}"

# Modules, if your site has them:
# module load cuda/13.0

# How often a job is started at most that loses a rank again and again. Preemptions count too, and are not limited.
export PUPUJEPA_MAX_RESTARTS="${PUPUJEPA_MAX_RESTARTS:-20}"

# For how many seconds the other tasks go on when one has ended. A rank that saves takes a moment longer than its
# neighbour, so none is ended at once; but one that has not followed by then is frozen, and would hold the nodes for ever.
export PUPUJEPA_WAIT_S="${PUPUJEPA_WAIT_S:-300}"

# Where shards are cached on each node: fast and local, as large as you can spare.
export PUPUJEPA_CACHE_DIR="${PUPUJEPA_CACHE_DIR:-${TMPDIR:-/tmp}/pupujepa-cache-$(id -un)}"

# Object store: the standard variables or ~/.aws profile. Never write keys into this file.
# export AWS_ENDPOINT_URL=https://objects.example.org
# export AWS_PROFILE=pupujepa

# The interface between nodes, where the default route is not it:
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

export PATH="$PUPUJEPA_VENV/bin:$PATH"
export PYTHONPATH="$PUPUJEPA_ROOT${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
cd "$PUPUJEPA_ROOT"

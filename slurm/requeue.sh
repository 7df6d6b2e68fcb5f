# Runs the command of a job, and asks SLURM to requeue the job where that helps; the jobs source it after env.sh.
#
# `run_or_requeue COMMAND...` ends the job. It requeues after 85 (saved before the end of its time). For the first
# PUPUJEPA_MAX_RESTARTS starts it also requeues after a lost task: 86 (a task or a data worker is gone or hangs) or more
# than 128 (killed by a signal). All other codes end the job: 1 (a crash), 2 (something to mend), 87 (the guard stopped the
# run), 130 (Ctrl-C); docs/training_faults.md lists them. SLURM itself requeues 85 when slurm.conf has RequeueExit=85; the
# job also asks for it where it may. After scancel, the signal ends this shell.

start=$((${SLURM_RESTART_COUNT:-0} + 1))

run_or_requeue() {
    local code=0
    echo "job $SLURM_JOB_ID, start $start, $SLURM_NNODES nodes, $SLURM_NTASKS tasks${SLURM_JOB_END_TIME:+, ends $SLURM_JOB_END_TIME}: $*"
    if [ "${PUPUJEPA_DRY_RUN:-0}" = 1 ]; then exit 0; fi
    "$@" || code=$?
    if [ "$code" -eq 85 ]; then
        echo "job $SLURM_JOB_ID: saved before the end of its time, asking to be requeued"
    elif [ "$code" -ne 130 ] && { [ "$code" -eq 86 ] || [ "$code" -gt 128 ]; } &&
        [ "$start" -lt "$PUPUJEPA_MAX_RESTARTS" ]; then
        echo "job $SLURM_JOB_ID: a task was lost (exit code $code), asking to be requeued"
    else
        exit "$code"
    fi
    scontrol requeue "$SLURM_JOB_ID" 2>/dev/null || true
    exit 85
}

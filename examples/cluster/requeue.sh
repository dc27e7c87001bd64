#!/bin/bash
# requeue.sh COMMAND...: run it, and put the SLURM job in the queue again if SIGHUP ended it.
# SIGHUP is what --signal=HUP@300 sends before the time is up. SIGTERM comes from scancel, which must
# stay the end, or from a preemption, after which SLURM itself requeues (--requeue).
"$@"
code=$?
if [ "$code" -eq 129 ] && [ -n "$SLURM_JOB_ID" ]; then
    ${REQUEUE:-scontrol requeue} "$SLURM_JOB_ID"
fi
exit "$code"

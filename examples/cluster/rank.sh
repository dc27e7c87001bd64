#!/bin/bash
# rank.sh COMMAND...: one process of a SLURM step, told what torchrun would have told it. Signals and
# exit codes then pass without a launcher between, which would end its processes after 30 seconds.
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
export LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))
exec "$@"

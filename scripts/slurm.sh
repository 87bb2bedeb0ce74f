#!/bin/bash
# Trains on several nodes under Slurm, one process a node, each with all GPUs of its node:
#
#   sbatch --nodes=2 scripts/slurm.sh --config configs/pretrain.py --config.workdir=/shared/out/pretrain ...
#
# The arguments are those of train.py. The workdir must lie on a file system that all nodes share; data and caches
# (XDG_CACHE_HOME) may lie there or on a disk of each node. Two minutes before the time limit the run saves, stops and is
# queued again, and the same command continues it. After a failure, `sbatch` the same line again.
#
#SBATCH --job-name=minimind
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"

requeue=
out_of_time() {
  requeue=yes interrupted=yes
  kill -TERM "$step" # srun passes it on; the processes agree on a step, save it and exit with 0
}

srun --kill-on-bad-exit=1 "${PYTHON:-.venv/bin/python}" train.py "$@" &
step=$!
trap out_of_time USR1
while
  interrupted=
  wait "$step"
  status=$?
  [ -n "$interrupted" ] # the signal ended `wait`, not the step
do :; done
if [ -n "$requeue" ] && [ "$status" -eq 0 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

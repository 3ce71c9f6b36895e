#!/usr/bin/env bash
#SBATCH --job-name=archirf_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1        # one process a node, with all its GPUs
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@180          # three minutes before the end every process saves and exits with 75
#SBATCH --open-mode=append
# sbatch docs/launch/slurm.sh --config=configs/dit_rf.py:imagenet64 --workdir=/shared/runs/dit
set -uo pipefail
srun --kill-on-bad-exit=0 "${PYTHON:-.venv/bin/python}" -m archirf_jax.main "$@"
code=$?
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

#!/usr/bin/env bash
# One run under Slurm. Ray starts on every node of the allocation, and the command on the first.
#   sbatch cluster/slurm.sh                      # edit the three places marked EDIT first
# If the time limit or a lost node kills the run, sbatch it again: it goes on from what is in the store.
# Checked by `bash -n` and against the options of `ray symmetric-run`; never run under Slurm.
#SBATCH --job-name=ppt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --partition=EDIT_ME_PARTITION  # EDIT 1 of 3: a partition that sinfo lists
set -euo pipefail

source EDIT_ME_CHECKOUT/.venv/bin/activate # EDIT 2 of 3: a checkout on a shared disk, after `make install`
shared=EDIT_ME_SHARED                      # EDIT 3 of 3: a folder that every node sees, for data and store

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000)) # another user's Ray may run on the same nodes
gpus=$((SLURM_NNODES * SLURM_GPUS_ON_NODE))

# Anyone on these nodes could send work to this Ray, so it asks for a token that only this job knows.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --kill-on-bad-exit=1 \
  ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_NNODES" \
  --num-cpus="$SLURM_CPUS_ON_NODE" --num-gpus="$SLURM_GPUS_ON_NODE" -- \
  ppt train "${VIRTUAL_ENV%/.venv}/curricula/photos.yaml" store="$shared/runs" \
  data.referring.root="$shared/refcoco" data.validation.root="$shared/refcoco" \
  data.evaluation.root="$shared/refcoco" data.object_centric.root="$shared/imagenet" \
  resources.num_workers="$gpus" resources.gpus_per_worker=1 resources.cpus_per_worker=1 \
  resources.num_actors="$gpus" resources.gpus_per_actor=1 resources.cpus_per_actor=1 \
  resources.cpus_per_reader=1

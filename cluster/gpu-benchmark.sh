#!/bin/bash
# ppt's benchmark on a machine with a GPU, torch and no Ray, in at most ten minutes (run on an H100 with
# `-- --parts acdf data.referring.num_pictures=64 data.object_centric.num_pictures=32`, in 137 s):
#   bash cluster/gpu-benchmark.sh OUT [WHEELS] [-- ARGUMENTS OF ppt benchmark]
# OUT gets the log, the figures and a trace of an iteration of both sizes (chrome://tracing).
# WHEELS is for a machine without a network: a folder with the wheels of the packages of pyproject.toml
# that it lacks (neither Ray nor MLflow is needed), filled elsewhere, for example by
#   pip download --no-deps --only-binary=:all: -c constraints.txt -d WHEELS annotated-types ftfy \
#     wcwidth open_clip_torch pyarrow pycocotools pydantic pydantic_core segment-anything typing-inspection
# (with --python-version and --platform of that machine, where they differ).
# Rehearsed on a CPU: bash cluster/gpu-benchmark.sh OUT -- --short --parts acdf
set -euo pipefail
: "${1:?give the folder of the figures: bash cluster/gpu-benchmark.sh OUT}"
out=$(realpath -m "$1")
shift
mkdir -p "$out"
if [ $# -gt 0 ] && [ "$1" != -- ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  python3 -m pip install --quiet --no-index --no-deps --target "$site" "$1"/*.whl
  export PYTHONPATH="$site:${PYTHONPATH:-}"
  shift
fi
[ $# -eq 0 ] || shift
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD:${PYTHONPATH:-}" PYTHONUNBUFFERED=1
{
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv || echo "no nvidia-smi"
  python3 -c "import torch; print('torch', torch.__version__, 'CUDA', torch.cuda.is_available())"
  timeout 540 python3 -m ppt.jobs.cli benchmark --local --out "$out" "$@"
} 2>&1 | tee "$out/log.txt"

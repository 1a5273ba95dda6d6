"""Pretrains the toy world's backbones from nothing: `python -m ppt.toybox.pretrain [clip|sam|all]`.

`all` trains both at the same time, each in a process of its own with one thread. The length of a
training is a number of iterations and does not depend on the clock, so equal seeds give equal
weights.
"""

import argparse
import multiprocessing
import os
from pathlib import Path

import torch

from ppt.toybox.backbones import WEIGHTS
from ppt.toybox.pretrain_clip import pretrain_clip
from ppt.toybox.pretrain_sam import pretrain_sam

STEPS = {"clip": 1500, "sam": 13_600}  # iterations
# These settings keep glibc from returning the memory of large tensors after every iteration.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
_PRETRAIN = {"clip": pretrain_clip, "sam": pretrain_sam}


def main() -> None:
    """Parse the command line and pretrain the backbones that it names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=["clip", "sam", "all"], nargs="?", default="all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="instead of the default number of steps")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the weights")
    arguments = parser.parse_args()
    names = list(STEPS) if arguments.which == "all" else [arguments.which]
    os.environ.update(_MALLOC)
    spawn = multiprocessing.get_context("spawn")
    jobs = [
        spawn.Process(
            target=_run,
            args=(name, arguments.seed, arguments.steps or STEPS[name], arguments.out),
        )
        for name in names
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    if any(job.exitcode for job in jobs):
        raise SystemExit("a pretraining failed; its traceback is above")


def _run(name: str, seed: int, steps: int, folder: Path) -> None:
    """Pretrain one backbone in this process."""
    torch.set_num_threads(1)
    command = f"python -m ppt.toybox.pretrain {name} --seed {seed} --steps {steps}"
    _PRETRAIN[name](seed, steps, folder / f"{name}.safetensors", command)


if __name__ == "__main__":
    main()

"""Checks of everything that a run needs, made before the run. Ray is not started."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ppt.config import Curriculum
from ppt.doctor import data_sets as data
from ppt.doctor import encoders, machine
from ppt.doctor.check import Check, guarded
from ppt.doctor.cost import Cost, estimate, memory_to_encode
from ppt.doctor.published import Content

__all__ = ["Check", "examine", "examine_machine"]


def examine(curriculum: Curriculum, *, local: bool = False) -> list[Check]:
    """Make every check of a curriculum, which can run if none of them `stops`.

    With `local` it is to run in one process, without Ray.
    """
    contents: dict[str, Content] = {}

    def check_role(role: str) -> Check:
        check, content = data.check_data(role, curriculum.data)
        if content:
            contents[role] = content
        return check

    model, wanted = curriculum.model, curriculum.data
    checks = [
        guarded(f"data.{role}", partial(check_role, role), otherwise="wrong") for role in data.ROLES
    ]
    checks += [
        guarded("model.clip", lambda: encoders.check_clip(model.clip, wanted), otherwise="wrong"),
        guarded("model.sam", lambda: encoders.check_sam(model.sam, wanted), otherwise="wrong"),
    ]
    return checks + examine_machine(curriculum, contents, local=local)


def examine_machine(
    curriculum: Curriculum | None = None,
    contents: dict[str, Content] | None = None,
    *,
    local: bool = False,
) -> list[Check]:
    """Check the machine and its services, against the needs of a curriculum if one is given.

    `contents` is how much the data sets hold, by role. With `local` Ray is not asked.
    """
    cost: Cost | None = None
    memory: int | None = None
    if curriculum:
        try:
            cost = estimate(curriculum, contents or {})
            memory = memory_to_encode(curriculum)
        except ValueError:  # there is no such net, which the check of CLIP or SAM tells
            pass
    root = curriculum.store if curriculum else "runs"
    resources = curriculum.resources if curriculum else None
    folder = machine.folder_of(curriculum) if curriculum else None
    processes: list[tuple[str, Callable[[], Check]]] = [
        ("CPUs and GPUs", lambda: machine.check_processors(resources)),
        ("Ray", machine.check_ray),
    ]
    if local:
        processes = [("CPUs and GPUs", lambda: machine.check_one_process(resources))]
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("disk (store)", lambda: machine.check_disk(root, cost, local=local)),
        ("memory", lambda: machine.check_memory(memory)),
        *processes,
        ("MLflow", lambda: machine.check_mlflow(folder)),
        ("libraries", machine.check_libraries),
    ]
    return [guarded(name, check, otherwise="warning") for name, check in checks]

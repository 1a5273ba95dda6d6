"""The YAML file of a sweep, which says what values the keys of a curriculum take."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ppt.config import ConfigError, Curriculum, find_curriculum, load_curriculum
from ppt.config.curriculum import RunName
from ppt.config.named import near_curricula
from ppt.config.yaml_text import read_mapping

Values = Mapping[str, Any]
"""The values of a trial, one for each key of the sweep's space."""

MAX_TRIALS = 10_000
"""The most trials of a sweep."""

OURS = ("name", "store", "model_selection")
"""The keys of a curriculum that the sweep itself sets."""


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Range(_Config):
    """Numbers from `min` to `max`, both included; whole numbers if both bounds are whole.

    With `log` the logarithm is distributed evenly, for values of different orders of magnitude.
    """

    min: int | float
    max: int | float
    log: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if self.min >= self.max:
            raise ValueError(f"min must be < max, got {self.min} and {self.max}")
        if self.log and self.min <= 0:
            raise ValueError(f"min must be > 0 for log, got {self.min}")
        return self

    @property
    def whole(self) -> bool:
        """True if the range has whole numbers only."""
        return isinstance(self.min, int) and isinstance(self.max, int)

    def sample(self, rng: random.Random) -> int | float:
        """Draw a number."""
        if self.whole and not self.log:
            return rng.randint(int(self.min), int(self.max))
        if not self.log:
            return rng.uniform(self.min, self.max)
        value = math.exp(rng.uniform(math.log(self.min), math.log(self.max)))
        return min(max(round(value), self.min), self.max) if self.whole else value


class Sweep(_Config):
    """The content of a sweep file. `num_samples` and `seed` apply to random and optuna only."""

    name: RunName
    curriculum: Path  # relative to the sweep file's folder, or the name of a curriculum
    search: Literal["grid", "random", "optuna"] = "grid"
    num_samples: int = Field(10, gt=0, le=MAX_TRIALS)
    seed: int = 0
    space: dict[str, list[Any] | Range] = Field(min_length=1)
    scheduler: Literal["none", "asha"] = "none"
    max_concurrent: int = Field(2, gt=0)  # fewer if the cluster has no room for so many

    @model_validator(mode="after")
    def _space_can_be_searched(self) -> Sweep:
        for key, values in self.space.items():
            if key.partition(".")[0] in OURS:
                raise ValueError(f"space.{key}: the sweep sets {', '.join(OURS)} itself")
            if isinstance(values, Range):
                if self.search == "grid":
                    raise ValueError(
                        f"space.{key} must be a list for search: grid, got a range; "
                        "or take search: random"
                    )
            elif not values:
                raise ValueError(f"space.{key} must have at least one value, got []")
        number = math.prod(len(v) for v in self.space.values() if isinstance(v, list))
        if self.search == "grid" and number > MAX_TRIALS:
            raise ValueError(f"space has {number} trials, more than {MAX_TRIALS}")
        return self


def load_sweep(path: str | Path) -> Sweep:
    """Load a sweep from a YAML file.

    Raises ConfigError, which names the file or the key, if the file is not a valid sweep.
    """
    path = find_curriculum(path)
    hint = near_curricula(path) or ": give the path of a YAML file"
    absent = f"no sweep at {str(path)!r}{hint}"
    tree = read_mapping(path, absent, typed=True)
    if "space" not in tree and not {"base", "data", "stages"}.isdisjoint(tree):
        raise ConfigError(
            f"{path} is a curriculum, not a sweep, which has the keys `curriculum` and `space`: "
            "run a curriculum by `ppt train`, or name it in a sweep's `curriculum`"
        )
    try:
        sweep = Sweep.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {_explain(e)}" for e in error.errors())) from None
    curriculum = Path(os.path.normpath(find_curriculum(sweep.curriculum, beside=path.parent)))
    return sweep.model_copy(update={"curriculum": curriculum})


def _explain(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key {place!r} (value {error['input']!r})"
    if error["type"] == "missing":
        return f"{place} is missing"
    if error["type"] == "value_error":
        return f"{place + ': ' if place else ''}{error['ctx']['error']}"
    return f"{place}: {error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r}"


def trials_of(sweep: Sweep) -> list[Values]:
    """Return every trial of a grid, or the distinct seeded draws of a random search.

    The last key of a grid changes fastest, and neighbouring trials run at the same time. If the
    last key changes the first stage, such neighbours share no stage, and none waits for another.
    """
    if sweep.search == "grid":
        lists = [values for values in sweep.space.values() if isinstance(values, list)]
        return [dict(zip(sweep.space, values, strict=True)) for values in itertools.product(*lists)]
    rng = random.Random(sweep.seed)
    drawn: list[Values] = []
    for _ in range(sweep.num_samples):
        values = {
            key: rng.choice(values) if isinstance(values, list) else values.sample(rng)
            for key, values in sweep.space.items()
        }
        if values not in drawn:
            drawn.append(values)
    return drawn


def curriculum_of(
    sweep: Sweep, trial: str, values: Values, overrides: Sequence[str] = ()
) -> Curriculum:
    """Return the curriculum of a trial: the sweep's own, with `overrides` and the trial's values.

    Raises ConfigError, which names the key, the value and the trial, if the curriculum is invalid.
    """
    ours = [f"name={sweep.name}.{trial}", "model_selection=pseudo_iou"]
    try:
        return load_curriculum(sweep.curriculum, [*overrides, *_as_overrides(values), *ours])
    except ConfigError as error:
        shown = ", ".join(f"{key}={value}" for key, value in values.items())
        lines = (f"{line} (trial {trial}: {shown})" for line in str(error).splitlines())
        raise ConfigError("\n".join(lines)) from None


def _as_overrides(values: Values) -> Iterator[str]:
    for key, value in values.items():
        yield f"{key}={json.dumps(value, ensure_ascii=False)}"

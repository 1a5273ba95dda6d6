"""Reading a curriculum from its YAML file, with bases, overrides and errors that name the key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ppt.config.curriculum import ConfigError, Curriculum


def load_curriculum(path: str | Path, overrides: Sequence[str] = ()) -> Curriculum:
    """Read the curriculum of a YAML file and apply overrides.

    A file may have a `base`, the path of another file relative to its own folder. It then contains
    only what differs from the base: groups are merged key by key, `null` removes a key or a whole
    group, and a group with another `format` replaces the group of the base. `name` is not
    inherited, because it names the folder of the run.

    Args:
        path: the YAML file.
        overrides: changes such as "stages.ris_joint.num_epochs=2"; the values are YAML.

    Raises:
        ConfigError: names the file or the key that is wrong.
    """
    tree = _read_tree(Path(path))
    for override in overrides:
        _apply(tree, override)
    return parse_curriculum(tree)


def load_row(
    path: str | Path, overrides: Sequence[str] = (), base: str | Path | None = None
) -> Curriculum:
    """Read the curriculum of a row of an ablation, whose file contains what differs from its base.

    The overrides are applied to the base, before the row's differences. They may therefore name a
    stage that the row removes, and the same overrides serve every row.

    Args:
        path: the YAML file of the row.
        overrides: as for `load_curriculum`.
        base: used instead of the base that the file names.

    Raises:
        ConfigError: as for `load_curriculum`, and where the row has no base.
    """
    path = Path(path)
    row = _read_file(path)
    own = _base_of(row, path)
    if own is None:
        raise ConfigError(f"{path}: a row contains what differs from its base: give it a base")
    tree = _inherited(Path(base) if base else own, (path,))
    for override in overrides:
        _apply(tree, override)
    return parse_curriculum(_merge(tree, row))


def _read_tree(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the keys of a file, merged over those of its bases.

    `below` are the files, from the first on, that led to this one as a base.
    """
    if path.resolve() in (file.resolve() for file in below):
        circle = " -> ".join(str(file) for file in (*below, path))
        raise ConfigError(f"base goes in a circle: {circle}")
    tree = _read_file(path, below)
    base = _base_of(tree, path)
    return tree if base is None else _merge(_inherited(base, (*below, path)), tree)


def _inherited(path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    """Return the keys of a base without its name."""
    tree = _read_tree(path, below)
    tree.pop("name", None)
    return tree


def _base_of(tree: dict[str, Any], path: Path) -> Path | None:
    """Remove `base` from the keys of a file, and return its path if there is one."""
    if "base" not in tree:
        return None
    base = tree.pop("base")
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base must be the path of a YAML file, got {base!r}")
    return path.parent / base


def _read_file(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the keys of one file, without those of its base."""
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        if below:
            raise ConfigError(f"{below[-1]}: base {str(path)!r} is no file") from None
        raise ConfigError(f"no curriculum at {str(path)!r}: give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of keys, got {type(tree).__name__}")
    return tree


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of `base` with `changes`, group by group, in the order of the base."""
    merged = dict(base)
    for key, value in changes.items():
        inherited = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(inherited, dict) and _same(inherited, value):
            merged[key] = _merge(inherited, value)
        else:
            merged[key] = value
    return merged


def _same(base: dict[str, Any], changes: dict[str, Any]) -> bool:
    """Return whether two groups are of the same format, so that their keys can be merged."""
    return changes.get("format", base.get("format")) == base.get("format")


def parse_curriculum(tree: dict[str, Any]) -> Curriculum:
    """Validate plain data as a `Curriculum`; a `ConfigError` has one line for each wrong key."""
    try:
        return Curriculum.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e) for e in error.errors())) from None


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set the key of an override such as "seed=7" in `tree`."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} must look like stages.NAME.num_epochs=2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: {text!r} is not a YAML value") from None
    *parents, leaf = key.split(".")
    match tree, parents:  # a key of a new stage is refused; a new stage is stages.NAME={...}
        case {"stages": dict(stages)}, ["stages", stage, *_] if stage not in stages:
            known = ", ".join(stages) or "none"
            raise ConfigError(f"override {override!r}: no such stage; this curriculum has {known}")
    node = tree
    for i, parent in enumerate(parents):
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            here = ".".join(parents[: i + 1])
            raise ConfigError(f"override {override!r}: {here} is a value, not a group of keys")
        node = child
    node[leaf] = value


def _explain(error: Any) -> str:
    """Return one line for an error of pydantic: the key, what is wrong with it, and the value."""
    place = ".".join(str(part) for part in error["loc"])
    value = error.get("input")
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key {place!r} (value {value!r})"
        case "missing":
            return f"{place} is missing: set it in the YAML or give {place}=VALUE"
        case "value_error":
            return f"{place + ': ' if place else ''}{error['ctx']['error']}"
    return f"{place}: {error['msg'][0].lower()}{error['msg'][1:]}, got {value!r}"

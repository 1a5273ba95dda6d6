"""Reading a curriculum from its YAML file, with bases, overrides and errors that name the key."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from ppt.config.curriculum import ConfigError, Curriculum
from ppt.config.data_formats import DataFormat, format_class
from ppt.config.messages import MAX_LINES, near, place_of, shown
from ppt.config.named import CURRICULA, find_curriculum, near_curricula
from ppt.config.yaml_text import MAX_DEPTH, parse_yaml, read_mapping

RUN_CURRICULUM = "curriculum.yaml"
"""The file in a run's folder that holds the curriculum as it was trained."""

MAX_BASES = 20
"""The most files of which each is the base of another."""


def load_curriculum(path: str | Path, overrides: Sequence[str] = ()) -> Curriculum:
    """Read the curriculum of a YAML file and apply overrides.

    A file may have a `base`: the path of another file relative to its own folder, or the name of a
    curriculum that comes with ppt. It then contains only what differs from the base: groups are
    merged key by key, `null` removes a key or a whole group, and a group with another `format`
    replaces the group of the base. `name` is not inherited, because it names the folder of the run;
    by default it is the name of the file without its suffix.

    Args:
        path: the YAML file, or the name of a curriculum that comes with ppt, e.g. quickstart.
        overrides: changes such as "stages.ris_joint.num_epochs=2". A value is a text as it stands;
            `null` removes the key, and [...], {...} and a quoted text are YAML.

    Raises:
        ConfigError: names the file or the key that is wrong.
    """
    return load_with_origins(path, overrides)[0]


def load_with_origins(
    path: str | Path, overrides: Sequence[str] = ()
) -> tuple[Curriculum, Origins]:
    """Read a curriculum as `load_curriculum`, and tell where each of its keys was set."""
    tree = _read_named(find_curriculum(path))
    faults = _apply(tree, overrides)
    return parse_curriculum(_plain(tree), faults), Origins(dict(_origins(tree)))


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
    row = _named_by(path, _read_file(path))
    own = _base_of(row, path)
    if own is None:
        raise ConfigError(f"{path}: a row contains what differs from its base: give it a base")
    tree = _inherited(find_curriculum(base) if base else own, (path,))
    faults = _apply(tree, overrides)
    return parse_curriculum(_plain(_merge(tree, row)), faults)


def place_of_run(path: str | Path, overrides: Sequence[str] = ()) -> tuple[str, str] | None:
    """Return the store and the name of a curriculum, which need not be whole otherwise.

    With a mistake in the name, the store or the overrides it is None. Raises ConfigError if a file
    cannot be read.
    """
    tree = _read_named(find_curriculum(path))
    if _apply(tree, overrides):
        return None
    plain = _plain(tree)
    store, name = plain.get("store", Curriculum.model_fields["store"].default), plain.get("name")
    return (store, name) if isinstance(store, str) and isinstance(name, str) else None


def load_run(folder: Path, overrides: Sequence[str] = (), store: str | None = None) -> Curriculum:
    """Read the curriculum of a run as it was trained, from the run's folder.

    Args:
        folder: the run's folder, wherever it lies now, under whatever name.
        overrides: as for `load_curriculum`.
        store: the store; by default the one beside which the folder lies, or else the one in which
            the run was trained.

    Raises:
        ConfigError: as for `load_curriculum`.
    """
    tree = _read_tree(folder / RUN_CURRICULUM)
    if store is None and (folder.parent / "store").is_dir():
        store = str(folder.parent)
    if store is not None:
        tree["store"] = _marked(store, str(folder))
    faults = _apply(tree, overrides)
    return parse_curriculum(_plain(tree), faults)


@dataclass(frozen=True)
class Origins:
    """Where the keys of a curriculum were set."""

    set_by: dict[tuple[str, ...], str]  # the file or "override", by the place of the key

    def of(self, place: tuple[str, ...]) -> str:
        """Return the file that sets a key, "override" or "default", or several of them."""
        found = [self.set_by[part] for part in self.set_by if part[: len(place)] == place]
        return ", ".join(dict.fromkeys(found)) or "default"


@dataclass(frozen=True)
class _Value:
    """A value as it was read, with its origin. Values of two origins can be equal."""

    value: Any
    origin: str = field(compare=False)


def _marked(tree: Any, origin: str) -> Any:
    """Return plain data in which each value has its origin; what is None stays None."""
    if isinstance(tree, dict):
        return {key: _marked(value, origin) for key, value in tree.items()}
    return None if tree is None else _Value(tree, origin)


def _plain(tree: Any) -> Any:
    """Return the plain data without origins."""
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    return tree.value if isinstance(tree, _Value) else tree


def _origins(tree: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the place and the origin of each value."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _origins(value, (*place, key))
    elif isinstance(tree, _Value):
        yield place, tree.origin


def _read_tree(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the keys of a file, merged over those of its bases.

    `below` are the files, from the first on, that led to this one as a base.
    """
    tree = _read_file(path, below)
    if path.resolve() in (file.resolve() for file in below):
        circle = " -> ".join(str(file) for file in (*below, path))
        raise ConfigError(f"base goes in a circle: {circle}")
    if len(below) > MAX_BASES:
        raise ConfigError(f"{below[0]}: more than {MAX_BASES} files are each the base of another")
    base = _base_of(tree, path)
    return tree if base is None else _merge(_inherited(base, (*below, path)), tree)


def _read_named(path: Path) -> dict[str, Any]:
    """Return the keys of a curriculum, merged over those of its bases, with its name."""
    return _named_by(path, _read_tree(path))


def _named_by(path: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a file, in which the name is by default that of the file."""
    if tree.get("name") is not None:
        return tree
    name = path.stem if path.suffix in (".yaml", ".yml") else path.name
    return {**tree, "name": _Value(name, "default")}


def _inherited(path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    """Return the keys of a base without its name."""
    tree = _read_tree(path, below)
    tree.pop("name", None)
    return tree


def _base_of(tree: dict[str, Any], path: Path) -> Path | None:
    """Remove `base` from the keys of a file, and return its path if there is one."""
    if "base" not in tree:
        return None
    base = _plain(tree.pop("base"))
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base must be the path of a YAML file, got {shown(base)}")
    return find_curriculum(base, beside=path.parent)


def _read_file(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the keys of one file, without those of its base, with their origins."""
    hint = near_curricula(path) or ": give the path of a YAML file or a name such as quickstart"
    absent = f"no curriculum at {str(path)!r}{hint}"
    if below:
        absent = f"{below[-1]}: base {str(path)!r} is no file"
    if run := run_around(path):
        raise ConfigError(f"{path} is of a run: give its curriculum, {run / RUN_CURRICULUM}")
    tree = read_mapping(path, absent)
    if "curriculum" in tree and "space" in tree:
        raise ConfigError(f"{path} is a sweep, not a curriculum: run it by `ppt sweep`")
    known = path.is_relative_to(CURRICULA)
    return _marked(tree, str(path.relative_to(CURRICULA) if known else path))


def run_around(path: Path) -> Path | None:
    """Return the run's folder if a path is this folder, or a file in it but no YAML; else None."""
    if os.path.isfile(path / RUN_CURRICULUM):
        return path
    is_other = os.path.isfile(path) and path.suffix not in (".yaml", ".yml")
    return path.parent if is_other and (path.parent / RUN_CURRICULUM).is_file() else None


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


def parse_curriculum(tree: dict[str, Any], faults: Sequence[str] = ()) -> Curriculum:
    """Validate plain data as a `Curriculum`.

    Args:
        tree: the keys. A text is taken for a number, or for true or false, where one is needed.
        faults: what is known to be wrong with the curriculum before.

    Raises:
        ConfigError: has one line for each fault and each wrong key.
    """
    lines = list(faults)
    try:
        curriculum = Curriculum.model_validate(tree)
    except ValidationError as error:
        errors = error.errors()
        lines += [line for e in errors[:MAX_LINES] for line in _explain(e, tree)]
        if len(errors) > MAX_LINES:
            lines.append(f"and {len(errors) - MAX_LINES} more mistakes")
    if lines:
        raise ConfigError("\n".join(lines))
    return curriculum


def _apply(tree: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Set the keys of overrides such as "seed=7" in `tree`, and return a line for each mistake."""
    faults = []
    for override in overrides:
        try:
            _apply_one(tree, override)
        except ValueError as error:
            faults += [f"override {shown(override)}: {line}" for line in str(error).splitlines()]
    return faults


def _apply_one(tree: dict[str, Any], override: str) -> None:
    """Set the key of one override in `tree`, or remove it if its value is `null`.

    Raises ValueError if this cannot be done.
    """
    key, equals, text = override.partition("=")
    *parents, leaf = key.split(".")
    if not equals or not key or len(parents) > MAX_DEPTH:
        raise ValueError("must look like stages.NAME.num_epochs=2")
    value = _marked(_value_of(text), "override")
    match tree, [*parents, leaf]:  # a new stage is given whole, as stages.NAME={...}
        case {"stages": dict(stages)}, ["stages", stage, *rest] if stage not in stages:
            if rest or value is None:
                known = ", ".join(stages) or "none"
                hint = near(stage, stages)
                raise ValueError(f"no such stage; this curriculum has {place_of([known])}{hint}")
    node = tree
    for i, parent in enumerate(parents):
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise ValueError(f"{place_of(parents[: i + 1])} is a value, not a group of keys")
    if value is None:
        node.pop(leaf, None)
    else:
        node[leaf] = value


def _value_of(text: str) -> Any:
    """Return the value of an override, which is its text as it stands, with two exceptions.

    `null` and `~` are None, and what begins with a bracket, a brace or a quotation mark is YAML.
    Raises ValueError if it is not.
    """
    if text in ("null", "~"):
        return None
    if not text.startswith(("[", "{", "'", '"')):
        return text
    try:
        return parse_yaml(text)
    except ValueError as error:
        hint = f"quote a text that begins with {text[0]}"
        raise ValueError(f"{shown(text)} is not a YAML value ({error}); {hint}") from None


def _explain(error: Any, tree: Any) -> list[str]:
    """Return the lines for an error of pydantic: the key, what is wrong with it, and the value."""
    *group, key = error["loc"] or [""]
    place = place_of(group if key == "[key]" else error["loc"])
    value = shown(error.get("input"))
    begin = f"{place}: " if place else ""
    match error["type"]:
        case "extra_forbidden":
            hint = near(str(key), _keys_at(tree, group), group)
            return [f"unknown key '{place}' (value {value}){hint}"]
        case "missing":
            return [f"{place} is missing: set it in the YAML or give {place}=VALUE"]
        case "value_error":
            return [begin + line for line in str(error["ctx"]["error"]).splitlines()]
        case "literal_error" | "unknown_format":
            told = error["ctx"].get("expected") or error["ctx"]["known"]
            hint = near(str(error["input"]), re.findall(r"[\w.+-]{2,}", told))
            return [f"{begin}{error['msg'][0].lower()}{error['msg'][1:]}, got {value}{hint}"]
    return [f"{begin}{error['msg'][0].lower()}{error['msg'][1:]}, got {value}"]


def _keys_at(tree: Any, place: Sequence[Any]) -> list[str]:
    """Return the keys that the group at a place may have, if its class says so."""
    kind: Any = Curriculum
    for part in place:
        try:
            tree = tree[part]
        except KeyError:  # pydantic replaces characters of a name that UTF-8 cannot encode
            return []
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif part in (fields := getattr(kind, "model_fields", {})):
            kind = fields[part].annotation
        else:
            return []
        if kind is DataFormat:
            kind = format_class(tree["format"])
    return list(getattr(kind, "model_fields", ()))

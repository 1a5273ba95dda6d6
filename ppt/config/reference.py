"""What every key of a curriculum means: for one curriculum, and as a page for all of them.

The descriptions are the comments above the fields of the configuration's classes, so that there is
one text for those who read the code and those who do not. `python -m ppt.config.reference` prints
the page, which is docs/configuration.md.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ppt.config.curriculum import Curriculum, Data, Stage
from ppt.config.data_formats import OBJECT_CENTRIC, REFERRING, format_class
from ppt.config.load import Origins

REQUIRED = object()
"""The default of a key that has none."""

_PLAIN = re.compile(r"[A-Za-z/][\w./+-]*")
_NULLS = ("null", "Null", "NULL")


@dataclass(frozen=True)
class Key:
    """A key of a curriculum with its value."""

    place: tuple[str, ...]
    value: Any
    default: Any  # REQUIRED if there is none
    origin: str  # the file that sets it, "override" or "default"; empty if not known
    description: str  # empty if not asked for


def keys_of(curriculum: Curriculum, origins: Origins | None = None) -> list[Key]:
    """Return every key of a curriculum, in the order of the configuration's classes.

    Without `origins` the keys have no description and no origin.
    """
    return list(_keys(curriculum, (), None, origins))


def _keys(
    group: BaseModel, place: tuple[str, ...], usual: Any, origins: Origins | None
) -> Iterator[Key]:
    """Yield the keys of a group. `usual` is the group as it is if nothing sets it, if it can be."""
    told = descriptions(type(group)) if origins else {}
    for name, field in type(group).model_fields.items():
        value, here = getattr(group, name), (*place, name)
        default = REQUIRED if field.is_required() else field.get_default()
        if usual is not None:
            default = getattr(usual, name)
        if isinstance(value, BaseModel):
            yield from _keys(value, here, None if default is REQUIRED else default, origins)
        elif isinstance(value, Mapping) and isinstance(next(iter(value.values()), None), BaseModel):
            for part, inner in value.items():
                yield from _keys(inner, (*here, part), None, origins)
        else:
            origin = origins.of(here) if origins else ""
            yield Key(here, value, default, origin, told.get(name, ""))


def curriculum_text(keys: Sequence[Key]) -> str:
    """Return keys as a YAML file that says of each what it means and where it was set, if known.

    The file is a curriculum of its own: it has no base, and running it is running what it tells.
    """
    lines: list[str] = []
    before: tuple[str, ...] = ()
    for key in keys:
        *groups, name = key.place
        same = next(
            (i for i, part in enumerate(groups) if before[i : i + 1] != (part,)), len(groups)
        )
        for depth in range(same, len(groups)):
            lines += [""] * (depth == 0) + [f"{'  ' * depth}{_yaml(groups[depth])}:"]
        indent = "  " * len(groups)
        lines += [f"{indent}# {line}" for line in _wrapped(key.description, 96 - len(indent))]
        if key.origin in ("", "default"):
            told = key.origin
        elif key.default is REQUIRED:
            told = f"{key.origin} (no default)"
        else:
            told = f"{key.origin} (default {_yaml(key.default)})"
        line = f"{indent}{_yaml(name)}: {_yaml(key.value)}"
        lines.append(f"{line}  # {told}" if told else line)
        before = tuple(groups)
    return "\n".join(lines) + "\n"


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _yaml(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_yaml(k)}: {_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, str | Path):
        text = str(value)
        return text if _PLAIN.fullmatch(text) and text not in _NULLS else json.dumps(text)
    return json.dumps(value)


def descriptions(group: type[BaseModel]) -> dict[str, str]:
    """Return the comment above each field of a class of the configuration, on one line."""
    found: dict[str, str] = {}
    for part in reversed(group.__mro__):
        if not issubclass(part, BaseModel) or part is BaseModel:
            continue
        comment: list[str] = []
        for line in inspect.getsource(part).splitlines():
            if line.startswith("    # "):
                comment.append(line[6:])
                continue
            if comment and (field := re.match(r"    (\w+):", line)):
                found[field[1]] = " ".join(comment)
            comment = []
    return found


# ---------------------------------------------------------------- the page

_HEAD = """\
# Configuration reference

This page is made from the code (`python -m ppt.config.reference`). `ppt config CURRICULUM` prints
the same for one curriculum, with its values and where each was set. A key without a default must be
given. "(our choice)" marks what the paper does not determine.
"""


def reference_page() -> str:
    """Return the page with every key of a curriculum, in Markdown."""
    parts = [_HEAD, *_sections(Curriculum, "", "A curriculum")]
    for roles, formats in (
        ("data.referring, data.validation, data.evaluation", REFERRING),
        ("data.object_centric", OBJECT_CENTRIC),
    ):
        for name in formats:
            title = f"`{roles.replace(', ', '`, `')}` with `format: {name}`"
            parts += _sections(format_class(name), "", title)
    return "\n".join(parts)


def _sections(group: type[BaseModel], prefix: str, title: str) -> Iterator[str]:
    """Yield the section of a group of keys, and then those of the groups within it."""
    told, inner = descriptions(group), []
    rows = []
    for name, field in group.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            if group is not Data:
                inner.append((field.annotation, f"{prefix}{name}.", f"`{prefix}{name}`"))
            kind, default = "group", "" if field.is_required() else "as below"
        elif name == "stages":
            inner.append((Stage, "stages.NAME.", "`stages.NAME`"))
            kind, default = "groups by name", ""
        else:
            kind = _kind(group.model_json_schema()["properties"][name], group)
            default = "" if field.is_required() else f"`{_yaml(field.get_default())}`"
        rows.append(f"| `{prefix}{name}` | {kind} | {default} | {told[name]} |".replace("  ", " "))
    about = " ".join((inspect.getdoc(group) or "").partition("\n\n")[0].split())
    yield f"\n## {title}\n\n{about}\n\n| key | value | default | meaning |\n|---|---|---|---|"
    yield "\n".join(rows)
    for one in inner:
        yield from _sections(*one)


_BOUNDS = {
    "exclusiveMinimum": "> {}",
    "minimum": ">= {}",
    "exclusiveMaximum": "< {}",
    "maximum": "<= {}",
}
_TYPES = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "null": "null",
}


def _kind(schema: dict[str, Any], group: type[BaseModel]) -> str:
    """Return in words which values a key takes, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(_kind(one, group) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            return "[" + ", ".join(_kind(one, group) for one in schema["prefixItems"]) + "]"
        return f"list of {_kind(schema['items'], group)}"
    if schema.get("type") == "object":
        keys = _kind(schema["propertyNames"], group)
        return f"{{key: {_kind(schema['additionalProperties'], group)}}} with keys {keys}"
    if schema.get("format") == "path":
        return "path"
    bounds = [
        text.format(_number(schema[name])) for name, text in _BOUNDS.items() if name in schema
    ]
    return " ".join([_TYPES[schema["type"]], ", ".join(bounds)]).strip()


def _number(value: float) -> str:
    """Return a bound; one that is a large power of two is written as such."""
    exponent = int(value).bit_length() - 1
    return f"2^{exponent}" if exponent > 40 and value == 2**exponent else str(value)


if __name__ == "__main__":
    print(reference_page(), end="")

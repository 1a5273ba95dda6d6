"""Reading YAML as plain data, within limits and without the conversions of YAML 1.1.

A value is the text that is written; the type of its field makes a number of it, or true or false.
Therefore `yes`, `1e3` and `2026-01-01` are texts where a text is meant, and `yes`, `.inf` and
`1:30` are refused where a number is meant. Only `null`, `~` and an empty value are no text.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from ppt.config.curriculum import ConfigError
from ppt.config.messages import MAX_LINES, shown

MAX_BYTES = 32 * 1024
"""The size of the largest file, in bytes."""

MAX_DEPTH = 20
"""The most groups or lists within one another."""

MAX_VALUES = 5_000
"""The most values and groups of a file, with each alias counted as what it stands for."""

TOO_DEEP = f"more than {MAX_DEPTH} groups or lists within one another"

_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}
_NULLS = {"", "~", "null", "Null", "NULL"}
_JSON = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?|true|false")


def read_mapping(path: Path, absent: str, *, typed: bool = False) -> dict[str, Any]:
    """Return the keys of a YAML file.

    Args:
        path: the file.
        absent: the message if there is no such file.
        typed: as for `parse_yaml`.

    Raises:
        ConfigError: if the file cannot be read or does not hold a mapping of keys.
    """
    name = str(path) if str(path).isprintable() else repr(str(path))
    try:
        if not path.exists():
            raise ConfigError(absent)
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "no regular file"
            raise ConfigError(f"{name} is {kind}: give the path of a YAML file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{name} has more than {MAX_BYTES} bytes, too many for a curriculum")
        tree = parse_yaml(content.decode("utf-8-sig"), typed=typed)
    except ConfigError:
        raise
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is no text in UTF-8: byte {error.start} is wrong") from None
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from None
    except ValueError as error:
        lines = (f"{name} cannot be read as YAML: {line}" for line in str(error).splitlines())
        raise ConfigError("\n".join(lines)) from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{name} must hold a mapping of keys, got {shown(tree)}")
    return tree


def parse_yaml(text: str, *, typed: bool = False) -> Any:
    """Return the plain data of a YAML text: texts, None, lists and dictionaries with texts as keys.

    Args:
        text: the YAML.
        typed: whether plain values that are numbers or booleans in JSON become these.

    Raises:
        ValueError: tells the line and what is wrong with it. The message has a line for each
            key that occurs twice, up to `MAX_LINES` of them.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        problem = " ".join(f"{error.context or ''} {error.problem or ''}".split())
        mark = error.problem_mark or error.context_mark
        raise ValueError(f"line {mark.line + 1 if mark else 1}: {problem}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if root is None:
        return None
    reader = _Reader(typed)
    tree = reader.read(root)
    if reader.repeated:
        raise ValueError("\n".join(reader.repeated[:MAX_LINES]))
    return tree


class _Loader(yaml.BaseLoader):
    """Parses YAML without conversions."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        """Scan an opening bracket; the scanner's time grows with the square of their number."""
        if self.flow_level > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=TOO_DEEP, problem_mark=self.get_mark())
        super().fetch_flow_collection_start(TokenClass)


class _Reader:
    """Turns the nodes of a YAML text into plain data, and counts them."""

    def __init__(self, typed: bool) -> None:
        self._typed = typed
        self._count = 0
        self.repeated: list[str] = []  # a message for each key that occurs twice

    def read(self, node: yaml.Node, depth: int = 0) -> Any:
        self._count += 1
        line = node.start_mark.line + 1
        if self._count > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values (an alias counts as what it repeats)")
        if depth > MAX_DEPTH:
            raise ValueError(f"line {line}: {TOO_DEEP}")
        if node.tag not in _TAGS:
            raise ValueError(f"line {line}: tags such as {shown(node.tag)} are not supported")
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, depth + 1) for item in node.value]
        if isinstance(node, yaml.MappingNode):
            return self._read_mapping(node, depth)
        assert isinstance(node, yaml.ScalarNode)
        return self._read_scalar(node)

    def _read_mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"line {line}: a key must be a text")
            if key.value in tree:
                self.repeated.append(f"line {line}: key {shown(key.value)} is given twice")
            tree[key.value] = self.read(value, depth + 1)
        return tree

    def _read_scalar(self, node: yaml.ScalarNode) -> Any:
        if node.style is not None:  # quoted, or a block of text
            return node.value
        if node.value in _NULLS:
            return None
        return json.loads(node.value) if self._typed and _JSON.fullmatch(node.value) else node.value

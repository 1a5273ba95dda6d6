"""Odd values, trees with odd values in them, and bytes of real files that are changed at random."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

ODD_TEXTS = (
    *("", " ", "null", "~", "yes", "no", "true", "0", "-1", "010", "1e3", "1e400", "nan", ".inf"),
    *(
        "a b",
        " #x",
        "a: b",
        "é",
        "e\u0301",
        "\u202egnirts",
        "собака",
        "狗",
        "🐕",
        "\ufeffx",
        "a\tb",
    ),
    *("\ud800", "half \udfff", "a\0b", "a\nb", "a\r\nb", "\x1b[31mred", "[bold]x[/bold]", "[/]"),
    *("../../x", "/etc/passwd", "/dev/zero", "~", "~root", "file:///x", "C:\\x", "con", ".", ".."),
    *('"', "'", '"open', "a,b", "{", "[1,2", "%s%n", "{0}", "*", "&a", "!!python/object:os.system"),
    *("x" * 300, "é" * 200, "x " * 5_000, "9" * 5_000),
)
ODD_NUMBERS = (0, -1, 1, 2, 255, 2**31, 2**63, 2**64, 10**30, -(10**30), 10**400)
ODD_FLOATS = (0.5, -0.0, 1e-320, 1e9, 1e300, float("inf"), float("-inf"), float("nan"))

texts: SearchStrategy[str] = st.sampled_from(ODD_TEXTS) | st.text(max_size=12)
plain: SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.sampled_from(ODD_NUMBERS)
    | st.sampled_from(ODD_FLOATS)
    | texts
    | st.integers(-1000, 1000)
)
"""Values that JSON and YAML can write."""

containers: SearchStrategy[Any] = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)
odd: SearchStrategy[Any] = containers | st.binary(max_size=8)

Place = tuple[Any, ...]


def places(tree: Any, here: Place = ()) -> Iterator[Place]:
    """Yield the place of everything in a tree of lists and dictionaries."""
    if isinstance(tree, list | dict):
        items = enumerate(tree) if isinstance(tree, list) else tree.items()
        for key, value in items:
            yield (*here, key)
            yield from places(value, (*here, key))


@st.composite
def changed(draw: DrawFn, tree: Any, values: SearchStrategy[Any] = odd, most: int = 3) -> Any:
    """Return a copy of a tree with a few values replaced, removed, doubled or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, most))):
        found = list(places(tree))
        if not found:
            break
        *parents, key = draw(st.sampled_from(found))
        node = tree
        for parent in parents:
            node = node[parent]
        match draw(st.sampled_from(["replace"] * 5 + ["remove", "double", "move"])):
            case "replace":
                node[key] = draw(values)
            case "remove":
                del node[key]
            case "double" if isinstance(node, list):
                node.append(copy.deepcopy(node[key]))
            case "double":
                node[draw(texts)] = copy.deepcopy(node[key])
            case "move":  # what stands elsewhere, for example the id of another entry
                alike = [place for place in found if place[-1] == key]
                other = tree
                for parent in draw(st.sampled_from(alike)):
                    try:
                        other = other[parent]
                    except (KeyError, IndexError, TypeError):  # it was removed before
                        break
                node[key] = copy.deepcopy(other)
    return tree


def mutated(files: Sequence[bytes]) -> SearchStrategy[bytes]:
    """One of the files with some of its bytes changed, moved, removed or doubled."""
    return st.builds(_mutate, st.sampled_from(files), st.integers(0, 2**48))


def _mutate(data: bytes, seed: int) -> bytes:
    rng = random.Random(seed)
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 10))):
        size = len(content)
        # Headers lie at the beginning or the end of a file, and decide most.
        near = rng.choice((size, size, min(size, 64), min(size, 600)))
        at = rng.randrange(near + 1) if rng.random() < 0.8 else size - rng.randrange(near + 1)
        length = rng.choice((1, 1, 2, 4, 16, 256))
        match rng.randrange(9):
            case 0 if at < size:
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                content[at : at + length] = rng.randbytes(length)
            case 2:
                del content[at : at + length]
            case 3:
                content[at:at] = rng.randbytes(length)
            case 4:
                content[at:at] = content[at : at + length]
            case 5:
                del content[at:]
            case 6:
                content[at : at + length] = bytes([rng.choice((0, 255, 127))]) * length
            case 7:
                content[at:at] = rng.choice((b"[", b"{", b'"', b"\0", b"(", b"\xff")) * 20_000
            case 8 if at < size:
                content[at] = (content[at] + rng.choice((-1, 1))) % 256
    return bytes(content)

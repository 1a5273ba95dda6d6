"""Tables of one's own pictures, as CSV and JSON Lines."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from PIL import Image

from fuzz.boxes import (
    encoded,
    mask_of,
    masks_in,
    picture,
    polygon_of,
    prepare,
    text_of,
    texts_in,
)
from fuzz.cases import Content, Folder, Input, Kind, Link, Outcome, Pipe
from fuzz.mutate import changed, mutated, odd, texts
from ppt.store.nodes import Node

Row = dict[str, Any]

_OVERRIDES = [
    "data.object_centric={format: toybox_objects, num_pictures: 1, seed: 0}",
    *(
        f"data.{name}={{format: table, path: PATH}}"
        for name in ("referring", "validation", "evaluation")
    ),
]


@st.composite
def rows(draw: DrawFn, columns: tuple[str, ...], most: int = 8) -> tuple[list[Row], set[int]]:
    """Rows of a table of which some have odd cells; also the numbers of those that have none."""
    number = draw(st.integers(0, most))
    made, whole = [], set()
    for i in range(number):
        row: Row = {"picture": f"pictures/{i % 3}.jpg", "expression": text_of(i)}
        if "mask" in columns and draw(st.booleans()):
            row["mask"] = f"masks/{i}.png"
        elif "polygon" in columns:
            row["polygon"] = json.dumps(polygon_of(i))
        if draw(st.integers(0, 3)) == 0:
            row[draw(st.sampled_from([*columns, "other"]))] = draw(odd)
        else:
            whole.add(i)
        made.append(row)
    return made, whole


def as_csv(made: list[Row], columns: list[str]) -> bytes:
    """Write rows as a CSV whose every row is one line."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for row in made:
        cells = ["" if row.get(c) is None else str(row.get(c)) for c in columns]
        writer.writerow([" ".join(cell.splitlines()) for cell in cells])
    return stream.getvalue().encode(errors="replace")


def _as_json_lines(made: list[Row]) -> bytes:
    return "".join(json.dumps(row, default=list, skipkeys=True) + "\n" for row in made).encode()


def files_of(number: int) -> dict[str, Content]:
    """Return the pictures and masks of a table."""
    masks = {
        f"masks/{i}.png": encoded(Image.fromarray(mask_of(i).astype(np.uint8) * 255), "PNG")
        for i in range(number)
    }
    return {**{f"pictures/{n}.jpg": picture(n) for n in range(3)}, **masks}


@st.composite
def _tables(draw: DrawFn) -> Input:
    columns = ("picture", "expression", "id", "kind", "mask", "polygon")
    made, whole = draw(rows(columns))
    form = draw(st.sampled_from(["csv", "jsonl"]))
    lines: int | None = len(made)
    if form == "csv":
        header = draw(st.permutations(columns) | changed(list(columns), texts))
        header = ["".join(name.splitlines()) for name in header]
        data = as_csv(made, header)
        # A blank line is no row; the others are, as the writer puts each into one line.
        lines = sum(bool(line.strip()) for line in data.split(b"\n")) - 1
    else:
        data = _as_json_lines(made)
    files = files_of(8)
    match draw(st.sampled_from(["none"] * 4 + ["bytes", "bytes", "file"])):
        case "bytes":
            data, lines, whole = draw(mutated([data])), None, set()
        case "file":
            name = draw(st.sampled_from(sorted(files)))
            other = [b"", Pipe(), Folder(), Link("/dev/zero"), Link(name.rpartition("/")[2])]
            files[name] = draw(mutated([files[name]]) | st.sampled_from(other))  # type: ignore[list-item]
            whole = set()
    if draw(st.integers(0, 15)) == 0:
        form, lines = draw(st.sampled_from(["parquet", "json", "ndjson", "CSV", "txt"])), None
    texts_of_whole = [text_of(i) for i in whole]
    return Input(
        {**files, f"table.{form}": data},
        {"table": f"table.{form}", "lines": lines, "whole": texts_of_whole},
    )


def _check(folder: Path, about: Mapping[str, Any], run: Path) -> Outcome:
    def right(nodes: Mapping[str, list[Node]]) -> None:
        table = [n for n in nodes["samples"] if not _is_toybox(n)]
        assert len(table) == 1
        into = table[0].counts()["expressions"]["in"]
        assert about["lines"] in (None, into), f"{into} rows of {about['lines']}"
        texts = texts_in(nodes["samples"])
        times = Counter(texts.values())
        for key, mask in masks_in(nodes["ground_truth"]).items():
            assert mask.any(), f"the mask of {key} is empty"
            if (text := texts.get(key)) in about["whole"] and times[text] == 1:
                number = int(text.split()[1])
                assert np.array_equal(mask, mask_of(number)), f"the mask of {key} is another one"

    overrides = [text.replace("PATH", str(folder / about["table"])) for text in _OVERRIDES]
    return prepare(folder, overrides, right)  # type: ignore[return-value]


def _is_toybox(node: Node) -> bool:
    return any(row["class_name"] is not None for row in node.read_all().to_pylist())


KINDS = {"table": Kind(lambda run: _tables(), _check, 2)}

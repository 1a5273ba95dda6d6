"""`ppt predict`: a picture with texts, and a table."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from PIL import Image
from pycocotools import mask as coco

from fuzz.boxes import SIZE, photos, picture
from fuzz.cases import Content, Folder, Input, Kind, Link, Outcome, Pipe, ppt, reasoned, told
from fuzz.mutate import changed, mutated, texts
from fuzz.tables import as_csv, files_of, rows
from ppt.config import ConfigError, Resources
from ppt.data.source import RawExpression, split_expressions
from ppt.serving.predict_table import predict_table
from ppt.serving.stored_checkpoint import open_checkpoint
from ppt.steps.local_runner import LocalRunner

COCO = ("coco.results.json", "coco.images.json")

_names = st.one_of(
    st.sampled_from(["a.jpg", "a b.jpg", "é.jpg", "e\u0301.jpg", "\udce9.jpg", "x" * 240 + ".jpg"]),
    st.sampled_from(["a.png", ".jpg", "#.jpg", "[b]x[/b].jpg", "no.jpg", "-a.jpg", "a\nb.jpg"]),
)
_expressions = st.one_of(
    st.sampled_from(["red box", "the box on the left", "box", "box!", "Box ", "x" * 70, "x" * 71]),
    texts,
)


@st.composite
def _questions(draw: DrawFn) -> Input:
    kept: Content = draw(
        st.sampled_from([picture(1), picture(1), picture(2, "PNG"), *photos()[:2]])
    )
    other = st.sampled_from([b"", Pipe(), Folder(), Link("/dev/zero"), Link("/nowhere")])
    content: Content = draw(
        st.just(kept) | st.just(kept) | st.just(kept) | mutated([picture(1)]) | other  # type: ignore[arg-type]
    )
    name = draw(_names)
    # A text such as "*" would be a pattern of pictures, which unit tests try.
    asked = draw(st.lists(_expressions.filter(lambda text: not glob.has_magic(text)), max_size=3))
    options: list[str] = []
    if draw(st.integers(0, 5)) == 0:
        option = draw(
            st.sampled_from(["--stage", "--clip-weights", "--sam-weights", "--num-actors"])
        )
        options = [option, draw(texts | st.just("ris_joint"))]
    return Input({name: content}, {"name": name, "texts": asked, "options": options})


def _check_question(folder: Path, about: Mapping[str, Any], run: Path) -> Outcome:
    out = folder / "out"
    given = [str(folder / about["name"]), *about["texts"]]
    # Arguments come from a shell as bytes without zeros; other characters cannot be given.
    if any("\0" in text for text in [*given, *about["options"]]):
        given = [text.replace("\0", "") for text in given]
        about = {**about, "options": []}
    places = ["--checkpoint", str(run), "--out", str(out), "--force"]
    result = ppt("predict", *places, *about["options"], "--", *given)
    if result.exit_code:
        assert result.exit_code == 2, result.output
        assert not list(out.glob("*")), "results beside an error"
        return "told"
    asked = given[1:]
    files = [path for path in out.glob("*.json") if path.name not in COCO]
    found = [json.loads(path.read_text()) for path in files]
    kept, rejected = split_expressions(RawExpression("", text) for text in asked)
    assert not rejected, f"a text was left out: {rejected}"
    wanted = {expression.text for expression in kept}
    assert {row["expression"] for row in found} == wanted, f"{found} of {wanted}"
    for path in files:
        row = json.loads(path.read_text())
        mask = coco.decode(row["mask"]).astype(bool)
        shown = np.asarray(Image.open(path.with_name(f"{path.stem}.mask.png"))) > 0
        assert np.array_equal(mask, shown)
        assert mask.shape == (row["height"], row["width"])
        assert path.with_name(f"{path.stem}.png").stat().st_size
    return "right"


@st.composite
def _tables(draw: DrawFn) -> Input:
    made, whole = draw(rows(("picture", "expression")))
    columns = ["picture", "expression"]
    header = draw(st.just(columns) | st.permutations([*columns, "other"]) | changed(columns, texts))
    header = ["".join(name.splitlines()) for name in header]
    data = as_csv(made, header)
    lines: int | None = sum(bool(line.strip()) for line in data.split(b"\n")) - 1
    if draw(st.integers(0, 2)) == 0:
        data, lines, whole = draw(mutated([data])), None, set()
    files = files_of(0)
    if draw(st.integers(0, 3)) == 0:
        name, whole = draw(st.sampled_from(sorted(files))), set()
        other = st.sampled_from([b"", Pipe(), Folder(), Link("/dev/zero")])
        files[name] = draw(mutated([picture(0)]) | other)  # type: ignore[arg-type]
    wanted = {i: made[i]["expression"] for i in sorted(whole)} if header == columns else {}
    return Input({**files, "t.csv": data}, {"lines": lines, "whole": wanted})


def _check_table(folder: Path, about: Mapping[str, Any], run: Path) -> Outcome:
    try:
        found = predict_table(
            folder / "t.csv",
            open_checkpoint(run),
            folder / "out",
            lambda store: nullcontext(LocalRunner(store, Resources())),
            force=True,
        )
    except ConfigError as error:
        return told(error)
    count = found.count
    assert count.into == count.out + count.quarantined
    assert about["lines"] in (None, count.into), f"{count} of {about['lines']} lines"
    predicted = pq.read_table(found.predictions).to_pylist()
    assert len(predicted) == count.out == len(list(found.masks.glob("*.png")))
    assert len(found.reasons) == count.quarantined
    reasoned(found.reasons)
    numbers = sorted([row["row"] for row in [*predicted, *found.reasons]])
    assert numbers == list(range(1, count.into + 1)), numbers
    by_row = {row["row"]: row for row in predicted}
    for number, text in about["whole"].items():
        row = by_row[number + 1]
        assert row["expression"] == text and (row["height"], row["width"]) == SIZE
    return "quarantined" if count.quarantined else "right"


KINDS = {
    "predict": Kind(lambda run: _questions(), _check_question, 1.5),
    "predict-table": Kind(lambda run: _tables(), _check_table, 1.5),
}

"""One's own pictures and expressions in a table: CSV with a header, or JSON Lines.

    picture      the path from the table's folder; several rows may name the same picture
    expression   the text
    id           optional and unique; without it "<picture>-<number among the picture's rows>"
    kind         optional, for example class, colour, position or relation; each has its own scores
    mask         for evaluation: the path of a lossless picture whose non-zero pixels are the object
    polygon      instead of a mask: [x0, y0, x1, y1, ...] in pixels, or a list of these, whose union
                 is the object

Masks and polygons are in the frame of the picture as it is shown, with its EXIF orientation
applied. Other columns are ignored. A row that cannot be used is quarantined under its picture, or
under "<table> line <n>" if it names none. The reason begins with the line; that of an unreadable
picture begins with the first line that names it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import reprlib
from dataclasses import dataclass
from pathlib import Path
from posixpath import normpath
from typing import Any

import numpy as np

from ppt.config import DataFormat
from ppt.data.source import (
    RawExpression,
    RawMask,
    RawPicture,
    Rejected,
    fingerprint_of,
    split_expressions,
)
from ppt.data.table_file import read_table_file
from ppt.images.masks import Polygons, check_polygons, polygons_to_mask, require_pixels, wide
from ppt.images.pictures import (
    UnreadablePicture,
    check_mask,
    check_picture,
    num_bytes,
    printable,
    read_file,
)

REQUIRED = ("picture", "expression")
TRUTH = ("mask", "polygon")
COLUMNS = (*REQUIRED, "id", "kind", *TRUTH)


class TableData(DataFormat):
    """One's own pictures and expressions in a CSV or JSON Lines table."""

    # The table; the paths in it are relative to its folder.
    path: Path

    def open(self) -> TableSource:
        return TableSource(self)


@dataclass(frozen=True)
class _Row:
    """One row of a table, which is one expression.

    If the row cannot be used, `fault` tells the line and the reason, and the other fields are not
    to be used.
    """

    line: int
    expression_id: str
    text: str = ""  # not checked
    kind: str | None = None
    mask: Any = None
    polygon: Any = None
    fault: str | None = None

    def rejected(self, reason: object) -> Rejected:
        return Rejected(self.expression_id, f"line {self.line}: {reason}")


class TableSource:
    """The pictures of a table, in the order of their first rows."""

    def __init__(self, config: TableData) -> None:
        """Read the table, but no picture and no mask. Raises as `DataFormat.open`."""
        self._path = config.path
        self._folder = config.path.parent
        if not config.path.is_file():
            raise FileNotFoundError(f"table {str(config.path)!r} is no file: set `path`")
        lines = list(read_table_file(config.path, COLUMNS))
        if not lines:
            raise ValueError(f"table {str(config.path)!r} has no row")
        self._columns = sorted({c for _, row in lines if isinstance(row, dict) for c in row})
        if self._columns and (lacking := [c for c in REQUIRED if c not in self._columns]):
            raise ValueError(
                f"table {str(config.path)!r} has no column {lacking} (there: {self._columns})"
            )
        self._rows: dict[str, list[_Row]] = {}  # by picture
        lines_of_ids: dict[str, int] = {}
        for number, content in lines:
            self._add(number, content, lines_of_ids)

    def _add(
        self, number: int, content: dict[str, Any] | str, lines_of_ids: dict[str, int]
    ) -> None:
        """Add a line of the table; `content` is its cells, or the text of what is wrong with it."""
        nameless = f"{printable(self._path.name)} line {number}"
        if isinstance(content, str):
            self._rows[nameless] = [_Row(number, nameless, fault=f"line {number} {content}")]
            return
        picture, text = content.get("picture"), content.get("expression")
        if not isinstance(picture, str) or not picture.strip():
            fault = f"line {number} names no picture"
            self._rows[nameless] = [_Row(number, nameless, fault=fault)]
            return
        key = normpath(picture.strip())
        rows = self._rows.setdefault(key, [])
        given = content.get("id")
        expression_id = f"{key}-{len(rows)}" if _is_empty(given) else str(given).strip()
        if expression_id in lines_of_ids:
            fault = f"line {number}: id {expression_id!r} is line {lines_of_ids[expression_id]}'s"
            rows.append(_Row(number, f"{nameless}: {expression_id}", fault=fault))
            return
        lines_of_ids[expression_id] = number
        kind = content.get("kind")
        rows.append(
            _Row(
                number,
                expression_id,
                "" if text is None else text,
                None if _is_empty(kind) else str(kind).strip(),
                content.get("mask"),
                content.get("polygon"),
            )
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """The hash of the pictures' names and numbers of bytes, the expressions and the faults."""
        parts: list[Any] = ["table"]
        for key, rows in self._rows.items():
            texts = [(row.expression_id, row.text, row.fault) for row in rows]
            parts.append([key, num_bytes(self._folder / key), texts])
        return fingerprint_of(parts)

    @functools.cached_property
    def ground_truth_fingerprint(self) -> str:
        """The hash of the samples' fingerprint, the kinds, the polygons and the mask files."""
        if not set(TRUTH) & set(self._columns):
            raise ValueError(
                f"table {str(self._path)!r} has no column 'mask' or 'polygon', which validation "
                f"and evaluation need (there: {self._columns})"
            )
        parts: list[Any] = [self.fingerprint]
        for rows in self._rows.values():
            for row in rows:
                content = [self._hash(row.mask), row.polygon]
                parts.append([row.expression_id, row.kind, row.mask, *content])
        return fingerprint_of(parts)

    def _hash(self, mask: Any) -> str | None:
        if _is_empty(mask) or not isinstance(mask, str):
            return None
        try:
            return hashlib.sha256(read_file(self._folder, mask)).hexdigest()
        except UnreadablePicture:
            return None

    @property
    def note(self) -> str | None:
        return None

    def keys(self) -> list[str]:
        return list(self._rows)

    def num_expressions(self, key: str) -> int:
        return len(self._rows[key])

    def file_size(self, key: str) -> int | None:
        return num_bytes(self._folder / key)

    def _expressions(self, key: str) -> tuple[list[RawExpression], list[Rejected]]:
        kept: list[RawExpression] = []
        rejected: list[Rejected] = []
        for row in self._rows[key]:
            if row.fault:
                rejected.append(Rejected(row.expression_id, row.fault))
                continue
            text, broken = split_expressions([RawExpression(row.expression_id, row.text, row.kind)])
            kept += text
            rejected += [row.rejected(r.reason) for r in broken]
        return kept, rejected

    def _names_none(self, key: str) -> bool:
        """Return whether this key stands for a line that names no picture."""
        (first, *_) = self._rows[key]
        return first.fault is not None and key == first.expression_id

    def _read_image(self, key: str) -> tuple[bytes, tuple[int, int]]:
        image = read_file(self._folder, key)
        return image, check_picture(image).shape[:2]

    def read(self, key: str) -> RawPicture:
        (first, *_) = self._rows[key]
        if self._names_none(key):
            raise UnreadablePicture(first.fault)
        try:
            image, _ = self._read_image(key)
        except UnreadablePicture as error:
            raise UnreadablePicture(f"line {first.line}: {error}") from None
        return RawPicture(image, None, *self._expressions(key))

    def read_ground_truth(self, key: str) -> tuple[list[RawMask], list[Rejected]]:
        worded = {e.expression_id for e in self._expressions(key)[0]}
        rows = [row for row in self._rows[key] if row.expression_id in worded]
        try:
            _, size = self._read_image(key)
        except UnreadablePicture as error:
            return [], [row.rejected(error) for row in rows]
        masks: list[RawMask] = []
        rejected: list[Rejected] = []
        for row in rows:
            try:
                masks.append(RawMask(row.expression_id, row.kind, self._mask(row, size)))
            except ValueError as error:
                rejected.append(row.rejected(error))
        return masks, rejected

    def missing_pictures(self) -> list[str]:
        """Return the pictures that are named by rows and are not on disk."""
        return [k for k in self._rows if not self._names_none(k) and self.file_size(k) is None]

    def broken_rows(self, *, truth: bool) -> list[Rejected]:
        """Return the rows that `read` will reject and, with `truth`, also `read_ground_truth`.

        No picture and no mask is opened, so more rows may be rejected later.
        """
        broken: list[Rejected] = []
        missing = set(self.missing_pictures())
        for key, rows in self._rows.items():
            kept, rejected = self._expressions(key)
            broken += rejected
            worded = {expression.expression_id for expression in kept}
            for row in rows:
                if row.expression_id not in worded:
                    continue
                if key in missing:
                    broken.append(row.rejected(f"picture {key} is missing from {self._folder}"))
                elif truth and (reason := self._lacks_truth(row)):
                    broken.append(row.rejected(reason))
        return broken

    def _lacks_truth(self, row: _Row) -> str | None:
        try:
            mask = _truth_of(row)
        except ValueError as error:
            return str(error)
        if isinstance(mask, str) and num_bytes(self._folder / mask) is None:
            return f"mask {mask} is missing from {self._folder}"
        return None

    def _mask(self, row: _Row, size: tuple[int, int]) -> np.ndarray:
        """Return the mask of a row, bool [height, width]; ValueError tells what is wrong."""
        given = _truth_of(row)
        if not isinstance(given, str):
            return polygons_to_mask(given, size)
        mask = check_mask(read_file(self._folder, given, "mask"))
        if mask.shape != size:
            raise ValueError(f"mask {given} is {wide(mask.shape)}, its picture {wide(size)}")
        return require_pixels(mask, f"mask {given}")


def _is_empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _truth_of(row: _Row) -> str | Polygons:
    """Return the path of a row's mask, or its polygons; ValueError tells what is wrong."""
    given = [name for name in TRUTH if not _is_empty(getattr(row, name))]
    if len(given) != 1:
        raise ValueError("both mask and polygon are given" if given else "no mask, no polygon")
    if given == ["polygon"]:
        return _polygons(row.polygon)
    if not isinstance(row.mask, str):
        raise ValueError(f"mask is no path: {reprlib.repr(row.mask)}")
    return row.mask


def _polygons(cell: Any) -> Polygons:
    """Parse a polygon or a list of polygons, given as text or already parsed from JSON."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            raise ValueError(f"polygon is no JSON list: {reprlib.repr(cell)}") from None
    several = isinstance(cell, list) and cell and isinstance(cell[0], list)
    return check_polygons(cell if several else [cell])

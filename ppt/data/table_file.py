"""The files of tables: CSV with a header, or JSON Lines, read line by line.

A line that cannot be used is told in place of its cells, so that no line is lost.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

Lines = Iterator[tuple[int, dict[str, Any] | str]]
"""The number of each line, with its cells by column or the text of what is wrong with it."""


def read_table_file(path: Path, columns: Collection[str]) -> Lines:
    """Read a table whose suffix says what it is.

    Args:
        path: the table.
        columns: the columns that are used, each of which may be there only once.

    Raises:
        ValueError: if the file is no table.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return read_csv(path, columns)
    if suffix in (".jsonl", ".ndjson"):
        return _read_json_lines(path, columns)
    raise ValueError(f"table {str(path)!r} must end in .csv, .jsonl, .ndjson")


def read_csv(path: Path, columns: Collection[str]) -> Lines:
    """Read a CSV in UTF-8 whose first line names the columns; see `read_table_file`.

    A row that goes over several lines is told as one that cannot be used, because a quote that
    nobody closed makes one row of all that follows.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        if sign := _other_separator(text.partition("\n")[0], columns):
            raise ValueError(
                f"table {str(path)!r} has {sign} between its columns: save it with commas"
            )
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = [name.strip() for name in next(rows, [])]
        if twice := _repeated(header, columns):
            raise ValueError(f"table {str(path)!r} has the column {twice!r} twice")
        last = rows.line_num
        for row in rows:
            first, last = last + 1, rows.line_num
            if last > first and row:
                yield (
                    first,
                    f"goes on to line {last}: write each row in one line, and close each quote",
                )
            elif len(row) == len(header):
                yield first, dict(zip(header, row, strict=True))
            elif row:
                yield (
                    first,
                    f"has {len(row)} cells, the header {len(header)}: text that holds a comma "
                    'needs "quotes"',
                )
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"table {str(path)!r} is not UTF-8 (line {line}, byte {error.object[error.start]:#x}), "
            "but Latin-1 or another encoding: save it as UTF-8"
        ) from None
    except csv.Error as error:
        raise ValueError(
            f"table {str(path)!r} line {rows.line_num} is no CSV: {error} (does each quote that "
            f"opens after line {last} close in its line?)"
        ) from None


def _read_json_lines(path: Path, columns: Collection[str]) -> Lines:
    """Read an object in each line; see `read_table_file`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := _repeated([name for name, _ in pairs], columns):
            raise ValueError(f"{twice!r} is there twice")
        return dict(pairs)

    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=unique)
            json.dumps(row, ensure_ascii=False).encode()  # fails for half of a surrogate pair
        except (ValueError, RecursionError) as error:
            yield number, f"is no JSON: {error}"
        else:
            yield number, row if isinstance(row, dict) else "is no JSON object"


def _other_separator(header: str, columns: Collection[str]) -> str | None:
    """Return what stands in place of commas in a header, if something does."""
    for sign, name in ((";", "semicolons"), ("\t", "tabs")):
        cells = {cell.strip(' "\r') for cell in header.split(sign)}
        if sign in header and "," not in header and cells & {*columns}:
            return name
    return None


def _repeated(names: list[str], columns: Collection[str]) -> str | None:
    """Return a name that is there more than once and is one of the columns that are used."""
    return next((name for name, n in Counter(names).items() if n > 1 and name in columns), None)

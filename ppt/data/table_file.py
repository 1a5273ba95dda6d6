"""The files of tables: CSV with a header, or JSON Lines, read line by line.

A line that cannot be used is told in place of its cells, so that no line is lost.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ppt.images.pictures import format_of

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
            elif row:
                yield first, _cells(header, row, columns)
    except UnicodeDecodeError as error:
        raise ValueError(f"table {str(path)!r} {_no_text(error)}") from None
    except csv.Error as error:
        raise ValueError(
            f"table {str(path)!r} line {rows.line_num} is no CSV: {error} (does each quote that "
            f"opens after line {last} close in its line?)"
        ) from None


def _cells(header: list[str], row: list[str], columns: Collection[str]) -> dict[str, Any] | str:
    """Return the cells of a row by column, or what is wrong with it.

    Where the row ends early, the columns that are not used are empty.
    """
    lacking = [name for name in header[len(row) :] if name in columns]
    if len(row) <= len(header) and not lacking:
        return dict(zip_longest(header, row, fillvalue=""))
    told = f"has {len(row)} cell{'s' * (len(row) != 1)}, the header {len(header)}: "
    if len(row) > len(header):
        return f'{told}text that holds a comma needs "quotes"'
    return f"{told}{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} missing"


def _no_text(error: UnicodeDecodeError) -> str:
    """Return what is wrong with a file that is not in UTF-8."""
    if picture := format_of(error.object):
        return f"is a picture ({picture}), no CSV"
    line = error.object.count(b"\n", 0, error.start) + 1
    return (
        f"is not UTF-8 (line {line}, byte {error.object[error.start]:#x}), but Latin-1 or another "
        "encoding: save it as UTF-8"
    )


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

"""Rows of a `features` table as tensors.

A row has one float16 column for each feature of a picture. Those of the segmenter have a prefix,
so that whoever reads the table need not know which segmenter made it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ppt.store.mapped import MappedTable

SEGMENTER = "segmenter_"
"""The prefix of the segmenter's columns; the rest of the name is that of the feature."""


def read_feature(
    table: MappedTable, column: str, rows: Sequence[int], device: str = "cpu"
) -> Tensor:
    """Read a column in float32 for I rows of a table: [I, ...]."""
    return torch.from_numpy(table.rows(column, rows).astype(np.float32)).to(device)


def read_segmenter_features(
    table: MappedTable, rows: Sequence[int], device: str = "cpu"
) -> dict[str, Tensor]:
    """Read what `Segmenter.encode_images` gave, in float32 and by the names that it used."""
    return {
        column.removeprefix(SEGMENTER): read_feature(table, column, rows, device)
        for column in table.schema.names
        if column.startswith(SEGMENTER)
    }

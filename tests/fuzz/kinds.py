"""The kinds of inputs, by name."""

from __future__ import annotations

from fuzz import configuration, folders, pictures, predicting, referring, stored, tables, weights
from fuzz.cases import Kind

KINDS: dict[str, Kind] = {
    **referring.KINDS,
    **tables.KINDS,
    **folders.KINDS,
    **pictures.KINDS,
    **configuration.KINDS,
    **weights.KINDS,
    **predicting.KINDS,
    **stored.KINDS,
}

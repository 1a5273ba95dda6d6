"""The formats of data sets, and how the key `format` of a group selects one of them.

A format is a class with the keys that its group may have. The class lives beside the code that
reads the data, for example in `ppt/data/table.py`, and has one line in a registry below, written
as "module:class". The module is imported when a curriculum uses the format.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from ppt.config.messages import shown

Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""A seed of random numbers; NumPy takes none below 0, and torch none above 64 bits."""

REFERRING = {
    "refer": "ppt.data.refer:ReferData",
    "table": "ppt.data.table:TableData",
    "toybox_scenes": "ppt.data.toybox:ToyboxScenes",
}
"""Pictures with expressions: for `data.referring`, `data.validation` and `data.evaluation`."""

OBJECT_CENTRIC = {
    "imagenet": "ppt.data.object_centric:ImageFolderData",
    "mini_imagenet": "ppt.data.mini_imagenet:MiniImageNetData",
    "toybox_objects": "ppt.data.toybox:ToyboxObjects",
}
"""Pictures of one object with the name of its class: for `data.object_centric`."""


class DataFormat(BaseModel, ABC):
    """The configuration of one data set. A subclass adds the keys that its format needs.

    Values must be hashable, because a process keeps the data sets that it has opened by their
    configurations: a list in the YAML is a tuple here. A value of the YAML is a text, of which the
    field's type makes a number, a path, or true or false.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # The format of the data set: a name in ppt/config/data_formats.py.
    format: str

    @abstractmethod
    def open(self) -> Any:
        """Open the data set and return its `ppt.data.source.Source`; no picture is read.

        Raises:
            FileNotFoundError, ValueError: names the key and the path that are wrong.
        """


def format_class(name: str) -> type[DataFormat]:
    """Return the class of a format. Raises ValueError if it cannot be loaded."""
    module, _, class_name = (REFERRING | OBJECT_CENTRIC)[name].partition(":")
    try:
        return getattr(import_module(module), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"format {name!r} cannot be loaded: {error}") from error


def _reader(formats: Mapping[str, str]) -> Callable[[Any], DataFormat]:
    """Return a validator that turns a group of keys into the class of its format."""

    def read(value: Any) -> DataFormat:
        group = dict(value) if isinstance(value, DataFormat) else value
        if not isinstance(group, dict):
            raise ValueError(f"must be a group of keys such as {{format: ...}}, got {shown(value)}")
        name = group.get("format")
        if not isinstance(name, str) or name not in formats:
            problem = PydanticCustomError(
                "unknown_format", "must be one of {known}", {"known": ", ".join(formats)}
            )
            raise ValidationError.from_exception_data(
                "DataFormat", [{"type": problem, "loc": ("format",), "input": name}]
            )
        return format_class(name).model_validate(group)

    return read


ReferringData = Annotated[SerializeAsAny[DataFormat], BeforeValidator(_reader(REFERRING))]
ObjectCentricData = Annotated[SerializeAsAny[DataFormat], BeforeValidator(_reader(OBJECT_CENTRIC))]

"""A step of the pipeline, which makes one table bucket by bucket, as a single value.

A `Step` is both the function that makes a bucket and the description that names the result. Its
digest is computed from the step itself, so what a step does and what names it cannot diverge. A
`Runner` decides how and where the step is carried out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ppt.store.nodes import BucketOutput, Node, Store


@dataclass(frozen=True)
class Step(ABC):
    """The base class of steps. Subclasses are frozen dataclasses that can be pickled.

    A subclass sets `kind`, the kind of table that it makes, and `command`, the command to which it
    belongs. Its `version` is raised whenever the meaning of its code changes. The version is part
    of the digest, so that tables made by former code are not taken for those of the new code.
    """

    kind: ClassVar[str]
    command: ClassVar[str]
    version: ClassVar[int] = 1

    @property
    @abstractmethod
    def title(self) -> str:
        """The text beside the progress bar, for example "encode referring"."""

    @property
    @abstractmethod
    def buckets(self) -> int:
        """The number of buckets of the table that is made."""

    @abstractmethod
    def spec(self) -> Mapping[str, Any]:
        """Return all that the result depends on besides the parents, as JSON-like data."""

    def parents(self) -> Mapping[str, Node]:
        """Return the tables and checkpoints from which the result is made, by role."""
        return {}

    def facts(self) -> Mapping[str, Any]:
        """Return what the manifest also says of the result; the digest does not depend on it."""
        return {}

    def total(self) -> int | None:
        """Return the number of rows that go in, for the progress bar; None if it is unknown."""
        return None

    @abstractmethod
    def __call__(self, bucket: int) -> BucketOutput:
        """Make one bucket. Repeated calls return equal results."""

    def expect(self, bucket: int | None) -> None:
        """Be told which bucket this process makes after the next one, or None.

        A step that reads much may begin to read it while its device is busy; others do nothing.
        """
        return None

    def node(self, store: Store) -> Node:
        """Return the place in the store of what this step makes. Nothing is written."""
        return store.node(
            self.kind,
            self.spec(),
            self.parents(),
            version=self.version,
            buckets=self.buckets,
        )

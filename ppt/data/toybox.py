"""The embedded world as data sets, whose pictures are drawn when they are read."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from pydantic import Field

from ppt.config import DataFormat
from ppt.config.data_formats import Seed
from ppt.data.source import RawExpression, RawMask, RawPicture, Rejected, fingerprint_of
from ppt.images.pictures import encode_picture
from ppt.toybox import world

_NUM_EXPRESSIONS = 2  # of each scene
_FINGERPRINTED = (
    16  # pictures in a fingerprint, enough for one of them to show a change of the world
)


class ToyboxScenes(DataFormat):
    """Scenes of the embedded world, each with referring expressions."""

    # How many pictures are drawn.
    num_pictures: int = Field(gt=0, le=1_000_000)
    # The seed with which they are drawn.
    seed: Seed
    # The fewest objects in a scene.
    min_objects: int = Field(3, ge=1, le=8)
    # The most objects in a scene.
    max_objects: int = Field(5, ge=1, le=20)

    def open(self) -> ToyboxSceneSource:
        return ToyboxSceneSource(self)


class ToyboxObjects(DataFormat):
    """Object-centric pictures of the embedded world."""

    # How many pictures are drawn.
    num_pictures: int = Field(gt=0, le=1_000_000)
    # The seed with which they are drawn.
    seed: Seed

    def open(self) -> ToyboxObjectSource:
        return ToyboxObjectSource(self)


Config = TypeVar("Config", ToyboxScenes, ToyboxObjects)


class _ToyboxSource(ABC, Generic[Config]):
    """Pictures 0 to num_pictures - 1 of a seed. The key of one is "<prefix>-<seed>-<number>"."""

    prefix: str

    def __init__(self, config: Config) -> None:
        self._config: Config = config

    @abstractmethod
    def picture(self, key: str) -> world.Picture:
        """Draw the picture of a key; its objects and expressions are returned with it."""

    @abstractmethod
    def read(self, key: str) -> RawPicture:
        """Draw the picture of a key, as `Source.read`."""

    def _number(self, key: str) -> int:
        return int(key.rpartition("-")[2])

    @functools.cached_property
    def fingerprint(self) -> str:
        """The hash of the configuration and of the first pictures as they are drawn."""
        shown = []
        for key in self.keys()[:_FINGERPRINTED]:
            raw: RawPicture = self.read(key)
            shown.append([raw.image.hex(), *(e.text for e in raw.expressions)])
        return fingerprint_of([self._config.model_dump(), shown])

    @property
    def ground_truth_fingerprint(self) -> str:
        """The fingerprint of the samples, because the masks are drawn with the pictures."""
        return self.fingerprint

    @property
    def note(self) -> str | None:
        return None

    def file_size(self, key: str) -> int | None:
        return 0

    def keys(self) -> list[str]:
        seed = self._config.seed
        return [f"{self.prefix}-{seed}-{i:06d}" for i in range(self._config.num_pictures)]


class ToyboxSceneSource(_ToyboxSource[ToyboxScenes]):
    """Pictures of several objects with two referring expressions each."""

    prefix = "scene"

    def __init__(self, config: ToyboxScenes) -> None:
        if config.min_objects > config.max_objects:
            raise ValueError(
                f"max_objects must be >= min_objects, got {config.max_objects} and "
                f"{config.min_objects}"
            )
        super().__init__(config)

    def picture(self, key: str) -> world.Picture:
        low, high = self._config.min_objects, self._config.max_objects
        return world.scene(self._config.seed, self._number(key), low, high, _NUM_EXPRESSIONS)

    def num_expressions(self, key: str) -> int:
        return _NUM_EXPRESSIONS

    def read(self, key: str) -> RawPicture:
        picture = self.picture(key)
        expressions = [
            RawExpression(f"{key}-{i}", e.text, e.kind) for i, e in enumerate(picture.expressions)
        ]
        return RawPicture(encode_picture(picture.image), None, expressions)

    def read_ground_truth(self, key: str) -> tuple[list[RawMask], list[Rejected]]:
        picture = self.picture(key)
        masks = [
            RawMask(f"{key}-{i}", e.kind, picture.objects[e.target].mask)
            for i, e in enumerate(picture.expressions)
        ]
        return masks, []


class ToyboxObjectSource(_ToyboxSource[ToyboxObjects]):
    """Object-centric pictures. Their masks are used to measure pseudo labels, never to train."""

    prefix = "object"

    def picture(self, key: str) -> world.Picture:
        return world.object_centric(self._config.seed, self._number(key))

    def num_expressions(self, key: str) -> int:
        return 1

    def read(self, key: str) -> RawPicture:
        picture = self.picture(key)
        return RawPicture(encode_picture(picture.image), picture.objects[0].class_name)

    def read_ground_truth(self, key: str) -> tuple[list[RawMask], list[Rejected]]:
        return [RawMask(key, "class", self.picture(key).objects[0].mask)], []

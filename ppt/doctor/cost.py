"""An estimate of what a curriculum takes: pictures to encode, bytes in the store, memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ppt.config import Curriculum, Model
from ppt.doctor.published import Content
from ppt.models.build import outline_image_text_encoder, outline_segmenter
from ppt.steps.encode import feature_shapes

TEXTS_OF_D_REF = 3
"""The most texts that a synthesised picture has."""

PROCESS_BYTES = 400_000_000
"""The memory of a process without its nets."""


@dataclass(frozen=True)
class Cost:
    """Upper bounds, because a text that several expressions share is stored only once."""

    pictures: int  # those of D_ref included; each passes through CLIP and SAM once
    texts: int
    bytes_per_picture: int  # of its features
    bytes_per_text: int  # of its words
    sample_bytes: int  # of the pictures themselves, which are copied into `samples`

    @property
    def features(self) -> int:
        """The bytes of all features."""
        return self.pictures * self.bytes_per_picture

    @property
    def words(self) -> int:
        """The bytes of all words."""
        return self.texts * self.bytes_per_text

    @property
    def total(self) -> int:
        """The bytes that a run adds to the store."""
        return self.features + self.words + self.sample_bytes


def estimate(curriculum: Curriculum, contents: Mapping[str, Content]) -> Cost:
    """Estimate the cost from the contents of the data sets by role.

    A data set that has two roles is stored once.
    """
    per_picture, per_text = row_bytes(curriculum.model)
    unique = {getattr(curriculum.data, role): content for role, content in contents.items()}
    made = curriculum.synthesis.num_pictures
    return Cost(
        pictures=made + sum(c.pictures for c in unique.values()),
        texts=TEXTS_OF_D_REF * made + sum(c.expressions for c in unique.values()),
        bytes_per_picture=per_picture,
        bytes_per_text=per_text,
        sample_bytes=sum(c.num_bytes for c in unique.values()),
    )


def row_bytes(model: Model) -> tuple[int, int]:
    """Return the number of bytes of a row of `features` and of a row of `words`."""
    clip, sam = outline_image_text_encoder(model.clip), outline_segmenter(model.sam)
    numbers = sum(int(np.prod(shape)) for shape in feature_shapes(clip, sam).values())
    return 2 * numbers, 2 * clip.context_length * clip.text_dim


def memory_to_encode(curriculum: Curriculum) -> int:
    """Estimate the memory, in bytes, of the driver and all actors on one machine without a GPU.

    It fits what docs/full-size.md measured. Training was not measured at the paper's batch.
    """
    model, resources = curriculum.model, curriculum.resources
    clip, sam = outline_image_text_encoder(model.clip), outline_segmenter(model.sam)
    nets = 4 * sum(t.numel() for t in (*clip.parameters(), *sam.parameters()))
    driver = nets + PROCESS_BYTES
    return driver + resources.most_actors * (driver + sam.encoding_bytes)

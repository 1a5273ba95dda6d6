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

WORDS_OF_A_TEXT = 16
"""The words, as CLIP's tokeniser cuts them, that an expression is taken to have."""

CANDIDATES_OF_A_TEXT = 3
"""The candidates that an expression is taken to have."""

PROCESS_BYTES = 400_000_000
"""The memory of a process without its nets."""


@dataclass(frozen=True)
class Cost:
    """What a run stores. A text that several expressions share is counted for each of them."""

    pictures: int  # those of D_ref included; each passes through CLIP and SAM once
    texts: int
    candidates: int  # in all rounds of labels
    bytes_per_picture: int  # of its features
    bytes_per_text: int  # of its words
    bytes_per_candidate: int  # of its target
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
    def targets(self) -> int:
        """The bytes of the targets of all pseudo labels."""
        return self.candidates * self.bytes_per_candidate

    @property
    def total(self) -> int:
        """The bytes that a run adds to the store."""
        return self.features + self.words + self.targets + self.sample_bytes


def estimate(curriculum: Curriculum, contents: Mapping[str, Content]) -> Cost:
    """Estimate the cost from the contents of the data sets by role.

    A data set that has two roles is stored once.
    """
    per_picture, per_text, per_candidate = row_bytes(curriculum.model)
    unique = {getattr(curriculum.data, role): content for role, content in contents.items()}
    made = curriculum.synthesis.num_pictures
    rounds = 1 + sum(stage.rounds for stage in curriculum.stages.values() if stage.select)
    texts = {role: content.expressions for role, content in contents.items()}
    labelled = texts.get("object_centric", 0) + rounds * texts.get("referring", 0)
    return Cost(
        pictures=made + sum(c.pictures for c in unique.values()),
        texts=TEXTS_OF_D_REF * made + sum(c.expressions for c in unique.values()),
        candidates=CANDIDATES_OF_A_TEXT * (TEXTS_OF_D_REF * made + labelled),
        bytes_per_picture=per_picture,
        bytes_per_text=per_text,
        bytes_per_candidate=per_candidate,
        sample_bytes=sum(c.num_bytes for c in unique.values()),
    )


def row_bytes(model: Model) -> tuple[int, int, int]:
    """Return the bytes that are stored for a picture, for a text and for a candidate."""
    clip, sam = outline_image_text_encoder(model.clip), outline_segmenter(model.sam)
    numbers = sum(int(np.prod(shape)) for shape in feature_shapes(clip, sam).values())
    words = min(WORDS_OF_A_TEXT, clip.context_length)
    box = 4 * 4
    packed = sam.low_res_size * -(-sam.low_res_size // 8)
    return 2 * numbers, 2 * words * clip.text_dim, packed + box


def memory_to_encode(curriculum: Curriculum) -> int:
    """Estimate the memory, in bytes, of the driver and all actors on one machine without a GPU.

    It fits what docs/full-size.md measured. Training was not measured at the paper's batch.
    """
    model, resources = curriculum.model, curriculum.resources
    clip, sam = outline_image_text_encoder(model.clip), outline_segmenter(model.sam)
    nets = 4 * sum(t.numel() for t in (*clip.parameters(), *sam.parameters()))
    driver = nets + PROCESS_BYTES
    return driver + resources.most_actors * (driver + sam.encoding_bytes)

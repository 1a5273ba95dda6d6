"""What a curriculum will take: pictures to encode, bytes in the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ppt.config import Curriculum, Model
from ppt.models.build import outline_clip_encoder, outline_sam_decoder
from ppt.pipeline.doctor.published import Content
from ppt.pipeline.features import feature_shapes

TEXTS_OF_D_REF = 3
"""At most so many texts has a synthesised picture."""


PROCESS_BYTES = 400_000_000
"""Of a process beside its nets."""

COPIES_OF_ATTENTION = 4
"""That a block of SAM's image encoder holds at its worst."""


@dataclass(frozen=True)
class Cost:
    """Upper bounds: a text that several expressions share is stored once."""

    pictures: int  # one CLIP and one SAM pass each, D_ref's too
    texts: int
    bytes_per_picture: int
    bytes_per_text: int
    sample_bytes: int  # the pictures themselves, copied into `samples`

    @property
    def features(self) -> int:
        return self.pictures * self.bytes_per_picture

    @property
    def words(self) -> int:
        return self.texts * self.bytes_per_text

    @property
    def total(self) -> int:
        return self.features + self.words + self.sample_bytes


def estimate(curriculum: Curriculum, contents: Mapping[str, Content]) -> Cost:
    """From what the data sets hold, by role; the same data in two roles is stored once."""
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
    """Bytes of a row of `features` and of `words`, both float16."""
    clip, sam = outline_clip_encoder(model.clip), outline_sam_decoder(model.sam)
    numbers = sum(int(np.prod(shape)) for shape in feature_shapes(clip, sam).values())
    return 2 * numbers, 2 * clip.context_length * clip.text_dim


def memory_to_encode(curriculum: Curriculum) -> int:
    """Bytes of memory on CPUs, the driver and all actors on one machine: what docs/full-size.md
    measured. Training was not measured at the paper's batch."""
    model, resources = curriculum.model, curriculum.resources
    clip, sam = outline_clip_encoder(model.clip), outline_sam_decoder(model.sam)
    nets = 4 * sum(tensor.numel() for net in (clip, sam) for tensor in net.parameters())
    heads, tokens = sam.sam.image_encoder.blocks[0].attn.num_heads, (sam.low_res_size // 4) ** 2
    attention = 4 * heads * tokens**2  # of one picture: SAM encodes one at a time
    driver = nets + PROCESS_BYTES
    return driver + resources.num_actors * (driver + COPIES_OF_ATTENTION * attention)

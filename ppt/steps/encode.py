"""encode: the features of each picture and text, computed once by the frozen models."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ppt.batches.features import SEGMENTER
from ppt.config import ClipConfig, Model
from ppt.images.pictures import check_picture
from ppt.models.image_text_encoder import ImageTextEncoder
from ppt.models.loaded import (
    clip_fingerprint,
    current_device,
    encoder_fingerprints,
    image_text_encoder,
    segmenter,
)
from ppt.models.segmenter import Segmenter
from ppt.steps.step import Step
from ppt.store.arrays import ragged_field, tensor_field, to_ragged, to_tensors
from ppt.store.nodes import DATA, BucketOutput, Count, Node, bucket_of, digest_of

BATCH_SIZE = 32
"""The number of pictures or texts in one forward pass of a frozen encoder."""


@dataclass(frozen=True)
class _EncodeSamples(Step):
    """A `features` table: one row for each picture of `samples`, float16, memory-mappable."""

    kind = "features"
    command = "encode"

    samples: Node

    @property
    def buckets(self) -> int:
        return self.samples.num_buckets

    def parents(self) -> dict[str, Node]:
        return {"samples": self.samples}

    def total(self) -> int:
        return self.samples.counts()["pictures"]["out"]


@dataclass(frozen=True)
class EncodePictures(_EncodeSamples):
    """The `features` of a samples table.

    Each picture takes one pass of the encoder of pictures and texts and one of the segmenter.
    """

    version = 3

    model: Model
    name: str

    @property
    def title(self) -> str:
        return f"encode {self.name}"

    def spec(self) -> dict[str, Any]:
        return encoder_fingerprints(self.model)

    @torch.inference_mode()
    def __call__(self, bucket: int) -> BucketOutput:
        device = current_device()
        clip, sam = image_text_encoder(self.model.clip, device), segmenter(self.model.sam, device)

        def encode(pictures: list[np.ndarray]) -> dict[str, Tensor]:
            features = clip.encode_images(_pixels(clip, pictures, device))
            return {
                **{
                    SEGMENTER + name: feature
                    for name, feature in sam.encode_images(_pixels(sam, pictures, device)).items()
                },
                "surgery_tokens": features.surgery_tokens,
                **{f"visual_features_{n}": v for n, v in enumerate(features.visual_features)},
            }

        return _encoded(self.samples, bucket, encode, feature_shapes(clip, sam))


@dataclass(frozen=True)
class EncodeSurgeryTokens(_EncodeSamples):
    """A `features` table with the surgery tokens alone.

    They give similarity maps at another image size than that of the other features.
    """

    clip: ClipConfig
    name: str

    @property
    def title(self) -> str:
        return f"encode {self.name} at {self.clip.image_size} pixels"

    def spec(self) -> dict[str, Any]:
        return {"clip": clip_fingerprint(self.clip), "columns": ["surgery_tokens"]}

    @torch.inference_mode()
    def __call__(self, bucket: int) -> BucketOutput:
        device = current_device()
        clip = image_text_encoder(self.clip, device)

        def encode(pictures: list[np.ndarray]) -> dict[str, Tensor]:
            tokens = clip.encode_images(_pixels(clip, pictures, device)).surgery_tokens
            return {"surgery_tokens": tokens}

        shapes: dict[str, tuple[int, ...]] = {"surgery_tokens": surgery_shape(clip)}
        return _encoded(self.samples, bucket, encode, shapes)


def _pixels(net: ImageTextEncoder | Segmenter, pictures: list[np.ndarray], device: str) -> Tensor:
    """Preprocess pictures, uint8 [H, W, 3] each, for a net: [I, 3, S, S] on the device."""
    return torch.stack([net.preprocess(picture) for picture in pictures]).to(device)


def _encoded(
    samples: Node,
    bucket: int,
    encode: Callable[[list[np.ndarray]], dict[str, Tensor]],
    shapes: dict[str, tuple[int, ...]],
) -> BucketOutput:
    """Encode the pictures of a bucket batch by batch, and return their `features`.

    Args:
        samples: the table of the pictures.
        bucket: the bucket.
        encode: encodes I pictures, uint8 [H, W, 3] RGB each, to features [I, ...] by name.
        shapes: the shape of each feature of a picture, in the order of the columns.
    """
    rows = samples.read(bucket, columns=["picture", "image", "height", "width"])
    columns: dict[str, list[np.ndarray]] = {}
    for pictures in _decoded(rows):
        for name, tensor in encode(pictures).items():
            columns.setdefault(name, []).append(tensor.half().cpu().numpy())
    table = _feature_table(rows, columns, shapes)
    return BucketOutput({DATA: table}, {"pictures": Count(len(table), len(table), 0)})


def _decoded(samples: pa.Table) -> Iterator[list[np.ndarray]]:
    """Yield the pictures of a samples table, uint8 [H, W, 3] RGB, in batches of BATCH_SIZE."""
    for batch in samples.to_batches(max_chunksize=BATCH_SIZE):
        yield [check_picture(image) for image in batch["image"].to_pylist()]


def _feature_table(
    samples: pa.Table, columns: dict, shapes: dict[str, tuple[int, ...]]
) -> pa.Table:
    """Make a table whose rows can each be read from a memory map without the rest."""
    arrays, fields = [], []
    for name in ("picture", "height", "width"):
        arrays.append(samples[name].combine_chunks())
        fields.append(samples.schema.field(name))
    for name, shape in shapes.items():
        rows = columns.get(name, [np.empty((0, *shape), np.float16)])
        fields.append(tensor_field(name, shape))
        arrays.append(to_tensors(np.concatenate(rows)))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def feature_shapes(clip: ImageTextEncoder, sam: Segmenter) -> dict[str, tuple[int, ...]]:
    """Return the shape of each feature of a picture, float16 columns of `features`, by name."""
    patches = clip.grid**2
    return {
        **{SEGMENTER + name: shape for name, shape in sam.feature_shapes.items()},
        "surgery_tokens": surgery_shape(clip),
        **{f"visual_features_{n}": (patches, clip.visual_dim) for n in range(clip.num_levels)},
    }


def surgery_shape(clip: ImageTextEncoder) -> tuple[int, int]:
    """Return the shape of a picture's surgery tokens: [1 + patches, embedding width]."""
    return 1 + clip.grid**2, clip.embed_dim


# ---------------------------------------------------------------- texts


@dataclass(frozen=True)
class _EncodeTexts(Step):
    """A table with one row for each unique text, divided into buckets by the text's hash."""

    version = 2

    texts: tuple[str, ...]  # sorted, each once
    clip: ClipConfig
    num_buckets: int
    name: str

    @classmethod
    def of(cls, texts: Iterable[str], clip: ClipConfig, num_buckets: int, name: str) -> Self:
        """Return the step for texts in any order, with or without repetitions."""
        return cls(tuple(sorted(set(texts))), clip, num_buckets, name)

    @property
    def title(self) -> str:
        return f"encode {self.name} {self.kind}"

    @property
    def buckets(self) -> int:
        return self.num_buckets

    def spec(self) -> dict[str, Any]:
        return {
            "clip": clip_fingerprint(self.clip),
            "texts": digest_of(self.texts),
            "num_buckets": self.num_buckets,
        }

    def total(self) -> int:
        return len(self.texts)

    @torch.inference_mode()
    def __call__(self, bucket: int) -> BucketOutput:
        texts = [text for text in self.texts if bucket_of(text, self.num_buckets) == bucket]
        clip = image_text_encoder(self.clip, current_device())
        table = self._encode(clip, texts)
        return BucketOutput({DATA: table}, {"texts": Count(len(texts), len(table), 0)})

    @abstractmethod
    def _encode(self, clip: ImageTextEncoder, texts: list[str]) -> pa.Table: ...


@dataclass(frozen=True)
class EncodeWords(_EncodeTexts):
    """The word features of each unique expression, float16 [number of words, text width]."""

    kind = "words"
    command = "encode"
    version = 3

    def _encode(self, clip: ImageTextEncoder, texts: list[str]) -> pa.Table:
        rows, lengths = [np.empty((0, clip.text_dim), np.float16)], []
        for i in range(0, len(texts), BATCH_SIZE):
            features, mask = clip.encode_words(texts[i : i + BATCH_SIZE])
            rows.append(features[mask].half().cpu().numpy())
            lengths += mask.sum(1).tolist()
        column = to_ragged(np.concatenate(rows), lengths)
        return _text_table(texts, ragged_field("word_features", clip.text_dim), column)


@dataclass(frozen=True)
class EncodePhrases(_EncodeTexts):
    """The embedding of each unique phrase, float32 [embedding width].

    It is made from the ensemble of the prompt templates.
    """

    kind = "phrases"
    command = "encode"

    def spec(self) -> dict[str, Any]:
        return {**super().spec(), "templates": self.clip.templates}

    def _encode(self, clip: ImageTextEncoder, texts: list[str]) -> pa.Table:
        shape = (clip.embed_dim,)
        rows = [np.empty((0, *shape), np.float32)]
        for i in range(0, len(texts), BATCH_SIZE):
            rows.append(clip.encode_phrases(texts[i : i + BATCH_SIZE]).float().cpu().numpy())
        field = tensor_field("embedding", shape, "float32")
        return _text_table(texts, field, to_tensors(np.concatenate(rows)))


def _text_table(texts: list[str], field: pa.Field, column: pa.Array) -> pa.Table:
    schema = pa.schema([pa.field("text", pa.string(), nullable=False), field])
    return pa.Table.from_arrays([pa.array(texts, pa.string()), column], schema=schema)

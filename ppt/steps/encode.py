"""encode: the features of each picture and text, computed once by the frozen models.

Pictures are read, decoded and resized by threads while the device works on those before them, also
from one bucket to the next, and features are written by a thread while it works on those after
them: memory depends on `BATCH_SIZE` and not on the size of a bucket.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Self

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

    def expect(self, bucket: int | None) -> None:
        _Pictures.expected = None if bucket is None else (self.samples, bucket)


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

    def __call__(self, bucket: int) -> BucketOutput:
        device = current_device()
        clip, sam = image_text_encoder(self.model.clip, device), segmenter(self.model.sam, device)

        def encode(pixels: list[Tensor]) -> dict[str, Tensor]:
            of_clip, of_sam = pixels
            features = clip.encode_images(of_clip)
            return {
                **{SEGMENTER + n: feature for n, feature in sam.encode_images(of_sam).items()},
                "surgery_tokens": features.surgery_tokens,
                **{f"visual_features_{n}": v for n, v in enumerate(features.visual_features)},
            }

        pictures = _Pictures.of(self.samples, bucket, [clip, sam])
        return _encoded(pictures, encode, feature_shapes(clip, sam))


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

    def __call__(self, bucket: int) -> BucketOutput:
        clip = image_text_encoder(self.clip, current_device())

        def encode(pixels: list[Tensor]) -> dict[str, Tensor]:
            return {"surgery_tokens": clip.encode_images(pixels[0]).surgery_tokens}

        shapes: dict[str, tuple[int, ...]] = {"surgery_tokens": surgery_shape(clip)}
        return _encoded(_Pictures.of(self.samples, bucket, [clip]), encode, shapes)


class _Pictures:
    """The pictures of a bucket, batch by batch. The next batch is decoded while one is in use.

    After the last batch, the first one of the bucket that is expected next is decoded.
    """

    expected: ClassVar[tuple[Node, int] | None] = None
    _begun: ClassVar[_Pictures | None] = None

    def __init__(
        self, samples: Node, bucket: int, nets: Sequence[ImageTextEncoder | Segmenter]
    ) -> None:
        self._from = (samples, bucket)
        self._nets = nets
        rows = samples.read(bucket, columns=["picture", "height", "width", "image"])
        self._waiting = iter(rows.to_batches(max_chunksize=BATCH_SIZE))
        self.rows = rows.drop_columns("image").combine_chunks()
        self._decoding = self._begin()

    @classmethod
    def of(
        cls, samples: Node, bucket: int, nets: Sequence[ImageTextEncoder | Segmenter]
    ) -> _Pictures:
        """Return the pictures of a bucket, prepared for some nets; they may have been expected."""
        begun, cls._begun = cls._begun, None
        if begun is not None and begun._from == (samples, bucket) and begun._nets == nets:
            return begun
        return cls(samples, bucket, nets)

    def _begin(self) -> Future[list[Tensor]] | None:
        """Let the threads decode the next batch; None if there is none."""
        batch = next(self._waiting, None)
        if batch is None:
            return None
        pictures = [_threads().submit(self._prepare, image) for image in batch["image"].to_pylist()]
        return _threads().submit(_stacked, pictures)  # begins after all that it waits for

    def _prepare(self, image: bytes) -> list[Tensor]:
        """Decode and preprocess a picture for each net: [3, S, S]."""
        picture = check_picture(image)
        return [net.preprocess(picture) for net in self._nets]

    def batches(self) -> Iterator[list[Tensor]]:
        """Yield for up to BATCH_SIZE pictures the pixels [I, 3, S, S] for each net."""
        device = current_device()
        while (decoding := self._decoding) is not None:
            self._decoding = self._begin()
            if self._decoding is None and self.expected is not None:
                type(self)._begun = type(self)(*self.expected, self._nets)
                type(self).expected = None
            pixels = [of_net.to(device, non_blocking=True) for of_net in decoding.result()]
            del decoding  # the pictures are in memory only once
            yield pixels
            del pixels


def _stacked(pictures: list[Future[list[Tensor]]]) -> list[Tensor]:
    """Wait for I pictures, and return their pixels [I, 3, S, S] for each net.

    Those for a GPU lie in pinned memory, from which it copies them while the host goes on.
    """
    by_net = zip(*(pictures.pop(0).result() for _ in range(len(pictures))), strict=True)
    stacked = [torch.stack(of_net) for of_net in by_net]
    return [of_net.pin_memory() for of_net in stacked] if current_device() == "cuda" else stacked


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Return the threads that decode pictures, as many as this process has CPUs."""
    return ThreadPoolExecutor(torch.get_num_threads(), "decode")


def _encoded(
    pictures: _Pictures,
    encode: Callable[[list[Tensor]], dict[str, Tensor]],
    shapes: dict[str, tuple[int, ...]],
) -> BucketOutput:
    """Return the `features` of the pictures of a bucket, which are made as they are written.

    Args:
        pictures: the pictures.
        encode: encodes the pixels of I pictures for each net to features [I, ...] by name.
        shapes: the shape of each feature of a picture, in the order of the columns.
    """
    tensors = [tensor_field(name, shape) for name, shape in shapes.items()]
    schema = pa.schema([*pictures.rows.schema, *tensors])

    def parts() -> Iterator[pa.RecordBatch]:
        start = 0
        for pixels in pictures.batches():
            with torch.inference_mode():
                features = encode(pixels)
            pixels.clear()  # memory for the features
            arrays = [to_tensors(features.pop(name).half().cpu().numpy()) for name in shapes]
            rows = pictures.rows.slice(start, len(arrays[0]))
            columns = [column.combine_chunks() for column in rows.columns]
            yield pa.RecordBatch.from_arrays([*columns, *arrays], schema=schema)
            start += len(rows)

    count = Count(len(pictures.rows), len(pictures.rows), 0)
    reader = pa.RecordBatchReader.from_batches(schema, parts())
    return BucketOutput({DATA: reader}, {"pictures": count})


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
            "texts": self._digest_of_texts,
            "num_buckets": self.num_buckets,
        }

    @functools.cached_property
    def _digest_of_texts(self) -> str:
        return digest_of(self.texts)

    @functools.cached_property
    def _by_bucket(self) -> list[list[str]]:
        """The texts of each bucket."""
        texts: list[list[str]] = [[] for _ in range(self.num_buckets)]
        for text in self.texts:
            texts[bucket_of(text, self.num_buckets)].append(text)
        return texts

    def total(self) -> int:
        return len(self.texts)

    @torch.inference_mode()
    def __call__(self, bucket: int) -> BucketOutput:
        texts = self._by_bucket[bucket]
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

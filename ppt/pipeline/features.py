"""encode: one frozen CLIP pass and one frozen SAM pass per unique picture; every text once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from ppt.config import ClipConfig, Model
from ppt.data.pictures import check_picture
from ppt.models.clip_encoder import ClipEncoder
from ppt.models.sam_decoder import SamDecoder
from ppt.pipeline.models import (
    clip_encoder,
    clip_fingerprint,
    pass_device,
    sam_decoder,
    sam_fingerprint,
)
from ppt.pipeline.passes import Pool
from ppt.schema import tensor_field, to_fixed_binary
from ppt.store import DATA, BucketOutput, Count, Node, Store, bucket_of

BATCH_SIZE = 32
"""Pictures or texts in one forward pass of a frozen encoder."""


@dataclass(frozen=True)
class _EncodePictures:
    samples: Node
    model: Model

    @torch.inference_mode()
    def __call__(self, bucket: int) -> BucketOutput:
        device = pass_device()
        clip, sam = clip_encoder(self.model.clip, device), sam_decoder(self.model.sam, device)
        samples = self.samples.read(bucket, columns=["picture", "image", "height", "width"])
        columns: dict[str, list[np.ndarray]] = {}
        for batch in samples.to_batches(max_chunksize=BATCH_SIZE):
            pictures = [check_picture(image) for image in batch["image"].to_pylist()]
            pixels = torch.stack([clip.preprocess(p) for p in pictures]).to(device)
            features = clip.encode_images(pixels)
            padded = torch.stack([sam.preprocess(p) for p in pictures]).to(device)
            parts = {
                "image_embeddings": sam.encode_images(padded),
                "surgery_tokens": features.surgery_tokens,
                **{f"visual_features_{n}": v for n, v in enumerate(features.visual_features)},
            }
            for name, tensor in parts.items():
                columns.setdefault(name, []).append(tensor.half().cpu().numpy())
        table = _feature_table(samples, columns, clip, sam)
        count = Count(len(samples), len(table), 0)
        return BucketOutput({DATA: table}, {"pictures": count}, {"encoder_calls": len(samples)})


def _feature_table(
    samples: pa.Table, columns: dict, clip: ClipEncoder, sam: SamDecoder
) -> pa.Table:
    """Rows of fixed size: any one is read from the memory map without reading the rest."""
    arrays, fields = [], []
    for name in ("picture", "height", "width"):
        arrays.append(samples[name].combine_chunks())
        fields.append(samples.schema.field(name))
    for name, shape in feature_shapes(clip, sam).items():
        rows = columns.get(name, [np.empty((0, *shape), np.float16)])
        field = tensor_field(name, shape)
        fields.append(field)
        if len(samples):
            arrays.append(to_fixed_binary(np.concatenate(rows)))
        else:
            arrays.append(pa.array([], field.type))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def feature_shapes(clip: ClipEncoder, sam: SamDecoder) -> dict[str, tuple[int, ...]]:
    """The shape of each float16 column of a row of `features`."""
    side, patches = sam.low_res_size // 4, clip.grid**2
    return {
        "image_embeddings": (sam.embed_dim, side, side),
        "surgery_tokens": (1 + patches, clip.embed_dim),
        **{f"visual_features_{n}": (patches, clip.visual_dim) for n in range(len(clip.taps))},
    }


def encode_pictures(store: Store, pool: Pool, samples: Node, model: Model, *, name: str) -> Node:
    """The `features` of a samples table: a row a picture, fp16, memory-mappable."""
    spec = encoder_spec(model)
    node = store.node("features", spec, {"samples": samples}, buckets=samples.num_buckets)
    total = samples.counts()["pictures"]["out"]
    return pool.run(node, _EncodePictures(samples, model), title=f"encode {name}", total=total)


def encoder_spec(model: Model) -> dict[str, str]:
    """The fingerprints of both frozen encoders: part of the digest of all that they made."""
    return {
        "clip": clip_fingerprint(model.clip),
        "sam": sam_fingerprint(model.sam),
    }


# ---------------------------------------------------------------- texts


@dataclass(frozen=True)
class _EncodeTexts:
    texts: tuple[tuple[str, ...], ...]  # by bucket
    clip: ClipConfig
    encode: Callable[[ClipConfig, list[str]], pa.Table]

    @torch.inference_mode()
    def __call__(self, bucket: int) -> BucketOutput:
        texts = list(self.texts[bucket])
        table = self.encode(self.clip, texts)
        return BucketOutput({DATA: table}, {"texts": Count(len(texts), len(table), 0)})


def _words(config: ClipConfig, texts: list[str]) -> pa.Table:
    clip = clip_encoder(config, pass_device())
    shape = (clip.context_length, clip.text_dim)
    rows, lengths = [np.empty((0, *shape), np.float16)], []
    for i in range(0, len(texts), BATCH_SIZE):
        features, mask = clip.encode_words(texts[i : i + BATCH_SIZE])
        rows.append(features.half().cpu().numpy())
        lengths += mask.sum(1).tolist()
    return _text_table(
        texts, tensor_field("word_features", shape), np.concatenate(rows), num_words=lengths
    )


def _phrases(config: ClipConfig, texts: list[str]) -> pa.Table:
    clip = clip_encoder(config, pass_device())
    shape = (clip.embed_dim,)
    rows = [np.empty((0, *shape), np.float32)]
    for i in range(0, len(texts), BATCH_SIZE):
        rows.append(clip.encode_phrases(texts[i : i + BATCH_SIZE]).float().cpu().numpy())
    return _text_table(texts, tensor_field("embedding", shape, "float32"), np.concatenate(rows))


def _text_table(
    texts: list[str], field: pa.Field, rows: np.ndarray, num_words: list[int] | None = None
) -> pa.Table:
    arrays = [pa.array(texts, pa.string())]
    fields = [pa.field("text", pa.string(), nullable=False)]
    if num_words is not None:
        arrays.append(pa.array(num_words, pa.int32()))
        fields.append(pa.field("num_words", pa.int32(), nullable=False))
    arrays.append(to_fixed_binary(rows) if len(rows) else pa.array([], field.type))
    return pa.Table.from_arrays(arrays, schema=pa.schema([*fields, field]))


def encode_words(
    store: Store, pool: Pool, texts: Iterable[str], clip: ClipConfig, *, name: str, num_buckets: int
) -> Node:
    """Word features of each unique expression, in buckets by the text's hash."""
    return _encode_texts(store, pool, "words", _words, texts, clip, name, num_buckets)


def encode_phrases(
    store: Store, pool: Pool, texts: Iterable[str], clip: ClipConfig, *, name: str, num_buckets: int
) -> Node:
    """The template ensemble's embedding of each unique phrase, in buckets by the text's hash."""
    return _encode_texts(store, pool, "phrases", _phrases, texts, clip, name, num_buckets)


def _encode_texts(store, pool, kind, encode, texts, clip, name, num_buckets) -> Node:
    unique = sorted(set(texts))
    buckets: list[list[str]] = [[] for _ in range(num_buckets)]
    for text in unique:
        buckets[bucket_of(text, num_buckets)].append(text)
    spec = {"clip": clip_fingerprint(clip), "texts": unique}
    node = store.node(kind, spec, buckets=num_buckets)
    process = _EncodeTexts(tuple(map(tuple, buckets)), clip, encode)
    return pool.run(node, process, title=f"encode {name} {kind}", total=len(unique))

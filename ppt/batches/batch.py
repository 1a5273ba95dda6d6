"""Batches, the input of the model: expressions grouped by picture.

Letters: I pictures, B expressions, L patches, D visual width, T words, Dt text width, G targets of
all expressions, M points, H4 x W4 the logits of the segmenter in its padded square (see
`ppt.models.segmenter`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ppt.batches.targets import unpack


@dataclass
class Targets:
    """The pseudo labels {y_e} of the expressions of a batch, one expression after another."""

    expression: Tensor  # [G] long, ascending: the row of the batch to which a target belongs
    masks: Tensor  # [G, H4, W4] float 0 or 1, in the padded square; as read: packed bits
    points: Tensor  # [G, M, 2] normalised (x, y)
    point_labels: Tensor  # [G, M] float, 1 foreground, 0 background
    is_referent: Tensor  # [G] float, the confidence score c_e


@dataclass
class Batch:
    """Stored features and expressions of a few pictures.

    As they are read, features are float16 and masks are packed bits; `to` makes of them what the
    model computes with.
    """

    pictures: list[str]  # I keys
    sizes: Tensor  # [I, 2] long, original (height, width)
    visual_features: list[Tensor]  # N levels of [I, L, D], patch tokens only
    segmenter_features: dict[str, Tensor]  # [I, ...] by the segmenter's names
    picture_index: Tensor  # [B] long, expression -> picture
    expression_ids: list[str]  # B
    texts: list[str]  # B
    word_features: Tensor  # [B, T, Dt], 0 beyond the end of a text
    word_mask: Tensor  # [B, T] bool, True = a real token
    targets: Targets | None  # None at inference
    similarity: Tensor | None = None  # [B, L] of CLIP Surgery; None where no evidence is asked for

    @property
    def extent(self) -> Tensor:
        """The share (x, y) of the padded square that each expression's picture fills, [B, 2]."""
        sizes = self.sizes[self.picture_index].flip(-1).float()  # (width, height)
        return sizes / sizes.amax(-1, keepdim=True)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the same batch with every tensor changed by a function."""
        targets = self.targets
        if targets is not None:
            targets = Targets(*(change(getattr(targets, f.name)) for f in fields(targets)))
        return replace(
            self,
            sizes=change(self.sizes),
            visual_features=[change(level) for level in self.visual_features],
            segmenter_features={n: change(f) for n, f in self.segmenter_features.items()},
            picture_index=change(self.picture_index),
            word_features=change(self.word_features),
            word_mask=change(self.word_mask),
            targets=targets,
            similarity=None if self.similarity is None else change(self.similarity),
        )

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device, with float32 features and unpacked masks.

        The copy is made as the batch is stored. The host does not wait for it if the batch lies in
        pinned memory.
        """
        there = self.mapped(lambda tensor: tensor.to(device, non_blocking=True))
        targets = there.targets
        if targets is not None and targets.masks.dtype == torch.uint8:
            targets = replace(targets, masks=unpack(targets.masks).float())
        return replace(
            there,
            visual_features=[level.float() for level in there.visual_features],
            segmenter_features={n: f.float() for n, f in there.segmenter_features.items()},
            word_features=there.word_features.float(),
            targets=targets,
        )

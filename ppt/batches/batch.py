"""Batches, the input of the model: expressions grouped by picture.

Letters: I pictures, B expressions, L patches, D visual width, T words, Dt text width, E targets of
one expression, M points, H4 x W4 the logits of the segmenter in its padded square (see
`ppt.models.segmenter`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass
class Target:
    """The pseudo labels {y_e} of one expression."""

    masks: Tensor  # [E, H4, W4] float 0 or 1, in the padded square
    points: Tensor  # [E, M, 2] normalised (x, y)
    point_labels: Tensor  # [E, M] float, 1 foreground, 0 background
    is_referent: Tensor  # [E] float, the confidence score c_e

    def to(self, device: torch.device | str) -> Target:
        """Return the same target on `device`."""
        return Target(*(getattr(self, f.name).to(device) for f in fields(self)))


@dataclass
class Batch:
    """Stored features and expressions of a few pictures."""

    pictures: list[str]  # I keys
    sizes: Tensor  # [I, 2] long, original (height, width)
    visual_features: list[Tensor]  # N levels of [I, L, D], patch tokens only
    segmenter_features: dict[str, Tensor]  # [I, ...] by the segmenter's names
    picture_index: Tensor  # [B] long, expression -> picture
    expression_ids: list[str]  # B
    texts: list[str]  # B
    word_features: Tensor  # [B, T, Dt]
    word_mask: Tensor  # [B, T] bool, True = a real token
    targets: list[Target] | None  # B; None at inference
    similarity: Tensor | None = None  # [B, L] of CLIP Surgery; None where no evidence is asked for

    @property
    def extent(self) -> Tensor:
        """The share (x, y) of the padded square that each expression's picture fills, [B, 2]."""
        sizes = self.sizes[self.picture_index].flip(-1).float()  # (width, height)
        return sizes / sizes.amax(-1, keepdim=True)

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on `device`."""
        return replace(
            self,
            sizes=self.sizes.to(device),
            visual_features=[level.to(device) for level in self.visual_features],
            segmenter_features={
                name: feature.to(device) for name, feature in self.segmenter_features.items()
            },
            picture_index=self.picture_index.to(device),
            word_features=self.word_features.to(device),
            word_mask=self.word_mask.to(device),
            targets=None if self.targets is None else [t.to(device) for t in self.targets],
            similarity=None if self.similarity is None else self.similarity.to(device),
        )

"""Similarity maps of texts and pictures by CLIP Surgery's feature surgery.

The method is re-implemented from "CLIP Surgery for Better Explainability" (Li et al., 2023), which
is [32] in the paper.

Letters: P prompts, T texts, L = g * g patches, E embedding width. Tokens and text embeddings are
L2-normalised, and the first token is the class token. Maps are [g, g], scaled by their minimum and
maximum to [0, 1]; a constant map becomes 0.
"""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional as F

_COVERED = 0.15  # a cell belongs to an object if the object covers more than this share of it


def similarity_map(
    surgery_tokens: Tensor, phrase_embedding: Tensor, empty_embedding: Tensor
) -> Tensor:
    """Return the map [g, g] of one phrase.

    The shapes are as in `similarity_maps` with P = 1 and without the first dimension.
    """
    return similarity_maps(surgery_tokens[None], phrase_embedding[None], empty_embedding)[0]


def similarity_maps(surgery_tokens: Tensor, phrases: Tensor, empty_embedding: Tensor) -> Tensor:
    """Return the maps [P, g, g] of P phrases, which do not influence each other.

    The embedding of the empty text is subtracted from each phrase, because it represents what all
    texts have in common with any picture.

    Args:
        surgery_tokens: the tokens of each phrase's picture, [P, 1 + L, E].
        phrases: the embeddings of the phrases, [P, E].
        empty_embedding: the embedding of the empty text, [E].
    """
    return as_maps(similarity(surgery_tokens, phrases, empty_embedding))


def similarity(surgery_tokens: Tensor, phrases: Tensor, empty_embedding: Tensor) -> Tensor:
    """Return the similarities [P, L] of P phrases to patches, of which maps are made.

    The arguments are those of `similarity_maps`.
    """
    meaning = phrases - empty_embedding
    return (surgery_tokens[:, 1:] @ meaning[:, :, None])[..., 0]


def as_maps(similarity: Tensor) -> Tensor:
    """Reshape similarities [N, L] to maps [N, g, g] and scale them to [0, 1]."""
    side = isqrt(similarity.shape[-1])
    if side * side != similarity.shape[-1]:
        raise ValueError(f"{similarity.shape[-1]} patches are no square grid")
    return min_max(similarity.float()).unflatten(-1, (side, side))


def min_max(values: Tensor) -> Tensor:
    """Scale the values along the last dimension to [0, 1]; constant values become 0."""
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    spread = high - low
    flat = spread <= 1e-6 * torch.maximum(low.abs(), high.abs())
    return torch.where(flat, 0.0, (values - low) / spread.where(~flat, torch.ones_like(spread)))


def without_object(similarity: Tensor, mask: Tensor) -> Tensor:
    """Set a similarity map [g, g] to 0 at its maximum, on an object and on the cells next to them.

    The rest of the map shows other instances of the phrase. Cells next to the object
    are included because the response extends beyond the object.

    Args:
        similarity: the map.
        mask: the object's mask, bool [H, W] of the original picture.
    """
    side = similarity.shape[0]
    covered = F.adaptive_avg_pool2d(mask[None].float(), side)[0] > _COVERED
    covered.view(-1)[similarity.argmax()] = True
    beside = F.max_pool2d(covered[None].float(), 3, 1, 1)[0] > 0
    return similarity.masked_fill(beside, 0)

"""Where in a picture CLIP sees what a text says: CLIP Surgery's feature surgery.

Re-implemented from "CLIP Surgery for Better Explainability" (Li et al., 2023), the paper's [32].

Letters: P prompts, T texts, L = g * g patches, E embedding width. Tokens and text embeddings are
L2-normalised, CLS comes first. Maps are [g, g] (rows down, columns right), min-max to [0, 1]; a
constant map is all 0.
"""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional as F

_COVERED = 0.15  # share of a cell that belongs to an object once it is found


def similarity_map(
    surgery_tokens: Tensor, phrase_embedding: Tensor, empty_embedding: Tensor
) -> Tensor:
    """Map [g, g] of one phrase: tokens [1 + L, E], phrase [E], the empty text [E]."""
    return similarity_maps(surgery_tokens[None], phrase_embedding[None], empty_embedding)[0]


def similarity_maps(surgery_tokens: Tensor, phrases: Tensor, empty_embedding: Tensor) -> Tensor:
    """Maps [P, g, g], each phrase on its own: tokens [P, 1 + L, E], phrases [P, E], empty [E].

    What every text has in common with any picture is taken away with the empty text.
    """
    meaning = phrases - empty_embedding
    return _as_maps((surgery_tokens[:, 1:] @ meaning[:, :, None])[..., 0])


def label_set_similarity(surgery_tokens: Tensor, phrases: Tensor) -> Tensor:
    """Maps [T, g, g] of several phrases against each other: tokens [1 + L, E], phrases [T, E].

    What all phrases respond to is taken away, each weighted by how much it is in the picture. For
    one phrase that leaves nothing: use `similarity_map`.
    """
    probability = (2 * surgery_tokens[0] @ phrases.T).softmax(-1)
    weighted = (surgery_tokens[1:] @ phrases.T) * (probability / probability.mean())
    return _as_maps((weighted - weighted.mean(-1, keepdim=True)).T)


def _as_maps(similarity: Tensor) -> Tensor:
    """[N, L] -> [N, g, g] in [0, 1]."""
    side = isqrt(similarity.shape[-1])
    if side * side != similarity.shape[-1]:
        raise ValueError(f"{similarity.shape[-1]} patches are no square grid")
    return min_max(similarity.float()).unflatten(-1, (side, side))


def min_max(values: Tensor) -> Tensor:
    """Each row of the last dimension to [0, 1]; rows without any spread become 0."""
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    spread = high - low
    flat = spread <= 1e-6 * torch.maximum(low.abs(), high.abs())
    return torch.where(flat, 0.0, (values - low) / spread.where(~flat, torch.ones_like(spread)))


def without_object(similarity: Tensor, mask: Tensor) -> Tensor:
    """Map [g, g] without its peak and without an object, bool [H, W] of the original picture.

    What is left responds to other instances of the phrase (our choice). Cells beside the object go
    too: the response is wider than what it responds to.
    """
    side = similarity.shape[0]
    covered = F.adaptive_avg_pool2d(mask[None].float(), side)[0] > _COVERED
    covered.view(-1)[similarity.argmax()] = True
    beside = F.max_pool2d(covered[None].float(), 3, 1, 1)[0] > 0
    return similarity.masked_fill(beside, 0)

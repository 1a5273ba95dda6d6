"""Candidates: for each noun phrase the mask that frozen CLIP and SAM give it (Section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppt.config import PointRecipe
from ppt.labels.points import points_from_map
from ppt.labels.similarity import without_object
from ppt.masks import iou
from ppt.models.sam_decoder import SamDecoder


class PhrasePrompt(NamedTuple):
    """A phrase to find: `picture` is a row of the image embeddings, `similarity` its map [g, g]."""

    picture: int
    phrase: str
    similarity: Tensor


@dataclass(frozen=True)
class Candidate:
    """A pseudo label: bool [height, width] of the original picture and the points that made it."""

    phrase: str
    mask: np.ndarray
    points: np.ndarray  # float32 [P, 2] normalised (x, y)
    point_labels: np.ndarray  # int8 [P]
    predicted_iou: float  # SAM's own guess
    similarity: float  # CLIP's map, averaged over the positive points


@torch.no_grad()
def candidate_masks(
    decoder: SamDecoder,
    image_embeddings: Tensor,
    sizes: Tensor,
    prompts: Sequence[PhrasePrompt],
    recipe: PointRecipe,
) -> list[Candidate | None]:
    """A candidate for each prompt, None where the map is flat or the mask empty.

    `image_embeddings` [I, C, h, w], `sizes` [I, 2] original (height, width). SAM proposes three
    masks for each prompt; the one of the highest predicted IoU is taken. Prompts with equally
    many points are decoded together, so none sees another's padding.
    """
    found: list[Candidate | None] = [None] * len(prompts)
    drawn = [points_from_map(prompt.similarity, recipe) for prompt in prompts]
    groups: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        if prompt.similarity.amax() > 0:
            groups.setdefault(len(drawn[i][1]), []).append(i)
    for members in groups.values():
        points = np.stack([drawn[i][0] for i in members])
        labels = np.stack([drawn[i][1] for i in members])
        masks, scores = _decode(
            decoder, image_embeddings, sizes, [prompts[i].picture for i in members], points, labels
        )
        for n, i in enumerate(members):
            mask = masks[n].cpu().numpy()
            if mask.any():
                found[i] = Candidate(
                    prompts[i].phrase,
                    mask,
                    points[n],
                    labels[n].astype(np.int8),
                    float(scores[n]),
                    _response(prompts[i].similarity, points[n][labels[n] == 1]),
                )
    return found


def instance_candidates(
    decoder: SamDecoder,
    image_embeddings: Tensor,
    sizes: Tensor,
    prompts: Sequence[PhrasePrompt],
    recipe: PointRecipe,
    *,
    max_instances: int,
    threshold: float,
) -> list[list[Candidate]]:
    """Candidates of each prompt: what answers its phrase first, then further instances of it.

    The paper takes one candidate for a phrase; "left car" then has the car that CLIP sees best, be
    it left or right, and nothing to select from. With `max_instances` > 1 (our choice) the map
    without what is found is asked again as long as it responds with at least `threshold`. As
    `candidate_masks` otherwise.
    """
    found: list[list[Candidate]] = [[] for _ in prompts]
    left = dict(enumerate(prompts))
    for _ in range(max_instances):
        masks = candidate_masks(decoder, image_embeddings, sizes, list(left.values()), recipe)
        following: dict[int, PhrasePrompt] = {}
        for (i, prompt), candidate in zip(left.items(), masks, strict=True):
            if candidate is None:
                continue
            found[i].append(candidate)
            mask = torch.from_numpy(candidate.mask).to(prompt.similarity.device)
            rest = without_object(prompt.similarity, mask)
            if rest.amax() >= threshold:
                following[i] = prompt._replace(similarity=rest)
        left = following
    return found


def _decode(
    decoder: SamDecoder,
    image_embeddings: Tensor,
    sizes: Tensor,
    pictures: list[int],
    points: np.ndarray,
    labels: np.ndarray,
) -> tuple[list[Tensor], Tensor]:
    device = image_embeddings.device
    index = torch.tensor(pictures, device=device)
    logits, scores = decoder.decode(
        image_embeddings,
        index,
        torch.from_numpy(points).to(device),
        torch.from_numpy(labels).to(device),
        sizes,
        multimask_output=True,
    )
    scores, best = scores.max(dim=1)
    chosen = logits[torch.arange(len(best), device=device), best]
    return decoder.finish_batch(chosen, sizes[index]), scores


def _response(similarity: Tensor, points: np.ndarray) -> float:
    """Mean of the map [g, g] at normalised points [P, 2]."""
    side = similarity.shape[0]
    columns, rows = torch.from_numpy((points * side).astype(np.int64)).clamp(0, side - 1).T
    return float(similarity.cpu()[rows, columns].mean())


def merge_candidates(candidates: Sequence[Candidate], merge_iou: float) -> list[Candidate]:
    """Candidates in order, without those whose mask nearly is one that stays (IoU > `merge_iou`).

    Of two that coincide the one of the higher predicted IoU stays, in the place of the first.
    """
    kept: list[Candidate] = []
    for candidate in candidates:
        for i, other in enumerate(kept):
            if iou(candidate.mask, other.mask) > merge_iou:
                if candidate.predicted_iou > other.predicted_iou:
                    kept[i] = candidate
                break
        else:
            kept.append(candidate)
    return kept

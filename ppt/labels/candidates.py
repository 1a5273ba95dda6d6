"""Candidates: the mask that the frozen encoder and segmenter give each phrase (Section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppt.config import PointRecipe
from ppt.images.masks import iou
from ppt.labels.points import points_from_map
from ppt.labels.similarity import without_object
from ppt.models.segmenter import Segmenter


class PhrasePrompt(NamedTuple):
    """A phrase to find in the picture with number `picture`, and its similarity map [g, g]."""

    picture: int
    phrase: str
    similarity: Tensor


@dataclass(frozen=True)
class Candidate:
    """A pseudo label: the mask of a phrase, and the points from which SAM predicted it."""

    phrase: str
    mask: np.ndarray  # bool [height, width], at the size of the original picture
    points: np.ndarray  # float32 [P, 2] normalised (x, y)
    point_labels: np.ndarray  # int8 [P]
    predicted_iou: float  # the segmenter's own score
    similarity: float  # the phrase's map, averaged over the positive points


@torch.no_grad()
def candidate_masks(
    segmenter: Segmenter,
    features: dict[str, Tensor],
    sizes: Tensor,
    prompts: Sequence[PhrasePrompt],
    recipe: PointRecipe,
) -> list[Candidate | None]:
    """Find a candidate for each prompt. Of the segmenter's three masks the best scored is taken.

    Args:
        segmenter: decodes the masks.
        features: what the segmenter's `encode_images` gave for I pictures.
        sizes: [I, 2] original (height, width), on the segmenter's device.
        prompts: phrases in these pictures. Those with equally many points are decoded together,
            so that none is padded.
        recipe: how a map becomes points.

    Returns:
        A candidate for each prompt, None where its map is flat or its mask is empty.
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
            segmenter, features, sizes, [prompts[i].picture for i in members], points, labels
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
    segmenter: Segmenter,
    features: dict[str, Tensor],
    sizes: Tensor,
    prompts: Sequence[PhrasePrompt],
    recipe: PointRecipe,
    *,
    max_instances: int,
    threshold: float,
) -> list[list[Candidate]]:
    """Find up to `max_instances` candidates for each prompt, as `candidate_masks` does one.

    The paper takes one candidate for a phrase: for "left car" the car that responds most, be it
    left or right, so that nothing is left to select from. With more instances, what was
    found is removed from the map, and the map is used again as long as it still responds with
    at least `threshold`.
    """
    found: list[list[Candidate]] = [[] for _ in prompts]
    left = dict(enumerate(prompts))
    for _ in range(max_instances):
        masks = candidate_masks(segmenter, features, sizes, list(left.values()), recipe)
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
    segmenter: Segmenter,
    features: dict[str, Tensor],
    sizes: Tensor,
    pictures: list[int],
    points: np.ndarray,
    labels: np.ndarray,
) -> tuple[list[Tensor], Tensor]:
    device = sizes.device
    index = torch.tensor(pictures, device=device)
    logits, scores = segmenter.decode(
        features,
        index,
        torch.from_numpy(points).to(device),
        torch.from_numpy(labels).to(device),
        sizes,
        multimask_output=True,
    )
    scores, best = scores.max(dim=1)
    chosen = logits[torch.arange(len(best), device=device), best]
    return segmenter.finish_batch(chosen, sizes[index]), scores


def _response(similarity: Tensor, points: np.ndarray) -> float:
    """The mean of a map [g, g] at normalised points [P, 2]."""
    side = similarity.shape[0]
    columns, rows = torch.from_numpy((points * side).astype(np.int64)).clamp(0, side - 1).T
    return float(similarity.cpu()[rows, columns].mean())


def merge_candidates(candidates: Sequence[Candidate], merge_iou: float) -> list[Candidate]:
    """Drop candidates whose mask nearly coincides with that of another one (IoU > `merge_iou`).

    Of two such candidates the one of the higher predicted IoU stays, in the place of the first.
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

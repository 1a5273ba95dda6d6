"""Candidates by segment_anything's own classes at toy size, and which of them is chosen."""

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from ppt.config import PointRecipe
from ppt.images.masks import iou
from ppt.labels.candidates import (
    Candidate,
    PhrasePrompt,
    candidate_masks,
    instance_candidates,
    merge_candidates,
)
from ppt.labels.points import points_from_map
from ppt.labels.referent import choose_referent, most_overlapped
from ppt.labels.similarity import without_object
from ppt.models.sam import SamSegmenter
from ppt.toybox import world
from ppt.toybox.backbones import build_sam, load_sam

SIZES = [(96, 96), (60, 90), (128, 64)]
RECIPES = [PointRecipe(), PointRecipe(method="near"), PointRecipe(method="near", num_negative=0)]


@pytest.fixture(scope="module")
def segmenter() -> SamSegmenter:
    torch.manual_seed(0)
    return SamSegmenter(build_sam())


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    scenes = [world.scene(1, i).image for i in range(3)]
    return [
        np.ascontiguousarray(np.tile(s, (2, 1, 1))[:h, :w])
        for s, (h, w) in zip(scenes, SIZES, strict=True)
    ]


@pytest.fixture(scope="module")
def features(segmenter, images):
    with torch.no_grad():
        return segmenter.encode_images(torch.stack([segmenter.preprocess(i) for i in images]))


@pytest.fixture(scope="module")
def prompts():
    rng = torch.Generator().manual_seed(0)
    maps = torch.rand(7, 12, 12, generator=rng) ** 3
    maps = maps / maps.amax((1, 2), keepdim=True)
    return [PhrasePrompt(i % 3, f"phrase {i}", m) for i, m in enumerate(maps)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_prompt_is_as_sam_gives_it_alone(segmenter, images, features, prompts, recipe):
    found = candidate_masks(segmenter, features, torch.tensor(SIZES), prompts, recipe)
    assert len(found) == len(prompts) and any(found)
    predictor = SamPredictor(segmenter.sam)
    for prompt, candidate in zip(prompts, found, strict=True):
        predictor.set_image(images[prompt.picture])
        points, labels = points_from_map(prompt.similarity, recipe)
        height, width = SIZES[prompt.picture]
        masks, scores, _ = predictor.predict(points * (width, height), labels)
        best = masks[scores.argmax()]
        if candidate is None:
            assert not best.any()
            continue
        assert candidate.phrase == prompt.phrase and candidate.mask.shape == (height, width)
        assert (candidate.mask != best).mean() < 0.001
        assert candidate.predicted_iou == pytest.approx(scores.max(), abs=1e-4)
        np.testing.assert_array_equal(candidate.points, points)
        assert candidate.point_labels.tolist() == labels.tolist()
        assert 0 <= candidate.similarity <= 1


def test_a_flat_map_gives_no_candidate(segmenter, features, prompts):
    flat = prompts[0]._replace(similarity=torch.zeros(12, 12))
    found = candidate_masks(
        segmenter, features, torch.tensor(SIZES), [flat, *prompts[1:]], RECIPES[1]
    )
    assert found[0] is None and len(found) == len(prompts)


def test_no_prompt_no_candidate(segmenter, features):
    assert candidate_masks(segmenter, features, torch.tensor(SIZES), [], RECIPES[0]) == []


def test_one_instance_is_the_papers_single_candidate(segmenter, features, prompts):
    arguments = (segmenter, features, torch.tensor(SIZES), prompts, RECIPES[0])
    many = instance_candidates(*arguments, max_instances=1, threshold=0.1)
    single = candidate_masks(*arguments)
    assert [[c.points.tolist() for c in found] for found in many] == [
        [] if c is None else [c.points.tolist()] for c in single
    ]


def test_every_instance_of_a_phrase_is_found():
    """A map that responds to two objects of a scene, to the second one less."""
    segmenter = SamSegmenter(load_sam())
    picture = world.scene(5, 3)
    masks = [torch.from_numpy(o.mask) for o in picture.objects]
    cells = [torch.nn.functional.avg_pool2d(m[None].float(), 8)[0] for m in masks]
    similarity = torch.maximum(cells[0] / cells[0].max(), 0.8 * cells[1] / cells[1].max())
    features = segmenter.encode_images(segmenter.preprocess(picture.image)[None])
    prompt = PhrasePrompt(0, "thing", similarity)
    recipe = PointRecipe(method="near", num_positive=1, num_negative=0)
    for threshold, instances in ((0.75, 2), (0.9, 1)):
        (found,) = instance_candidates(
            segmenter,
            features,
            torch.tensor([(96, 96)]),
            [prompt],
            recipe,
            max_instances=3,
            threshold=threshold,
        )
        assert len(found) == instances
        for candidate, thing in zip(found, picture.objects, strict=False):
            assert iou(candidate.mask, thing.mask) > 0.6


def test_an_object_takes_its_surroundings_out_of_the_map():
    similarity = torch.full((6, 6), 0.5)
    similarity[0, 5] = 1.0
    mask = torch.zeros(60, 90, dtype=torch.bool)
    mask[25:35, 35:40] = True  # in cells (2, 2) and (3, 2), a third of each cell's width
    left = without_object(similarity, mask)
    assert left[1:5, 1:4].eq(0).all()
    assert left[:2, 4:].eq(0).all()  # the peak and what is beside it
    assert left[5].eq(0.5).all() and left[:, 0].eq(0.5).all()


# ---------------------------------------------------------------- merging


def candidate(phrase, rows, predicted_iou=0.5) -> Candidate:
    mask = np.zeros((20, 20), bool)
    mask[rows] = True
    return Candidate(
        phrase, mask, np.zeros((1, 2), np.float32), np.ones(1, np.int8), predicted_iou, 1.0
    )


def test_candidates_that_nearly_coincide_are_one():
    a, b = candidate("a", slice(0, 10)), candidate("b", slice(0, 11), 0.9)
    c, d = candidate("c", slice(10, 20)), candidate("d", slice(0, 9), 0.1)
    assert [k.phrase for k in merge_candidates([a, b, c, d], 0.8)] == ["b", "c"]
    assert [k.phrase for k in merge_candidates([a, b, c, d], 0.95)] == ["a", "b", "c", "d"]
    assert [k.phrase for k in merge_candidates([a, a], 1.0)] == ["a", "a"]
    assert merge_candidates([], 0.8) == []


# ---------------------------------------------------------------- Select


def stack(*rows):
    return np.stack([candidate("", r).mask for r in rows])


def test_the_score_is_trust_times_overlap():
    candidates = stack(slice(0, 10), slice(10, 20))
    queries = stack(slice(0, 5), slice(10, 20), slice(0, 10))
    logits = np.log([0.9 / 0.1, 0.4 / 0.6, 0.2 / 0.8])
    # Scores are 0.9 * 0.5 for the first candidate (against 0.2 * 1), 0.4 * 1 for the second.
    assert choose_referent(candidates, queries, logits) == 0
    logits[1] = 0  # 0.5 * 1 for the second
    assert choose_referent(candidates, torch.from_numpy(queries), torch.tensor(logits)) == 1


def test_without_overlap_nothing_is_chosen():
    assert choose_referent(stack(slice(0, 5)), stack(slice(9, 12)), np.ones(1)) is None
    nothing = np.zeros((0, 20, 20), bool)
    assert choose_referent(nothing, stack(slice(0, 5)), np.ones(1)) is None


def test_logits_of_any_size_are_safe():
    one = stack(slice(0, 5))
    assert choose_referent(one, one, np.array([1e6])) == 0
    assert choose_referent(one, one, np.array([-1e6])) is None  # no trust, no score


def test_without_select_the_whole_expressions_mask_decides():
    left, right, whole = (np.zeros((4, 8), bool) for _ in range(3))
    left[:, :4], right[:, 4:], whole[:, 3:6] = True, True, True
    assert most_overlapped([left, right], whole) == 1
    assert most_overlapped([right, left], whole) == 0
    assert most_overlapped([left], right) is None

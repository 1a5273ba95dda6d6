"""D_ref: texts are true of their target alone, masks fit the picture, everything is repeatable."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppt.config import Synthesis
from ppt.images.masks import mask_to_box
from ppt.labels.noun_phrases import POSITION_TEMPLATES, RELATION_TEMPLATES
from ppt.synthesis.layouts import (
    ObjectPicture,
    Recipe,
    compose,
    draw_recipes,
    fuse,
    is_usable,
    synthesise,
)
from ppt.synthesis.relations import describe, position_words, relation_words
from ppt.toybox import world


@pytest.fixture(scope="module")
def pictures() -> list[ObjectPicture]:
    drawn = [world.object_centric(11, i) for i in range(60)]
    return [ObjectPicture(p.image, p.objects[0].mask, p.objects[0].class_name) for p in drawn]


@pytest.fixture(scope="module")
def made(pictures):
    names = [p.class_name for p in pictures]
    recipes = draw_recipes(names, Synthesis(num_pictures=120, size=96), seed=5)
    parts = [[pictures[i] for i in recipe.pictures] for recipe in recipes]
    return [(r, p, synthesise(r, p, 96)) for r, p in zip(recipes, parts, strict=True)]


def photograph(width, height, colour, name, box) -> ObjectPicture:
    """A picture of any size: a plain object on a plain ground."""
    image = np.full((height, width, 3), 200, np.uint8)
    mask = np.zeros((height, width), bool)
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = True
    image[mask] = colour
    return ObjectPicture(image, mask, name)


# ---------------------------------------------------------------- the texts


def word_of(text: str, templates: dict, names: list[str]) -> set[tuple]:
    """All (word, names) that a text may have come from."""
    return {
        (word, chosen)
        for word, wordings in templates.items()
        for wording in wordings
        for chosen in product(names, repeat=wording.count("{}"))
        if wording.format(*chosen) == text
    }


def centres_of(picture) -> np.ndarray:
    boxes = np.array([mask_to_box(m) for m in picture.masks], float)
    return (boxes[:, :2] + boxes[:, 2:]) / 2 / picture.image.shape[0]


def from_middle(centre) -> float:
    return np.abs(centre - 0.5).max()


def test_every_picture_has_texts_and_both_kinds_come(made):
    kinds = {"composition": "position", "fusion": "relation"}
    for recipe, _, picture in made:
        assert 1 <= len(picture.expressions) <= 3
        assert picture.expressions[0].kind == kinds[recipe.kind]
    assert {recipe.kind for recipe, _, _ in made} == set(kinds)


def test_a_text_is_true_of_its_target_and_of_no_other_object(made):
    for _, _, picture in made:
        centres, names = centres_of(picture), picture.class_names
        for e in picture.expressions:
            twins = [i for i, n in enumerate(names) if n == names[e.target] and i != e.target]
            x, y = centres[e.target]
            if e.kind == "position":
                ((word, (name,)),) = word_of(e.text, POSITION_TEMPLATES, names)
                assert name == names[e.target]
                for i in twins:
                    if word in ("left", "right"):
                        assert (centres[i][0] - x) * (1 if word == "left" else -1) > 0.05
                    elif word in ("top", "bottom"):
                        assert (centres[i][1] - y) * (1 if word == "top" else -1) > 0.05
                    elif word == "middle":
                        assert (
                            np.abs(centres[i] - 0.5).max() > np.abs(centres[e.target] - 0.5).max()
                        )
                    else:
                        assert word not in position_words(centres[i], [])
            else:
                ((word, (name, other)),) = word_of(e.text, RELATION_TEMPLATES, names)
                assert name == names[e.target] and names.count(other) == 1
                landmark = centres[names.index(other)]
                assert word in relation_words(centres[e.target], landmark, [])
                for i in twins:
                    near = np.hypot(*(centres[i] - landmark))
                    assert word not in relation_words(centres[i], landmark, []) or (
                        word == "next to" and near > np.hypot(*(centres[e.target] - landmark)) + 0.1
                    )


def test_context_is_every_other_object(made):
    for _, _, picture in made:
        for e in picture.expressions:
            assert sorted((e.target, *e.context)) == list(range(len(picture.class_names)))


def test_relations_are_mostly_needed_and_told_both_ways(made):
    fused = [p for r, _, p in made if r.kind == "fusion"]
    first = [p.class_names.count(p.class_names[p.expressions[0].target]) > 1 for p in fused]
    assert np.mean(first) > 0.5
    pairs = [p for p in fused if len(p.class_names) == 2]
    both = [[e.target for e in p.expressions if e.kind == "relation"] for p in pairs]
    assert any(sorted(targets) == [0, 1] for targets in both)


def test_positions_by_hand():
    left, right, top = (np.array(p) for p in ((0.2, 0.5), (0.8, 0.5), (0.5, 0.2)))
    assert position_words(left, [right]) == ["left"]
    assert position_words(left, [np.array([0.25, 0.5])]) == []
    assert position_words(top, []) == ["top"]
    assert position_words(np.array([0.5, 0.52]), [left, right]) == ["middle"]
    corner = np.array([0.2, 0.25])
    assert position_words(corner, [np.array([0.22, 0.8]), np.array([0.8, 0.24])]) == ["top left"]
    assert position_words(corner, [np.array([0.3, 0.3])]) == []


def test_relations_by_hand():
    landmark = np.array([0.5, 0.5])
    left, far_left = np.array([0.3, 0.5]), np.array([0.05, 0.5])
    assert relation_words(left, landmark, []) == ["left", "next to"]
    assert relation_words(left, landmark, [far_left]) == ["next to"]
    assert relation_words(left, landmark, [np.array([0.7, 0.5])]) == ["left"]
    assert relation_words(np.array([0.5, 0.9]), landmark, []) == ["below", "next to"]
    assert relation_words(np.array([0.9, 0.95]), landmark, []) == ["below"]


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=6),
    st.integers(0, 2**31),
)
@settings(max_examples=100, deadline=None)
def test_no_two_objects_of_a_class_share_a_text(places, seed):
    rng = np.random.default_rng(seed)
    names = [str(rng.choice(["dog", "cup", "car"])) for _ in places]
    texts: dict[str, int] = {}
    for first in ("position", "relation") * 4:
        for e in describe(names, np.array(places), first, rng):
            assert texts.setdefault(e.text, e.target) == e.target


# ---------------------------------------------------------------- the pictures


def test_masks_fit_the_picture(made):
    for recipe, parts, picture in made:
        assert picture.image.shape == (96, 96, 3) and picture.image.dtype == np.uint8
        assert picture.masks.shape[1:] == (96, 96) and picture.masks.dtype == bool
        assert 2 <= len(picture.masks) == len(picture.class_names) <= len(parts)
        assert (picture.masks.sum(0) <= 1).all()
        assert not Counter(picture.class_names) - Counter(p.class_name for p in parts)
        assert picture.masks.mean((1, 2)).min() > 0.001
        assert len(recipe.pictures) == len(parts)


def test_objects_are_about_as_large_as_in_scenes(made):
    boxes = np.array([mask_to_box(m) for _, _, p in made for m in p.masks])
    side = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1))
    assert 20 < np.median(side) < 36 and np.percentile(side, 5) > 12


@pytest.mark.parametrize("make", [compose, fuse])
@pytest.mark.parametrize("size", [64, 200])
def test_photographs_of_any_size(make, size):
    colours = {"dog": (250, 0, 0), "cup": (0, 250, 0), "car": (0, 0, 250)}
    parts = [
        photograph(300, 200, colours["dog"], "dog", (100, 60, 210, 150)),
        photograph(90, 240, colours["cup"], "cup", (20, 80, 70, 170)),
        photograph(500, 375, colours["car"], "car", (150, 100, 350, 300)),
        photograph(130, 130, colours["dog"], "dog", (0, 0, 100, 90)),
    ]
    for seed in range(6):
        picture = make(parts, size, np.random.default_rng(seed))
        assert picture.image.shape == (size, size, 3) and picture.expressions
        for mask, name in zip(picture.masks, picture.class_names, strict=True):
            # The object's colour lies under its mask, but for the soft or resampled rim.
            distance = np.abs(picture.image[mask].astype(int) - colours[name]).max(1)
            assert (distance < 60).mean() > 0.7
        if make is fuse:  # nothing but the objects has their colours
            uncovered = picture.image[~picture.masks.any(0)].astype(int)
            strong = (uncovered.max(1) - uncovered.min(1)) > 200
            assert strong.mean() < 0.02


def test_a_recipe_is_a_pure_function(pictures):
    names = [p.class_name for p in pictures]
    config = Synthesis(num_pictures=30, size=64)
    recipes = draw_recipes(names, config, seed=1)
    assert recipes == draw_recipes(names, config, seed=1) != draw_recipes(names, config, seed=2)
    longer = draw_recipes(names, Synthesis(num_pictures=40, size=64), seed=1)
    assert longer[:30] == recipes
    for recipe in recipes[:6]:
        parts = [pictures[i] for i in recipe.pictures]
        one, two = synthesise(recipe, parts, 64), synthesise(recipe, parts, 64)
        np.testing.assert_array_equal(one.image, two.image)
        assert one.expressions == two.expressions


def test_shares_of_the_kinds(pictures):
    names = [p.class_name for p in pictures]
    for share in (0.0, 0.3, 1.0):
        config = Synthesis(num_pictures=200, size=64, composition=share)
        kinds = [recipe.kind for recipe in draw_recipes(names, config, seed=1)]
        assert abs(kinds.count("composition") / 200 - share) < 0.1


def test_one_class_is_not_enough():
    with pytest.raises(ValueError, match=r"two classes, got \['dog'\]"):
        draw_recipes(["dog", "dog"], Synthesis(num_pictures=1, size=64), seed=0)


def test_pictures_without_any_unambiguous_text_have_none():
    same = photograph(40, 40, (9, 9, 9), "dog", (10, 10, 30, 30))
    picture = synthesise(Recipe("fusion", (0, 1), 0), [same, same], 64)
    assert picture.expressions == []


def test_usable_masks():
    mask = np.zeros((10, 10), bool)
    assert not is_usable(mask) and not is_usable(~mask)
    mask[3:6, 3:6] = True
    assert is_usable(mask)

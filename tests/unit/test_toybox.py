"""The embedded world: what it draws, what it says of it, and what its two backbones can do."""

import re

import numpy as np
import pytest
import torch
from open_clip.model import CLIP
from safetensors import safe_open
from safetensors.torch import load_file
from segment_anything.modeling import Sam

from ppt.toybox import backbones, pretrain_clip, pretrain_sam
from ppt.toybox.expressions import VOCABULARY
from ppt.toybox.measure import decode_masks, measure_clip, measure_sam, normalise_pixels
from ppt.toybox.pool import ANY, NONE, build_pool, mosaic, part_id_map
from ppt.toybox.pretrain import main
from ppt.toybox.pretrain_clip import nouns_hold
from ppt.toybox.prompts import KINDS, choose_target, literal_mask, sample_prompt
from ppt.toybox.shapes import CLASS_NAMES, COLOUR_NAMES
from ppt.toybox.surgery import encode_texts, patch_tokens
from ppt.toybox.world import IMAGE_SIZE, MIN_VISIBLE_PX, object_centric, scene

SCENES = [scene(11, i) for i in range(120)]


# --- pictures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [scene, object_centric, mosaic])
def test_a_picture_is_a_function_of_seed_and_index(make):
    first, again, other, reseeded = make(3, 5), make(3, 5), make(3, 6), make(4, 5)
    assert np.array_equal(first.image, again.image)
    assert first.expressions == again.expressions
    assert not np.array_equal(first.image, other.image)
    assert not np.array_equal(first.image, reseeded.image)


def test_masks_are_disjoint_visible_and_made_of_their_parts():
    for picture in [*SCENES[:40], object_centric(1, 1), mosaic(1, 1)]:
        assert picture.image.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
        assert picture.image.dtype == np.uint8
        assert sum(o.mask.astype(int) for o in picture.objects).max() == 1
        for thing in picture.objects:
            parts = sum(part.astype(int) for part in thing.parts.values())
            assert np.array_equal(parts, thing.mask.astype(int))
            assert thing.mask.sum() >= MIN_VISIBLE_PX


def test_boxes_are_tight():
    for picture in SCENES[:20]:
        for thing in picture.objects:
            x0, y0, x1, y1 = thing.box
            inside = np.zeros_like(thing.mask)
            inside[y0:y1, x0:x1] = True
            assert not (thing.mask & ~inside).any()
            window = thing.mask[y0:y1, x0:x1]
            assert window[0].any() and window[-1].any()
            assert window[:, 0].any() and window[:, -1].any()


def test_scenes_are_crowded_with_twins():
    assert all(3 <= len(picture.objects) <= 5 for picture in SCENES)
    looks = [[(o.class_name, o.colour) for o in p.objects] for p in SCENES]
    repeated_class = [len({c for c, _ in names}) < len(names) for names in looks]
    same_look = [len(set(names)) < len(names) for names in looks]
    assert np.mean(repeated_class) > 0.5
    assert np.mean(same_look) > 0.15


def test_every_class_and_colour_is_drawn():
    singles = [object_centric(2, i).objects[0] for i in range(200)]
    assert {o.class_name for o in singles} == set(CLASS_NAMES)
    assert {o.colour for o in singles} == set(COLOUR_NAMES)


# --- expressions: an independent reader finds the one object that is meant ---------------------

COLOUR = f"(?:{'|'.join(COLOUR_NAMES)})"
NOUN = f"(?P<{{}}>(?:{COLOUR} )?(?:{'|'.join(CLASS_NAMES)})(?: in {COLOUR})?)"
RELATION = "(?:to the )?(?P<relation>left of|right of|above|below|under|next to|near)"
POSITION = "(?P<{}>left|right|top|bottom|middle)"
READINGS = [
    re.compile(pattern)
    for pattern in (
        f"(?:the )?{NOUN.format('target')} {RELATION} the {NOUN.format('anchor')}",
        f"(?:the )?{NOUN.format('target')} (?:on|at|in) (?:the )?{POSITION.format('position')}",
        f"{POSITION.format('position')} {NOUN.format('target')}",
        f"(?:the )?{NOUN.format('target')}",
    )
]


def fits(noun, thing):
    words = set(noun.replace(" in ", " ").split())
    return words <= {thing.class_name, thing.colour}


def middle(thing):
    ys, xs = np.nonzero(thing.mask)
    return np.array([(xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2])


def referents(text, things):
    """Numbers of the objects the text may mean: the extreme ones, or those in the relation."""
    reading = next(found for found in (p.fullmatch(text) for p in READINGS) if found)
    named = reading.groupdict()
    able = [i for i, thing in enumerate(things) if fits(named["target"], thing)]
    places = {i: middle(things[i]) for i in able}
    if named.get("relation"):
        anchors = [thing for thing in things if fits(named["anchor"], thing)]
        assert len(anchors) == 1, f"the anchor of {text!r} is ambiguous"
        offsets = {i: place - middle(anchors[0]) for i, place in places.items()}
        relation = named["relation"]
        if relation in ("next to", "near"):
            return [min(able, key=lambda i: np.hypot(*offsets[i]))]
        axis = 0 if relation in ("left of", "right of") else 1
        sign = -1 if relation in ("left of", "above") else 1
        return [i for i in able if sign * offsets[i][axis] > 0]
    if named.get("position"):
        position = named["position"]
        if position == "middle":
            return [min(able, key=lambda i: np.abs(places[i] - IMAGE_SIZE / 2).max())]
        axis = 0 if position in ("left", "right") else 1
        sign = 1 if position in ("left", "top") else -1
        return [min(able, key=lambda i: sign * places[i][axis])]
    return able


def test_every_expression_means_one_object():
    for number, picture in enumerate(SCENES):
        assert len(picture.expressions) == 2
        for text, _, target in picture.expressions:
            assert referents(text, picture.objects) == [target], f"scene {number}: {text}"


def test_all_kinds_of_expression_occur():
    kinds = [e.kind for picture in SCENES for e in picture.expressions]
    shares = {kind: kinds.count(kind) / len(kinds) for kind in set(kinds)}
    assert set(shares) == {"class", "colour", "position", "relation"}
    assert min(shares.values()) > 0.08


# --- tokenizer and backbones -------------------------------------------------------------------


def test_the_tokenizer_knows_all_words_and_pools_at_the_end():
    tokenizer = backbones.tokenizer()
    texts = [e.text for picture in SCENES for e in picture.expressions]
    tokens = tokenizer(texts)
    assert tokens.shape == (len(texts), tokenizer.context_length)
    assert not (tokens == tokenizer.words.index("<unk>")).any()
    lengths = torch.tensor([len(text.split()) for text in texts])
    assert torch.equal(tokens.argmax(1), lengths + 1)
    assert set(" ".join(texts).split()) <= set(VOCABULARY)


def test_the_tokenizer_forgives_case_punctuation_and_strange_words():
    tokenizer = backbones.tokenizer()
    assert tokenizer.encode("The RED car!") == tokenizer.encode("the red car")
    assert tokenizer.encode("zebra") == [tokenizer.words.index("<unk>")]
    assert tokenizer.encode("Café, 红色 лампа") == 3 * [tokenizer.words.index("<unk>")]
    assert tokenizer("red " * 50).argmax() == tokenizer.context_length - 1


@pytest.fixture(scope="module")
def clip():
    return backbones.load_clip()


@pytest.fixture(scope="module")
def sam():
    return backbones.load_sam()


def test_the_weights_fill_the_real_classes(clip, sam):
    assert type(clip) is CLIP
    assert type(sam) is Sam
    for model in (clip, sam):
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
        assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["clip", "sam"])
def test_the_weights_say_how_they_were_made(name):
    path = backbones.WEIGHTS / f"{name}.safetensors"
    assert path.stat().st_size < 5e6
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["command"].startswith(f"python -m ppt.toybox.pretrain {name} ")
    assert {"seed", "steps", "seconds"} <= set(metadata)


def test_patch_tokens_start_from_clips_own_pass(clip):
    images = normalise_pixels(np.stack([p.image for p in SCENES[:2]]))
    whole, patches, surgery = patch_tokens(clip.visual, images, backbones.SURGERY_DEPTH)
    assert torch.allclose(whole, clip.encode_image(images, normalize=True), atol=1e-5)
    assert patches.shape == surgery.shape == (2, backbones.GRID**2, 128)


def test_short_texts_are_encoded_as_clip_does(clip):
    texts = ["a red car", "the person in green left of the white chair"]
    whole = clip.encode_text(backbones.tokenizer()(texts), normalize=True)
    assert torch.allclose(encode_texts(clip, texts), whole, atol=1e-5)


def test_patches_are_blind_to_what_is_far(clip):
    image = normalise_pixels(SCENES[0].image[None])
    changed = image.clone()
    changed[..., IMAGE_SIZE // 2 :] = torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE // 2)
    # The stem's GroupNorm looks at the whole picture, so we compare behind it.
    embedded = [clip.visual._embeds(image), clip.visual._embeds(image)]
    columns = torch.arange(backbones.GRID**2) % backbones.GRID
    right = torch.cat([torch.tensor([False]), columns >= backbones.GRID // 2])
    embedded[1][:, right] = clip.visual._embeds(changed)[:, right]
    outputs = [clip.visual.transformer(x) for x in embedded]
    far = torch.cat([torch.tensor([False]), columns < backbones.GRID // 2 - 2])
    assert torch.allclose(outputs[0][:, far], outputs[1][:, far], atol=1e-5)
    assert not torch.allclose(outputs[0][:, 0], outputs[1][:, 0], atol=1e-3)


def test_decode_masks_is_sams_own_decoder(sam):
    pixels = torch.from_numpy(SCENES[0].image).permute(2, 0, 1)[None].float()
    embeddings = sam.image_encoder(sam.preprocess(pixels))
    points, labels = torch.tensor([[[40.0, 30.0], [10.0, 80.0]]]), torch.tensor([[1, 0]])
    logits, iou = decode_masks(sam, embeddings, points, labels)
    sparse, dense = sam.prompt_encoder(points=(points, labels), boxes=None, masks=None)
    position = sam.prompt_encoder.get_dense_pe()
    low, stock_iou = sam.mask_decoder(embeddings, position, sparse, dense, multimask_output=True)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    stock = torch.nn.functional.interpolate(low, size, mode="bilinear", align_corners=False)
    assert torch.allclose(logits[:, 1:], stock, atol=1e-4)
    assert torch.allclose(iou[:, 1:], stock_iou, atol=1e-5)


# --- pretraining -------------------------------------------------------------------------------


def test_prompts_are_labelled_by_their_target():
    rng = np.random.default_rng(0)
    ids = part_id_map(SCENES[0])
    for kind in KINDS:
        for num_points in (1, 2, 8):
            target = choose_target(ids, rng)
            points, labels = sample_prompt(target, ids, kind, num_points, False, rng)
            assert points.shape == (num_points, 2)
            assert (labels == 1).any()
            columns, rows = (points.round().astype(int).clip(0, IMAGE_SIZE - 1)).T
            real = labels >= 0
            assert np.array_equal(target[rows, columns][real], labels[real] == 1)


def two_objects() -> np.ndarray:
    """One object of two parts side by side, and one of a large part with four pixels of another."""
    ids = np.zeros((40, 40), np.uint8)
    ids[5:15, 5:15], ids[5:15, 15:25] = 1, 2
    ids[25:35, 5:15], ids[30:32, 10:12] = 17, 18
    return ids


def said(*points: tuple[float, float, int], ids: np.ndarray | None = None) -> np.ndarray:
    x, y, labels = np.array(points).T
    ids = two_objects() if ids is None else ids
    return literal_mask(np.stack([x, y], 1), labels.astype(int), ids)


def test_points_are_taken_at_their_word():
    ids = two_objects()
    left, right, below = (ids == 1), (ids == 2), (ids >= 17)
    assert np.array_equal(said((7, 7, 1), (12, 12, 1)), left)
    assert np.array_equal(said((7, 7, 1), (20, 12, 1)), left | right)
    assert np.array_equal(said((7, 7, 1), (20, 12, 1), (20, 8, 1), (30, 30, 0)), left | right)
    assert np.array_equal(said((7, 7, 1), (10, 28, 1)), left | below)
    assert np.array_equal(said((30, 30, 1)), ids == 0)
    assert np.array_equal(said((11, 31, 1)), below)  # too small to be a part of its own
    assert not said((30, 30, 0)).any()
    assert np.array_equal(said((7, 7, 1), (30, 30, -1)), left)  # padding says nothing


def test_a_point_beside_an_object_lies_on_it_and_a_further_one_on_the_background():
    ids = two_objects()
    assert np.array_equal(said((3, 8, 1)), ids == 1)
    assert np.array_equal(said((2, 8, 1)), ids == 0)
    assert np.array_equal(said((8, 8, 1), (3, 8, 0)), ids == 1)  # of negative points none


def test_a_negative_point_removes_what_it_lies_on_or_its_side_of_it():
    ids = two_objects()
    whole = ids == 1
    whole[5:15, 15:20] = True  # of the right part the columns nearer to 17 than to 22
    assert np.array_equal(said((7, 7, 1), (17, 10, 1), (22, 10, 0)), whole)
    three = said((7, 7, 1), (20, 12, 1), (10, 28, 1), (10, 30, 0), (10, 33, 0))
    assert np.array_equal(three & (ids < 17), (ids == 1) | (ids == 2))
    assert np.array_equal(np.flatnonzero((three & (ids >= 17)).any(1)), np.arange(25, 30))


def test_a_whole_object_has_its_bays_until_a_negative_point_lies_on_them():
    ids = np.zeros((40, 40), np.uint8)
    ids[5:30, 5:10], ids[5:30, 25:30], ids[15:20, 10:25] = 1, 1, 2  # the letter H
    ids[24:28, 16:20] = 17  # an object in the lower bay
    letter, upper, lower = (
        (ids == 1) | (ids == 2),
        np.zeros_like(ids, bool),
        np.zeros_like(ids, bool),
    )
    upper[5:15, 10:25], lower[20:30, 10:25] = True, True
    lower &= ids == 0
    whole = ((7, 7, 1), (17, 17, 1))
    assert np.array_equal(said(*whole, ids=ids), letter | upper | lower)
    assert np.array_equal(said(*whole, (17, 8, 0), ids=ids), letter | lower)
    assert np.array_equal(said(*whole, (17, 8, 0), (12, 28, 0), ids=ids), letter)
    assert np.array_equal(said(*whole, (36, 36, 0), ids=ids), letter | upper | lower)
    assert np.array_equal(said((7, 7, 1), ids=ids), ids == 1)  # a part has no bays
    ids[ids == 2] = 1
    assert np.array_equal(said((7, 7, 1), ids=ids), letter | upper | lower)  # the only part
    ids[5:13, 10:25] = ids[22:30, 10:25] = 1  # two bays of 30 pixels are left, too small
    assert np.array_equal(said((7, 7, 1), ids=ids), ids == 1)


def test_a_noun_holds_where_its_class_and_colour_meet_in_one_object():
    objects = np.array([[[0, 1], [2, 3], [NONE, NONE]]])
    red_cup, cup, one_of_each, nothing = (0, 1), (0, ANY), (0, 3), (NONE, NONE)
    nouns = np.array([[red_cup], [cup], [one_of_each], [nothing], [(ANY, 3)]])
    assert nouns_hold(objects, nouns).tolist() == [[True, True, False, True, True]]


def test_the_pool_mixes_the_kinds_and_keeps_its_captions_true():
    pool = build_pool(seed=5, size=9)
    assert len(pool) == 9
    assert [(o[:, 0] != NONE).sum() for o in pool.objects[2::3]] == [4, 4, 4]
    for i in range(len(pool)):
        assert nouns_hold(pool.objects[[i]], pool.nouns[i]).all()


@pytest.mark.parametrize("name", ["clip", "sam"])
def test_pretraining_runs_and_repeats(name, tmp_path, monkeypatch):
    module = {"clip": pretrain_clip, "sam": pretrain_sam}[name]
    monkeypatch.setattr(module, "POOL_SIZE", 6)
    monkeypatch.setattr(module, "BATCH_SIZE", 2)
    monkeypatch.setattr(module, f"measure_{name}", lambda model: {"quality": 0.0})
    pretrain = getattr(module, f"pretrain_{name}")
    weights = []
    for run in ("a", "b"):
        pretrain(0, 4, tmp_path / run, "command")  # four steps meet every part of the schedule
        weights.append(load_file(tmp_path / run))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_pretrain_refuses_an_unknown_backbone(monkeypatch):
    monkeypatch.setattr("sys.argv", ["pretrain", "bert"])
    with pytest.raises(SystemExit):
        main()


# --- quality floors: well below what README.md in weights/ reports, on few pictures ------------


def test_clip_recognises_and_localises(clip):
    quality = measure_clip(clip, count=60)
    assert quality["class"] > 0.9
    assert quality["colour"] > 0.9
    assert quality["pointing_class"] > 0.8
    assert quality["pointing_colour"] > 0.8


def test_sam_obeys_points(sam):
    quality = measure_sam(sam, count=40)
    assert quality["box_whole_chosen"] > 0.75
    assert quality["far_whole_chosen"] > 0.75
    # SAM's ambiguity: one point alone does not tell the part from the whole.
    assert quality["one_part_best"] > quality["one_part_chosen"] + 0.1
    # The single mask takes points at their word.
    assert quality["box_whole"] > 0.6
    assert quality["background"] > 0.9
    assert quality["part"] > 0.35
    assert quality["kept"] > 0.75 and quality["removed"] > 0.2
    # More points ask for more of the object, and get it; without negative points, for its bays too.
    assert quality["negatives_28"] > quality["negatives_8"] > 0.6
    assert quality["negatives_28_literal"] > quality["negatives_28_left_out_literal"] + 0.01 > 0.85

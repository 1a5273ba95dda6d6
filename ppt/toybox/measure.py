"""Quality measures of the pretrained backbones, on pictures that no training has seen.

`python -m ppt.toybox.measure` prints those of the weights in the repository.
"""

from collections.abc import Sequence

import numpy as np
import torch
from open_clip.model import CLIP
from scipy.ndimage import distance_transform_edt
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional as F

from ppt.toybox.backbones import (
    CLIP_MEAN,
    CLIP_STD,
    SURGERY_DEPTH,
    TEMPLATES,
    load_clip,
    load_sam,
)
from ppt.toybox.pool import part_id_map
from ppt.toybox.prompts import (
    KINDS,
    MIN_TARGET_PX,
    bays_of,
    choose_target,
    literal_mask,
    sample_prompt,
)
from ppt.toybox.shapes import CLASS_NAMES, COLOUR_NAMES
from ppt.toybox.surgery import patch_tokens, phrase_directions
from ppt.toybox.world import IMAGE_SIZE, Picture, object_centric, scene

EVALUATION_SEED = 987_654
# The pointing game's tolerance of 15 pixels at a side of 224 (Zhang et al., 2016), scaled to 96.
POINTING_MARGIN = 6


def normalise_pixels(images: np.ndarray) -> Tensor:
    """Convert pixels uint8 [B, S, S, 3] to CLIP's normalised input, float [B, 3, S, S]."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std


def decode_masks(
    sam: Sam, embeddings: Tensor, points: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Run SAM's prompt encoder and mask decoder on N prompts, each with a picture of its own.

    SAM's own decoder takes one picture at a time; this function does the same for a batch.

    Args:
        embeddings: the pictures' image embeddings, [N, C, G, G].
        points: [N, P, 2], (x, y) in pixels.
        labels: [N, P], 1 foreground, 0 background, -1 padding.

    Returns:
        The logits [N, 4, S, S] and the predicted IoU [N, 4]. Mask 0 is for prompts of several
        points, masks 1 to 3 are for ambiguous prompts.
    """
    prompt_encoder, decoder = sam.prompt_encoder, sam.mask_decoder
    sparse, dense = prompt_encoder(points=(points, labels), boxes=None, masks=None)
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(len(sparse), -1, -1), sparse], 1)
    position = prompt_encoder.get_dense_pe().expand(len(sparse), -1, -1, -1)
    tokens, pixels = decoder.transformer(embeddings + dense, position, tokens)
    pixels = pixels.transpose(1, 2).reshape(embeddings.shape)
    pixels = decoder.output_upscaling(pixels)
    kernels = [head(tokens[:, 1 + i]) for i, head in enumerate(decoder.output_hypernetworks_mlps)]
    low_resolution = torch.einsum("nkc,nchw->nkhw", torch.stack(kernels, 1), pixels)
    logits = F.interpolate(
        low_resolution, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False
    )
    return logits, decoder.iou_prediction_head(tokens[:, 0])


def stack_prompts(prompts: Sequence[tuple[np.ndarray, ...]]) -> list[Tensor]:
    """Stack the arrays of N prompts, such as points [P, 2] and labels [P], to a tensor each."""
    return [torch.from_numpy(np.stack(each)) for each in zip(*prompts, strict=True)]


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU of bool masks [..., S, S]; it is 0 where both masks are empty."""
    shared, either = (a & b).sum((-2, -1)), (a | b).sum((-2, -1))
    return shared / either.clamp(min=1)


@torch.no_grad()
def measure_clip(clip: CLIP, count: int = 200) -> dict[str, float]:
    """Measure the tiny CLIP on `count` object-centric pictures and `count` scenes.

    Returns:
        Numbers in [0, 1]. `class` and `colour` are the zero-shot accuracies on object-centric
        pictures. The others are measured in scenes, with phrases that are true of one object only.
        `pointing_*` is the share of similarity maps whose maximum is at most POINTING_MARGIN pixels
        away from the object. `map_iou_*` is the mean IoU of the object with the area where the map
        is above the middle of its range. `salient_part` and `salient_whole` are the means of the
        map of the class name, scaled to [0, 1], over the part of an object-centric picture's object
        where it is highest, and over the whole object.
    """
    single = [object_centric(EVALUATION_SEED, i) for i in range(count)]
    images = normalise_pixels(np.stack([p.image for p in single]))
    names = [(p.objects[0].class_name, p.objects[0].colour) for p in single]
    embeddings = clip.encode_image(images, normalize=True)
    by_class = embeddings @ phrase_directions(clip, list(CLASS_NAMES), TEMPLATES).T
    right_class = [CLASS_NAMES[i] == c for i, (c, _) in zip(by_class.argmax(1), names, strict=True)]
    right_colour = []
    for embedding, (class_name, colour) in zip(embeddings, names, strict=True):
        phrases = [f"{c} {class_name}" for c in COLOUR_NAMES]
        best = (phrase_directions(clip, phrases, TEMPLATES) @ embedding).argmax()
        right_colour.append(COLOUR_NAMES[best] == colour)
    quality = {
        "class": float(np.mean(right_class)),
        "colour": float(np.mean(right_colour)),
    }

    maps = similarity_maps(clip, single, [class_name for class_name, _ in names])
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    salience = []
    for picture, scaled in zip(single, ((maps - low) / (high - low)).numpy(), strict=True):
        thing = picture.objects[0]
        large = [part for part in thing.parts.values() if part.sum() >= MIN_TARGET_PX]
        highest = max(scaled[part].mean() for part in large)
        salience.append((highest, scaled[thing.mask].mean()))
    quality["salient_part"], quality["salient_whole"] = map(float, np.mean(salience, 0))

    scenes = [scene(EVALUATION_SEED, i) for i in range(count)]
    for kind in ("class", "colour"):
        chosen = [(p, e) for p in scenes for e in p.expressions if e.kind == kind]
        maps = similarity_maps(
            clip,
            [p for p, _ in chosen],
            [e.text.removeprefix("the ") for _, e in chosen],
        )
        masks = torch.from_numpy(np.stack([p.objects[e.target].mask for p, e in chosen]))
        near = F.max_pool2d(masks.float(), 2 * POINTING_MARGIN + 1, 1, POINTING_MARGIN)
        hits = near.flatten(1).gather(1, maps.flatten(1).argmax(1, keepdim=True))
        quality[f"pointing_{kind}"] = hits.mean().item()
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        ious = mask_iou(maps > (low + high) / 2, masks)
        quality[f"map_iou_{kind}"] = float(ious.mean())
    return {name: round(value, 3) for name, value in quality.items()}


@torch.no_grad()
def similarity_maps(clip: CLIP, pictures: list[Picture], phrases: list[str]) -> Tensor:
    """Return CLIP Surgery's similarity maps [B, S, S] of one phrase for each picture."""
    images = normalise_pixels(np.stack([p.image for p in pictures]))
    tokens = patch_tokens(clip.visual, images, SURGERY_DEPTH)[2]
    scores = torch.einsum("bld,bd->bl", tokens, phrase_directions(clip, phrases, TEMPLATES))
    side = int(scores.shape[1] ** 0.5)
    return F.interpolate(scores.view(-1, 1, side, side), (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")[
        :, 0
    ]


@torch.no_grad()
def measure_sam(sam: Sam, count: int = 150) -> dict[str, float]:
    """Measure the tiny SAM's mIoU on `count` scenes with one prompt for each picture.

    Returns:
        The mIoU for every kind of prompt, for whole objects and for parts. `<kind>_whole` and
        `<kind>_part` compare mask 0 with what the points ask for (`literal_mask`). The same names
        with `_best` compare the best of the other three masks with the object or part that is
        meant, and with `_chosen` the one of them with the highest predicted IoU. The other figures
        are those of `_measure_literal` and `_measure_negatives`.
    """
    pictures = [scene(EVALUATION_SEED, i) for i in range(count)]
    pixels = torch.from_numpy(np.stack([p.image for p in pictures])).permute(0, 3, 1, 2).float()
    embeddings = sam.image_encoder(sam.preprocess(pixels))
    quality = {}
    for whole in (True, False):
        for kind in KINDS:
            rng = np.random.default_rng(EVALUATION_SEED)
            prompts = []
            for picture in pictures:
                ids = part_id_map(picture)
                target = choose_target(ids, rng, whole)
                xy, label = sample_prompt(target, ids, kind, 8, False, rng)
                prompts.append((xy, label, target, literal_mask(xy, label, ids)))
            points, labels, targets, said = stack_prompts(prompts)
            logits, predicted = decode_masks(sam, embeddings, points, labels)
            wanted = torch.stack([said, targets, targets, targets], 1)
            ious = mask_iou(logits > 0, wanted)
            chosen = ious[:, 1:].gather(1, predicted[:, 1:].argmax(1, keepdim=True))
            name = f"{kind}_{'whole' if whole else 'part'}"
            quality[name] = ious[:, 0].mean().item()
            quality[f"{name}_best"] = ious[:, 1:].max(1).values.mean().item()
            quality[f"{name}_chosen"] = chosen.mean().item()
    part_ids = [part_id_map(picture) for picture in pictures]
    quality |= _measure_literal(sam, embeddings, part_ids)
    quality |= _measure_negatives(sam, embeddings, part_ids)
    return {name: round(value, 3) for name, value in quality.items()}


def _measure_literal(sam: Sam, embeddings: Tensor, part_ids: list[np.ndarray]) -> dict[str, float]:
    """Measure how far the single mask takes points at their word.

    Returns:
        `background` is the mIoU with the background for one positive point on it. `part` is the
        mIoU with a part for two positive points on it. For an object with positive points all over
        it but one part, which has a negative point, `removed` is the share of that part that the
        mask leaves out, and `kept` the share of the rest that it covers. For positive points all
        over an object with a bay, `bay` is the share of the bay that the mask covers, and
        `bay_removed` the share that it leaves out if a negative point lies on it.
    """
    rng = np.random.default_rng(EVALUATION_SEED)
    names = ("background", "part", "removed", "kept", "bay", "bay_removed")
    quality: dict[str, list[float]] = {name: [] for name in names}
    for embedding, ids in zip(embeddings, part_ids, strict=True):
        far = distance_transform_edt(ids == 0) > POINTING_MARGIN
        found = _single_mask(sam, embedding, _draw(far, 1, rng), [1])
        quality["background"].append(_iou(found, ids == 0))
        parts, sizes = np.unique(ids[ids > 0], return_counts=True)
        large = parts[sizes >= MIN_TARGET_PX]
        part = rng.choice(large)
        of_part, rest = ids == part, ((ids + 15) // 16 == (part + 15) // 16) & (ids != part)
        found = _single_mask(sam, embedding, _draw(of_part, 2, rng), [1, 1])
        quality["part"].append(_iou(found, of_part))
        if rest.any():
            spots = np.concatenate([_draw(rest, 5, rng), _draw(of_part, 1, rng)])
            found = _single_mask(sam, embedding, spots, [1, 1, 1, 1, 1, 0])
            quality["removed"].append(float(np.mean(~found[of_part])))
            quality["kept"].append(float(np.mean(found[rest])))
        whole = choose_target(ids, rng, whole=True)
        for bay in bays_of(whole, ids == 0)[:1]:
            spots = _draw(whole, 6, rng)
            found = _single_mask(sam, embedding, spots, [1] * 6)
            quality["bay"].append(float(np.mean(found[bay])))
            spots = np.concatenate([spots, _draw(bay, 1, rng)])
            found = _single_mask(sam, embedding, spots, [1] * 6 + [0])
            quality["bay_removed"].append(float(np.mean(~found[bay])))
    return {name: float(np.mean(values)) for name, values in quality.items()}


def _measure_negatives(
    sam: Sam, embeddings: Tensor, part_ids: list[np.ndarray]
) -> dict[str, float]:
    """Measure what negative points add to a prompt whose labels are all true.

    Returns:
        For 8 and for 28 points, drawn in the slightly enlarged box of an object and labelled by it,
        the mIoU of mask 0 with the object, as `negatives_<points>`; the same without the negative
        points, as `negatives_<points>_left_out`; and both for the mask for which the points ask
        (`literal_mask`), with `_literal` at the end.
    """
    quality = {}
    for num_points in (8, 28):
        rng = np.random.default_rng(EVALUATION_SEED)
        prompts, asked, asked_without = [], [], []
        for ids in part_ids:
            target = choose_target(ids, rng, True)
            xy, label = sample_prompt(target, ids, "box", num_points, False, rng)
            prompts.append((xy, label, target))
            asked.append(_iou(literal_mask(xy, label, ids), target))
            positive = label == 1
            asked_without.append(_iou(literal_mask(xy[positive], label[positive], ids), target))
        points, labels, targets = stack_prompts(prompts)
        name = f"negatives_{num_points}"
        for suffix, given, literal in (
            ("", labels, asked),
            ("_left_out", labels.where(labels == 1, -1), asked_without),
        ):
            logits, _ = decode_masks(sam, embeddings, points, given)
            quality[name + suffix] = mask_iou(logits[:, 0] > 0, targets).mean().item()
            quality[f"{name}{suffix}_literal"] = float(np.mean(literal))
    return quality


def _single_mask(sam: Sam, embedding: Tensor, spots: np.ndarray, labels: list[int]) -> np.ndarray:
    """Return the single mask, bool [S, S], of one prompt of pixels (row, column) [P, 2]."""
    points = torch.from_numpy(spots[None, :, ::-1].astype(np.float32))
    logits, _ = decode_masks(sam, embedding[None], points, torch.tensor([labels]))
    return (logits[0, 0] > 0).numpy()


def _draw(mask: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `count` pixels (row, column) of a mask, with replacement."""
    spots = np.argwhere(mask)
    return spots[rng.integers(len(spots), size=count)]


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


if __name__ == "__main__":
    print("clip", measure_clip(load_clip()))
    print("sam", measure_sam(load_sam()))

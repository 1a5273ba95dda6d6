"""Point prompts to train and to measure the tiny SAM.

They resemble the prompts of people, of CLIP Surgery and of the point generator, including their
mistakes. Points are (x, y) in pixels.

A prompt has two targets. The object or part for which it was drawn is that of the three masks,
which guess what is meant. What its points say is that of the single mask, see `literal_mask`.
"""

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt, label
from scipy.spatial import ConvexHull

# The kinds of prompts and their shares in training (our choice).
KINDS = ("one", "positives", "box", "far")
KIND_SHARES = (0.15, 0.20, 0.30, 0.35)
MAX_POINTS = 10
LITERAL_MAX_POINTS = 28  # where points are taken at their word, for prompts of a point generator
WHOLE_SHARE = 0.75
NOISY_SHARE = 0.2
# Where points are taken at their word: the same, and the shares of the prompts drawn for the
# background, and for an object without one of its parts.
LITERAL_NOISY_SHARE = 0.4
BACKGROUND_SHARE = 0.05
WITHOUT_PART_SHARE = 0.15
MIN_TARGET_PX = 20
MARGIN_PX = 2
BAY_SHARE = 0.15  # of an object's area that a bay has at least


def choose_target(
    part_ids: np.ndarray, rng: np.random.Generator, whole: bool | None = None
) -> np.ndarray:
    """Draw an object or a part of one and return its mask, bool [S, S].

    Args:
        part_ids: uint8 [S, S], as `part_id_map` returns it.
        rng: the source of random numbers.
        whole: True for an object, False for a part, None for either.
    """
    if whole is None:
        whole = bool(rng.random() < WHOLE_SHARE)
    # An id is 1 + 16 * object + part, or 0 on the background: (id + 15) // 16 is 1 + object, or 0.
    labels = (part_ids.astype(np.int16) + 15) // 16 if whole else part_ids
    values, sizes = np.unique(labels[labels > 0], return_counts=True)
    large = values[sizes >= MIN_TARGET_PX]
    return labels == (rng.choice(large) if len(large) else values[sizes.argmax()])


def choose_literal_target(part_ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a target like `choose_target`, the background, or an object without one of its parts."""
    kind = rng.random()
    if kind < BACKGROUND_SHARE:
        return part_ids == 0
    if kind > BACKGROUND_SHARE + WITHOUT_PART_SHARE:
        return choose_target(part_ids, rng)
    whole = choose_target(part_ids, rng, whole=True)
    values, sizes = np.unique(part_ids[whole], return_counts=True)
    large = values[sizes >= MIN_TARGET_PX]
    return whole if len(values) == 1 or not len(large) else whole & (part_ids != rng.choice(large))


def literal_mask(points: np.ndarray, labels: np.ndarray, part_ids: np.ndarray) -> np.ndarray:
    """Return the mask for which a prompt asks if its points are taken at their word, bool [S, S].

    A positive point asks for the part of an object, or for the background, that it lies on; two of
    them on different parts of one object ask for the whole object. A negative point removes the
    part, or the background, that it lies on. Of a part with both a positive and a negative point,
    and of such a background, each pixel is decided by the nearest point. A positive point at most
    MARGIN_PX off an object counts as lying on it.

    Args:
        points: float [P, 2].
        labels: int [P], 1 foreground, 0 background, -1 padding.
        part_ids: uint8 [S, S], as `part_id_map` returns it.
    """
    side = len(part_ids)
    points, labels = points[labels >= 0], labels[labels >= 0]
    columns, rows = points.round().astype(int).clip(0, side - 1).T
    ids = _without_small_parts(part_ids)
    distance, nearest_object = distance_transform_edt(ids == 0, return_indices=True)
    regions = ids[rows, columns]  # [P], 0 for the background
    beside = (labels == 1) & (distance[rows, columns] <= MARGIN_PX)
    regions[beside] = ids[tuple(nearest_object[:, rows[beside], columns[beside]])]
    objects = (regions.astype(int) + 15) // 16
    mask = np.zeros(ids.shape, bool)
    for region in np.unique(regions[labels == 1]):
        mask |= ids == region
    object_ids = (ids.astype(int) + 15) // 16
    bays = []
    for thing in np.unique(objects[(labels == 1) & (objects > 0)]):
        whole = object_ids == thing
        parts_asked = np.unique(regions[(labels == 1) & (objects == thing)])
        if len(parts_asked) > 1:
            mask |= whole
        if len(parts_asked) > 1 or len(np.unique(ids[whole])) == 1:
            bays += bays_of(whole, ids == 0)
    for region in np.unique(regions[labels == 0]):
        inside = ids == region
        here = regions == region
        spots = np.argwhere(inside)[:, None, ::-1]
        nearest = ((spots - points[here]) ** 2).sum(-1).argmin(1)
        mask[inside] &= labels[here][nearest] == 1
    for bay in bays:
        if not (bay[rows, columns] & (labels == 0)).any():
            mask |= bay
    return mask


def bays_of(whole: np.ndarray, background: np.ndarray) -> list[np.ndarray]:
    """Return the bays of an object: large connected pieces of background in its convex hull.

    Args:
        whole: the object's mask, bool [S, S].
        background: the pixels of no object, bool [S, S].

    Returns:
        A mask, bool [S, S], for each piece of at least BAY_SHARE of the object's area.
    """
    spots = np.argwhere(whole)[:, ::-1]
    hull = Image.new("1", whole.shape[::-1])
    outline = spots[ConvexHull(spots).vertices]
    ImageDraw.Draw(hull).polygon([(int(x), int(y)) for x, y in outline], fill=1)
    pieces, _ = label(np.asarray(hull) & background)
    sizes = np.bincount(pieces.ravel())
    return [pieces == n for n in range(1, len(sizes)) if sizes[n] >= BAY_SHARE * whole.sum()]


def _without_small_parts(part_ids: np.ndarray) -> np.ndarray:
    """Count the parts of fewer than MIN_TARGET_PX pixels to the largest part of their object."""
    ids = part_ids.copy()
    values, sizes = np.unique(part_ids[part_ids > 0], return_counts=True)
    for value in values[sizes < MIN_TARGET_PX]:
        of_object = (values + 15) // 16 == (value + 15) // 16
        ids[part_ids == value] = values[of_object][sizes[of_object].argmax()]
    return ids


def sample_prompt(
    target: np.ndarray,
    part_ids: np.ndarray,
    kind: str,
    num_points: int,
    noisy: bool,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a point prompt for a target.

    Args:
        target: the mask, bool [S, S].
        part_ids: uint8 [S, S], as `part_id_map` returns it.
        kind: "one" is a single positive point, which leaves open whether a part or the whole object
            is meant. "positives" has positive points only. "box" draws points uniformly in the
            slightly enlarged box of the target and labels them by the mask, as the training targets
            of the point generator are drawn (Section 3.2). "far" has positive points, and negative
            ones on other objects or anywhere outside of the target.
        num_points: the length of the result.
        noisy: whether to shift the points and to flip one label.
        rng: the source of random numbers.

    Returns:
        Points float [num_points, 2] and labels int [num_points], which are 1 for foreground, 0 for
        background and -1 for padding, as in SAM.
    """
    inside, outside = np.argwhere(target), np.argwhere(~target)
    if kind == "one":
        spots = _pick(inside, 1, rng)
    elif kind == "positives":
        spots = _pick(inside, int(rng.integers(1, num_points + 1)), rng)
    elif kind == "box":
        count = int(rng.integers(min(3, num_points), num_points + 1))
        spots = _in_box(inside, count, target.shape[0], rng)
        spots[0] = _pick(inside, 1, rng)[0]
    else:
        num_positives = int(rng.integers(1, max(1, num_points - 1) + 1))
        num_negatives = int(rng.integers(0, num_points - num_positives + 1))
        neighbours = np.argwhere((part_ids > 0) & ~target)
        negatives = [
            _pick(
                neighbours if len(neighbours) and rng.random() < 0.5 else outside,
                1,
                rng,
            )
            for _ in range(num_negatives)
        ]
        spots = np.concatenate([_pick(inside, num_positives, rng), *negatives])
    labels = target[spots[:, 0], spots[:, 1]].astype(np.int64)
    points = spots[:, ::-1] + rng.uniform(-0.5, 0.5, spots.shape)
    if noisy:
        points, labels = _spoil(points, labels, target.shape[0], rng)
    padding = num_points - len(points)
    points = np.pad(points, ((0, padding), (0, 0))).astype(np.float32)
    return points, np.pad(labels, (0, padding), constant_values=-1)


def _pick(spots: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `count` of the pixels, with replacement."""
    return spots[rng.integers(len(spots), size=count)]


def _in_box(inside: np.ndarray, count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `count` pixels (row, column) in the slightly enlarged box of the pixels `inside`."""
    low, high = inside.min(0), inside.max(0)
    margin = 0.1 * (high - low) + 1
    spots = rng.uniform(low - margin, high + margin, (count, 2))
    return spots.round().astype(int).clip(0, size - 1)


def _spoil(
    points: np.ndarray, labels: np.ndarray, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Shift the points by a few pixels, and flip one label if there are at least four points.

    The label is left as it was if no point would remain positive.
    """
    shifted = (points + rng.normal(0, 1.5, points.shape)).clip(0, size - 1)
    wrong = labels.copy()
    if len(labels) >= 4:
        flip = rng.integers(len(labels))
        wrong[flip] = 1 - wrong[flip]
    return shifted, wrong if wrong.any() else labels

"""Point prompts to train and to measure the tiny SAM, and the masks that they ask for.

The tiny SAM takes points at their word, as the real one does: a mask holds what the positive points
lie on, a part alone if they lie on a part alone, the background if they lie on the background, and
it leaves out what the negative points lie on. Points are (x, y) in pixels.
"""

import numpy as np

# The kinds of prompts and their shares in training (our choice).
KINDS = ("one", "positives", "box", "far", "stray", "background")
KIND_SHARES = (0.12, 0.20, 0.25, 0.18, 0.17, 0.08)
MAX_POINTS = 10
WHOLE_SHARE = 0.7
MIN_TARGET_PX = 20
STRAY_SHARE = 0.3  # the chance of each point of a "stray" prompt to lie anywhere
_JITTER = 0.7  # the standard deviation of the places of points, in pixels

_BACKGROUND = 0


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
    labels = _objects(part_ids) if whole else part_ids
    values, sizes = np.unique(labels[labels > _BACKGROUND], return_counts=True)
    large = values[sizes >= MIN_TARGET_PX]
    return labels == (rng.choice(large) if len(large) else values[sizes.argmax()])


def sample_prompt(
    target: np.ndarray,
    part_ids: np.ndarray,
    kind: str,
    num_points: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a point prompt about a target; what it asks for is told by `asked_for`.

    Args:
        target: the mask, bool [S, S].
        part_ids: uint8 [S, S], as `part_id_map` returns it.
        kind: "one" is a single positive point, which leaves open whether a part or the whole object
            is meant. "positives" has positive points only. "box" draws points uniformly in the
            slightly enlarged box of the target and labels them by the mask, as the training targets
            of the point generator are drawn (Section 3.2). "far" has positive points, and negative
            ones on other objects or anywhere outside of the target. "stray" is "box" with some
            points moved anywhere in the picture, whose labels are drawn at random. "background" has
            positive points on the background, and negative ones on objects.
        num_points: the length of the result.
        rng: the source of random numbers.

    Returns:
        Points float [num_points, 2] and labels int [num_points], which are 1 for foreground, 0 for
        background and -1 for padding, as in SAM.
    """
    size = len(target)
    inside, outside = np.argwhere(target), np.argwhere(~target)
    if kind == "one":
        spots = _pick(inside, 1, rng)
    elif kind == "positives":
        spots = _pick(inside, int(rng.integers(1, num_points + 1)), rng)
    elif kind in ("box", "stray"):
        count = int(rng.integers(min(3, num_points), num_points + 1))
        spots = _in_box(inside, count, size, rng)
        spots[0] = _pick(inside, 1, rng)[0]
    elif kind == "far":
        num_positives = int(rng.integers(1, max(1, num_points - 1) + 1))
        num_negatives = int(rng.integers(0, num_points - num_positives + 1))
        neighbours = np.argwhere((part_ids > _BACKGROUND) & ~target)
        near = len(neighbours) > 0
        negatives = [
            _pick(neighbours if near and rng.random() < 0.5 else outside, 1, rng)
            for _ in range(num_negatives)
        ]
        spots = np.concatenate([_pick(inside, num_positives, rng), *negatives])
    else:
        num_positives = int(rng.integers(1, num_points + 1))
        num_negatives = int(rng.integers(0, num_points - num_positives + 1))
        ground, things = (np.argwhere(part_ids == _BACKGROUND), np.argwhere(part_ids > _BACKGROUND))
        spots = np.concatenate(
            [_pick(ground, num_positives, rng), _pick(things, num_negatives, rng)]
        )
        target = part_ids == _BACKGROUND
    labels = target[spots[:, 0], spots[:, 1]].astype(np.int64)
    if kind == "stray":
        moved = rng.random(len(spots)) < STRAY_SHARE
        moved[0] = False
        spots[moved] = rng.integers(size, size=(moved.sum(), 2))
        labels[moved] = rng.integers(2, size=moved.sum())
    points = spots[:, ::-1] + rng.uniform(-0.5, 0.5, spots.shape)
    padding = num_points - len(points)
    points = np.pad(points, ((0, padding), (0, 0))).astype(np.float32)
    return points, np.pad(labels, (0, padding), constant_values=-1)


def asked_for(part_ids: np.ndarray, points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the mask, bool [S, S], that a prompt of several points asks for.

    The mask holds every object on which a positive point lies. If all positive points of an object
    lie on one of its parts, it holds that part alone, unless the part has fewer than MIN_TARGET_PX
    pixels. A positive point on the background adds the background. A negative point takes away the
    part on which it lies, or the background. Where positive and negative points lie on the same
    part, or on the background, each pixel of it goes by the nearest point.

    Args:
        part_ids: uint8 [S, S], as `part_id_map` returns it.
        points: float [P, 2] in pixels.
        labels: int [P], 1 foreground, 0 background, -1 padding.
    """
    columns, rows = points[labels >= 0].round().astype(int).clip(0, len(part_ids) - 1).T
    positive = labels[labels >= 0] == 1
    part_of = part_ids[rows, columns]
    objects = _objects(part_ids)
    object_of = objects[rows, columns]
    mask = np.zeros(part_ids.shape, bool)
    for number in np.unique(object_of[positive]):
        parts = np.unique(part_of[positive & (object_of == number)])
        region = part_ids == parts[0]
        alone = number == _BACKGROUND or (len(parts) == 1 and region.sum() >= MIN_TARGET_PX)
        mask |= region if alone else objects == number
    for part in np.unique(part_of[~positive]):
        region = part_ids == part
        own = part_of == part
        if (own & positive).any():
            pixels = np.argwhere(region)
            places = np.stack([rows[own], columns[own]], 1)
            distance = ((pixels[:, None] - places) ** 2).sum(-1)
            region[tuple(pixels[positive[own][distance.argmin(1)]].T)] = False
        mask &= ~region
    return mask


def jittered(points: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Move points by a fraction of a pixel or more, inside a picture of `size` x `size`."""
    moved = points + rng.normal(0, _JITTER, points.shape)
    return moved.clip(0, size - 1).astype(np.float32)


def _objects(part_ids: np.ndarray) -> np.ndarray:
    """Return 1 + the number of the object at each pixel, and 0 on the background."""
    return (part_ids.astype(np.int16) + 15) // 16  # an id is 1 + 16 * object + part


def _pick(spots: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `count` of the pixels, with replacement."""
    return spots[rng.integers(len(spots), size=count)]


def _in_box(inside: np.ndarray, count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `count` pixels (row, column) in the slightly enlarged box of the pixels `inside`."""
    low, high = inside.min(0), inside.max(0)
    margin = 0.1 * (high - low) + 1
    spots = rng.uniform(low - margin, high + margin, (count, 2))
    return spots.round().astype(int).clip(0, size - 1)

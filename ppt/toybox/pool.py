"""The pictures that the two backbones are pretrained on, drawn once and kept in memory.

One third are object-centric pictures, one third are scenes, and one third are mosaics of four
object-centric pictures, similar to the compositions in the paper's D_ref. The backbones are thus
trained on every kind of picture that the method uses.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ppt.toybox.expressions import Caption
from ppt.toybox.shapes import CLASS_NAMES, COLOUR_NAMES
from ppt.toybox.world import IMAGE_SIZE, Picture, SceneObject, captions, object_centric, scene

ANY = -1  # in `nouns`: any class or any colour
NONE = -2  # padding, where there is no further object or noun
MAX_OBJECTS = 5
MAX_NOUNS = 3
CAPTIONS_PER_PICTURE = 4


@dataclass
class Pool:
    """N pictures with their captions.

    The letters stand for S = 96, O = MAX_OBJECTS, C = CAPTIONS_PER_PICTURE and W = MAX_NOUNS.

    Attributes:
        images: uint8 [N, S, S, 3].
        part_ids: uint8 [N, S, S], 0 for the background, otherwise 1 + 16 * object + part.
        objects: int [N, O, 2], the numbers of each object's class and colour, padded with NONE.
        texts: N lists of C captions.
        nouns: int [N, C, W, 2], the numbers of each noun's class and colour, which may be ANY;
            padded with NONE.
        placed: bool [N, C], whether the caption also says where an object is.
        is_mosaic: bool [N]. The objects 0 to 3 of a mosaic lie in its quarters, row by row.
    """

    images: np.ndarray
    part_ids: np.ndarray
    objects: np.ndarray
    texts: list[list[str]]
    nouns: np.ndarray
    placed: np.ndarray
    is_mosaic: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def build_pool(seed: int, size: int) -> Pool:
    """Draw `size` pictures of the three kinds in turn."""
    makers = (object_centric, scene, mosaic)
    pool = Pool(
        images=np.zeros((size, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8),
        part_ids=np.zeros((size, IMAGE_SIZE, IMAGE_SIZE), np.uint8),
        objects=np.full((size, MAX_OBJECTS, 2), NONE),
        texts=[],
        nouns=np.full((size, CAPTIONS_PER_PICTURE, MAX_NOUNS, 2), NONE),
        placed=np.zeros((size, CAPTIONS_PER_PICTURE), bool),
        is_mosaic=np.arange(size) % len(makers) == makers.index(mosaic),
    )
    for i in range(size):
        picture = makers[i % len(makers)](seed, i)
        pool.images[i], pool.part_ids[i] = picture.image, part_id_map(picture)
        for j, thing in enumerate(picture.objects):
            pool.objects[i, j] = (
                CLASS_NAMES.index(thing.class_name),
                COLOUR_NAMES.index(thing.colour),
            )
        described = captions(seed, i, picture, CAPTIONS_PER_PICTURE)
        pool.texts.append([caption.text for caption in described])
        for j, caption in enumerate(described):
            pool.placed[i, j] = caption.placed
            pool.nouns[i, j, : len(caption.nouns)] = _noun_numbers(caption)
    return pool


def part_id_map(picture: Picture) -> np.ndarray:
    """Return uint8 [S, S], which is 0 on the background and 1 + 16 * object + part elsewhere."""
    ids = np.zeros(picture.image.shape[:2], np.uint8)
    for i, thing in enumerate(picture.objects):
        for j, part in enumerate(thing.parts.values()):
            ids[part] = 1 + 16 * i + j
    return ids


def mosaic(seed: int, index: int) -> Picture:
    """Compose a picture of four object-centric ones at half their size, without expressions."""
    half = IMAGE_SIZE // 2
    image = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    things: list[SceneObject] = []
    for quarter in range(4):
        piece = object_centric(seed, 4 * index + quarter)
        x, y = half * (quarter % 2), half * (quarter // 2)
        small = Image.fromarray(piece.image).resize((half, half), Image.Resampling.BOX)
        image[y : y + half, x : x + half] = np.asarray(small)
        thing = piece.objects[0]
        parts = {}
        for name, part in thing.parts.items():
            moved = np.zeros((IMAGE_SIZE, IMAGE_SIZE), bool)
            moved[y : y + half, x : x + half] = part[1::2, 1::2]
            parts[name] = moved
        x0, y0, x1, y1 = (edge // 2 for edge in thing.box)
        box = (x + x0, y + y0, x + x1, y + y1)
        mask = np.any(list(parts.values()), axis=0)
        things.append(SceneObject(thing.class_name, thing.colour, box, mask, parts))
    return Picture(image, things, [])


def _noun_numbers(caption: Caption) -> list[tuple[int, int]]:
    """Return the numbers of each noun's class and colour."""
    return [
        (
            CLASS_NAMES.index(noun.class_name) if noun.class_name else ANY,
            COLOUR_NAMES.index(noun.colour) if noun.colour else ANY,
        )
        for noun in caption.nouns
    ]

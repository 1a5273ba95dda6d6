"""Where things are to be had: names of files, sizes, checksums. Only what is certain.

Checksums are SHA-256. OpenAI's stand in open_clip's own links; SAM's file names carry the first
digits of their MD5.
"""

from __future__ import annotations

from dataclasses import dataclass

import open_clip

from ppt.config import (
    ImageFolderData,
    MiniImageNetData,
    ReferData,
    TableData,
)
from ppt.data.expected import EXPECTED_REFS
from ppt.data.refer import find_images
from ppt.data.sources import AnyData


@dataclass(frozen=True)
class Content:
    """How much a data set holds, or will hold."""

    pictures: int
    expressions: int
    num_bytes: int  # of the pictures


@dataclass(frozen=True)
class PublishedFile:
    """A checkpoint as its authors publish it."""

    name: str  # and its size
    sha256: str
    source: str  # who has it


_SAM = {
    "vit_b": (
        "sam_vit_b_01ec64.pth, 375 MB",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    "vit_l": (
        "sam_vit_l_0b3195.pth, 1.2 GB",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    "vit_h": (
        "sam_vit_h_4b8939.pth, 2.6 GB",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
}


_CLIP_SIZES = {
    "ViT-B-32.pt": "353 MB",
    "ViT-B-16.pt": "350 MB",
    "ViT-L-14.pt": "932 MB",
    "ViT-L-14-336px.pt": "933 MB",
}
"""Of the tensors as OpenAI stores them, in half precision in part."""


def sam_file(name: str) -> PublishedFile | None:
    """The checkpoint of a SAM by its name in segment-anything; None for the toybox."""
    if name not in _SAM:
        return None
    return PublishedFile(*_SAM[name], "linked in segment-anything's README")


def clip_file(name: str) -> PublishedFile | None:
    """OpenAI's checkpoint for a name of open_clip; None where OpenAI published none."""
    url = open_clip.get_pretrained_cfg(name, "openai").get("url", "")
    if not url:
        return None
    *_, sha256, file = url.split("/")  # .../clip/<sha256>/ViT-B-16.pt
    if not name.endswith("-quickgelu"):
        return None  # the same file under the wrong activation
    size = f", about {_CLIP_SIZES[file]}" if file in _CLIP_SIZES else ""
    return PublishedFile(file + size, sha256, "linked in OpenAI's CLIP and in open_clip")


# ---------------------------------------------------------------- data sets

SIZES = {
    ("refcoco", "unc"): {
        "train": (16994, 120624),
        "val": (1500, 10834),
        "testA": (750, 5657),
        "testB": (750, 5095),
    },
    ("refcoco+", "unc"): {
        "train": (16992, 120191),
        "val": (1500, 10758),
        "testA": (750, 5726),
        "testB": (750, 4889),
    },
    ("refcocog", "umd"): {"train": (21899, 80512), "val": (1300, 4896), "test": (2600, 9602)},
    ("refcocog", "google"): {"train": (24698, 85474), "val": (4650, 9536)},
}
"""(pictures, sentences) of every split: what a data set will take before it is there."""

COCO = "train2014.zip of COCO (82,783 pictures, 13 GB)"
COCO_BYTES_PER_PICTURE = 13e9 / 82783
MAPPING = "LOC_synset_mapping.txt of ImageNet's Kaggle challenge"


def where_refer(config: ReferData) -> str:
    """Both parts of a data set whose refs are not there; the index alone if pictures are."""
    images = find_images(config, ())
    if images and any(images.glob("*.jpg")):
        return where_index(config)
    return f"{where_index(config)}; {where_pictures(config)}"


def where_index(config: ReferData) -> str:
    """How the refs of a data set come to lie where they are looked for."""
    folder = config.root / config.dataset
    if (config.dataset, config.split_by) not in EXPECTED_REFS:
        return (
            f"put refs({config.split_by}).p and instances.json into {folder}, or set dataset and "
            f"split_by to one of {', '.join(' by '.join(known) for known in EXPECTED_REFS)}"
        )
    return (
        f"unpack {config.dataset}.zip (linked in the README of REFER, by Licheng Yu) into "
        f"{config.root}, so that {folder} holds refs({config.split_by}).p and instances.json; or "
        "set root"
    )


def where_pictures(config: ReferData) -> str:
    return f"unpack {COCO} into {config.root / 'images'}, or link the folder train2014 there"


def published_content(config: AnyData) -> Content | None:
    """What a data set will hold once it is there; None where nobody can know."""
    match config:
        case ReferData():
            splits = (config.split,) if isinstance(config.split, str) else config.split
            sizes = SIZES.get((config.dataset, config.split_by), {})
            if not all(split in sizes for split in splits):
                return None
            pictures, sentences = (sum(sizes[split][i] for split in splits) for i in (0, 1))
            return Content(pictures, sentences, round(pictures * COCO_BYTES_PER_PICTURE))
        case MiniImageNetData() | ImageFolderData() if config.max_pictures:
            return Content(config.max_pictures, config.max_pictures, 0)
    return None


def where_source(config: AnyData) -> str:
    """What to get for a data set that cannot be opened."""
    match config:
        case ReferData():
            return where_refer(config)
        case TableData():
            return "give the path of a CSV or JSON Lines file as docs/data.md describes it"
        case MiniImageNetData():
            return (
                f"put train.csv, val.csv, test.csv of mini-ImageNet (Ravi and Larochelle's splits),"
                f" its 60,000 pictures as images/ and {MAPPING} into {config.root}; or set root"
            )
        case ImageFolderData():
            return (
                "set root to ImageNet's folder (ILSVRC2012_img_train.tar unpacked to "
                f"train/<wnid>/*.JPEG, with {MAPPING}) or to one with a folder for each class"
            )
    return ""

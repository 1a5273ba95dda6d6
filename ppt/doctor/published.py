"""Published facts on checkpoints and data sets: file names, sizes, checksums and sources.

Checksums are SHA-256. Those of OpenAI's files are part of the links in open_clip. The names of
SAM's files end in the first digits of their MD5. MobileSAM publishes none.
"""

from __future__ import annotations

from dataclasses import dataclass

import open_clip

from ppt.config import DataFormat
from ppt.data.expected import EXPECTED_REFS
from ppt.data.mini_imagenet import MiniImageNetData
from ppt.data.object_centric import ImageFolderData
from ppt.data.refer import ReferData, find_images
from ppt.data.table import TableData


@dataclass(frozen=True)
class Content:
    """The content of a data set in numbers, as it is now or will be once it is complete."""

    pictures: int
    expressions: int
    num_bytes: int  # bytes of all picture files


@dataclass(frozen=True)
class PublishedFile:
    """A checkpoint as its authors publish it."""

    name: str  # the file's name and its size, for people
    sha256: str | None  # None if its authors publish none
    source: str  # where the link is found


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
"""Sizes of OpenAI's files, whose tensors are partly in half precision."""


def sam_file(name: str) -> PublishedFile | None:
    """Return the published checkpoint of a segmenter by `model.sam.name`; None for the toybox."""
    if name == "mobile_sam":
        return PublishedFile(
            "mobile_sam.pt, 40.7 MB", None, "https://github.com/ChaoningZhang/MobileSAM"
        )
    if name not in _SAM:
        return None
    told, sha256 = _SAM[name]
    file = told.partition(",")[0]
    return PublishedFile(told, sha256, f"https://dl.fbaipublicfiles.com/segment_anything/{file}")


def clip_file(name: str) -> PublishedFile | None:
    """Return OpenAI's checkpoint for a name of open_clip; None if OpenAI published none.

    A name without "-quickgelu" has none, because OpenAI's weights need that activation.
    """
    url = open_clip.get_pretrained_cfg(name, "openai").get("url", "")
    if not url:
        return None
    if not name.endswith("-quickgelu"):
        return None
    *_, sha256, file = url.split("/")  # .../clip/<sha256>/ViT-B-16.pt
    size = f", about {_CLIP_SIZES[file]}" if file in _CLIP_SIZES else ""
    return PublishedFile(file + size, sha256, url)


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
"""(pictures, sentences) of each published split, to tell the cost of a data set that is missing."""

COCO = (
    "train2014.zip of COCO (82,783 pictures, 13 GB; "
    "http://images.cocodataset.org/zips/train2014.zip)"
)
COCO_BYTES_PER_PICTURE = 13e9 / 82783
MAPPING = (
    "LOC_synset_mapping.txt of ImageNet's Kaggle challenge "
    "(https://www.kaggle.com/c/imagenet-object-localization-challenge)"
)


def where_refer(config: ReferData) -> str:
    """Tell what to get if the index is missing, and the pictures if they are missing too."""
    images = find_images(config, ())
    if images and any(images.glob("*.jpg")):
        return where_index(config)
    return f"{where_index(config)}; {where_pictures(config)}"


def where_index(config: ReferData) -> str:
    """Tell what to do so that the index of a REFER data set is found."""
    folder = config.root / config.dataset
    if (config.dataset, config.split_by) not in EXPECTED_REFS:
        return (
            f"put refs({config.split_by}).p and instances.json into {folder}, or set dataset and "
            f"split_by to one of {', '.join(' by '.join(known) for known in EXPECTED_REFS)}"
        )
    return (
        f"unpack {config.dataset}.zip (linked in https://github.com/lichengunc/refer) into "
        f"{config.root}, so that {folder} holds refs({config.split_by}).p and instances.json; or "
        "set root"
    )


def where_pictures(config: ReferData) -> str:
    """Tell what to do so that the pictures of a REFER data set are found."""
    return f"unpack {COCO} into {config.root / 'images'}, or link the folder train2014 there"


def published_content(config: DataFormat) -> Content | None:
    """Return how much a data set will hold once it is there; None if that is not known."""
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


def where_source(config: DataFormat) -> str:
    """Tell what to get if a data set cannot be opened; empty for a format without advice."""
    match config:
        case ReferData():
            return where_refer(config)
        case TableData():
            return "give the path of a CSV or JSON Lines file as docs/data.md describes it"
        case MiniImageNetData():
            return (
                f"put train.csv, val.csv, test.csv of mini-ImageNet (Ravi and Larochelle's splits, "
                "https://github.com/twitter-research/meta-learning-lstm),"
                f" its 60,000 pictures as images/ and {MAPPING} into {config.root}; or set root"
            )
        case ImageFolderData():
            return (
                "set root to ImageNet's folder (ILSVRC2012_img_train.tar of "
                "https://www.image-net.org/download.php, unpacked to "
                f"train/<wnid>/*.JPEG, with {MAPPING}) or to one with a folder for each class"
            )
    return ""

"""Published facts on data sets: their sizes, and what to do so that they are found."""

from __future__ import annotations

from dataclasses import dataclass

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
    "http://images.cocodataset.org/zips/train2014.zip; `ppt download coco_train2014`)"
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
        f"run `ppt download {config.dataset}`, which makes data/refer, or unpack "
        f"{config.dataset}.zip (linked in https://github.com/lichengunc/refer) into {config.root}, "
        f"so that {folder} holds refs({config.split_by}).p and instances.json; or "
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

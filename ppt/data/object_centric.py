"""Object-centric pictures in folders: ImageNet's layout, or one folder for each class.

    <root>/train/<wnid>/*.JPEG with <root>/LOC_synset_mapping.txt          ImageNet
    <root>/ILSVRC/Data/CLS-LOC/train/<wnid>/*.JPEG and the same mapping    ImageNet from Kaggle
    <root>/<class name>/*.jpg                                              one's own pictures

The key of a picture is its path below the folder that holds the classes. Files and folders whose
name begins with a dot are hidden and left alone.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from pydantic import Field

from ppt.config import DataFormat
from ppt.config.data_formats import Seed
from ppt.data.source import RawMask, RawPicture, Rejected, fingerprint_of, is_unicode
from ppt.images.pictures import UnreadablePicture, check_picture, num_bytes, printable, read_file

SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff"}

_MAPPING = "LOC_synset_mapping.txt"
_WNID = re.compile(r"n\d{8}")


class ImageFolderData(DataFormat):
    """Object-centric pictures in folders: ImageNet's layout or one folder for each class."""

    # The folder that holds the folders of the classes, or ImageNet's own root.
    root: Path
    # How many pictures are chosen at random; null takes all. The paper takes 2,836.
    max_pictures: int | None = Field(None, gt=0)
    # The seed of that choice.
    seed: Seed = 0

    def open(self) -> ImageFolderSource:
        return ImageFolderSource(self)


class ClassPictures:
    """A `Source` of pictures in a folder, each with the name of its class and without masks."""

    def __init__(
        self, folder: Path, classes: Mapping[str, str], max_pictures: int | None, seed: int
    ) -> None:
        """Choose the pictures.

        Args:
            folder: the folder with the pictures.
            classes: key -> class name, where a key is the path of a picture below `folder`.
            max_pictures: how many pictures are chosen at random; None takes all.
            seed: the seed of that choice.
        """
        keys = sorted(classes)
        self._wanted = max_pictures
        if max_pictures is not None and max_pictures < len(keys):
            rng = np.random.default_rng(seed)
            chosen = rng.choice(len(keys), max_pictures, replace=False)
            keys = [keys[i] for i in sorted(chosen.tolist())]
        self._folder = folder
        self._classes = {key: classes[key] for key in keys}

    @functools.cached_property
    def fingerprint(self) -> str:
        """The hash of the pictures' keys, numbers of bytes and class names."""
        rows = [[k, num_bytes(self._folder / k), name] for k, name in self._classes.items()]
        return fingerprint_of(["imagenet", *rows])

    @property
    def ground_truth_fingerprint(self) -> str:
        """The fingerprint of the samples, because there is no ground truth."""
        return self.fingerprint

    @property
    def note(self) -> str | None:
        """A remark where there are fewer pictures than `max_pictures`."""
        if self._wanted is None or self._wanted <= len(self._classes):
            return None
        return f"max_pictures is {self._wanted}, but only {len(self._classes)} are there"

    def keys(self) -> list[str]:
        return list(self._classes)

    def num_expressions(self, key: str) -> int:
        return 1

    def file_size(self, key: str) -> int | None:
        return num_bytes(self._folder / key)

    def read(self, key: str) -> RawPicture:
        image = read_file(self._folder, key)
        check_picture(image)
        return RawPicture(image, self._classes[key])

    def read_ground_truth(self, key: str) -> tuple[list[RawMask], list[Rejected]]:
        """Return no mask, because these data sets have none."""
        return [], []


class ImageFolderSource(ClassPictures):
    """Pictures in a folder for each class, whose name is a wnid or the name of the class."""

    def __init__(self, config: ImageFolderData) -> None:
        """List the files. Raises as `DataFormat.open`."""
        root = config.root
        if not root.is_dir():
            raise FileNotFoundError(f"object-centric root {str(root)!r} is no folder: set `root`")
        folder = _folder_of_classes(root)
        pictures = [
            (inner.name, path.name)
            for inner in _visible(folder)
            if inner.is_dir()
            for path in _visible(inner)
            if path.suffix.lower() in SUFFIXES
        ]
        if not pictures:
            raise ValueError(
                f"object-centric root {str(root)!r} has no picture in a folder for its class"
            )
        names = class_names(root, {name for name, _ in pictures})
        classes = {printable(f"{inner}/{name}"): names[inner] for inner, name in pictures}
        self._not_utf8 = {
            printable(path) for path in map("/".join, pictures) if not is_unicode(path)
        }
        super().__init__(folder, classes, config.max_pictures, config.seed)

    def read(self, key: str) -> RawPicture:
        if key in self._not_utf8:
            raise UnreadablePicture(f"the path of picture {key} is not UTF-8: rename it")
        return super().read(key)


def _visible(folder: Path) -> Iterator[Path]:
    """List a folder without what is hidden, for example .ipynb_checkpoints or ._a.jpg."""
    return (path for path in folder.iterdir() if not path.name.startswith("."))


def _folder_of_classes(root: Path) -> Path:
    """Return the folder with the folders of the classes, which may be `root` itself."""
    for inner in ("train", "ILSVRC/Data/CLS-LOC/train"):
        folder = root / inner
        # A class of one's own may be called "train"; its folder has pictures and no folders.
        if folder.is_dir() and any(path.is_dir() for path in _visible(folder)):
            return folder
    return root


def class_names(root: Path, labels: Iterable[str]) -> dict[str, str]:
    """Return the class name of each label.

    A wnid is looked up in <root>/LOC_synset_mapping.txt and has its first synonym for a name. In
    any other label, underscores become spaces. Names are in Unicode's form NFC. Raises
    `ValueError` if a wnid has no name.
    """
    mapping = root / _MAPPING
    known = _read_mapping(mapping) if mapping.is_file() else {}
    names = {label: known.get(label) or label.replace("_", " ").strip() for label in labels}
    names = {label: unicodedata.normalize("NFC", name) for label, name in names.items()}
    if nameless := sorted(label for label in names if _WNID.fullmatch(names[label])):
        raise ValueError(
            f"ImageNet classes without a name: {len(nameless)}, {nameless[0]!r} is one; put "
            f"ImageNet's {_MAPPING} at {str(mapping)!r}, lines like 'n01440764 tench, Tinca tinca'"
        )
    return names


def _read_mapping(path: Path) -> dict[str, str]:
    """Read LOC_synset_mapping.txt: "n01440764 tench, Tinca tinca" gives {"n01440764": "tench"}."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8: {error}") from None
    names = {}
    for number, line in enumerate(text.splitlines(), 1):
        wnid, _, synonyms = line.strip().partition(" ")
        name = synonyms.split(",")[0].strip()
        if wnid and not name:
            raise ValueError(f"{str(path)!r} line {number} gives {wnid!r} no name")
        if wnid:
            names[wnid] = name
    return names

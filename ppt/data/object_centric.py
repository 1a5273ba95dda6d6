"""Object-centric pictures in folders: ImageNet's layout, or one folder for each class.

    <root>/train/<wnid>/*.JPEG with <root>/LOC_synset_mapping.txt     ImageNet as Kaggle packs it
    <root>/<class name>/*.jpg                                         one's own

A picture's key is its path below the folder of classes. Section 4.1 takes 2,836 pictures of
ImageNet's training set: `max_pictures`.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from ppt.config import ImageFolderData
from ppt.data.pictures import UnreadablePicture, check_picture
from ppt.data.sources import RawMask, RawPicture, Rejected, fingerprint_of

SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff"}

_MAPPING = "LOC_synset_mapping.txt"


class ImageFolderSource:
    """Pictures with a class name. Opening it lists the files and reads none."""

    def __init__(self, config: ImageFolderData) -> None:
        """Raises `FileNotFoundError` or `ValueError` that names the field and the path."""
        root = config.root
        if not root.is_dir():
            raise FileNotFoundError(f"object-centric root {str(root)!r} is no folder: set `root`")
        mapping = root / _MAPPING
        self._names = _read_mapping(mapping) if mapping.is_file() else {}
        self._folder = root / "train" if (root / "train").is_dir() else root
        keys = sorted(
            f"{folder.name}/{path.name}"
            for folder in self._folder.iterdir()
            if folder.is_dir()
            for path in folder.iterdir()
            if path.suffix.lower() in SUFFIXES
        )
        if not keys:
            raise ValueError(
                f"object-centric root {str(root)!r} has no picture in a folder for its class"
            )
        if config.max_pictures is not None and config.max_pictures < len(keys):
            rng = np.random.default_rng(config.seed)
            chosen = rng.choice(len(keys), config.max_pictures, replace=False)
            keys = [keys[i] for i in sorted(chosen.tolist())]
        self._keys = keys

    @functools.cached_property
    def fingerprint(self) -> str:
        """Pictures by key, number of bytes and class name."""
        sizes = {key: (self._folder / key).stat().st_size for key in self._keys}
        rows = [[key, sizes[key], self.class_name(key)] for key in self._keys]
        return fingerprint_of(["imagenet", *rows])

    @property
    def ground_truth_fingerprint(self) -> str:
        """There is no ground truth: that of the samples."""
        return self.fingerprint

    def keys(self) -> list[str]:
        return list(self._keys)

    def num_expressions(self, key: str) -> int:
        return 1

    def class_name(self, key: str) -> str:
        """The first synonym of the folder's synset, or the folder's name with spaces."""
        folder = key.partition("/")[0]
        return self._names.get(folder) or folder.replace("_", " ").strip()

    def read(self, key: str) -> RawPicture:
        try:
            image = (self._folder / key).read_bytes()
        except FileNotFoundError:
            raise UnreadablePicture(f"picture {key} is missing from {self._folder}") from None
        except OSError as error:
            raise UnreadablePicture(f"picture {key} cannot be read: {error}") from None
        check_picture(image)
        return RawPicture(image, self.class_name(key))

    def read_ground_truth(self, key: str) -> tuple[list[RawMask], list[Rejected]]:
        """Nobody drew masks on these pictures."""
        return [], []


def _read_mapping(path: Path) -> dict[str, str]:
    """LOC_synset_mapping.txt: "n01440764 tench, Tinca tinca" -> {"n01440764": "tench"}."""
    names = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        wnid, _, synonyms = line.strip().partition(" ")
        name = synonyms.split(",")[0].strip()
        if wnid and not name:
            raise ValueError(f"{str(path)!r} line {number} gives {wnid!r} no name")
        if wnid:
            names[wnid] = name
    return names

"""mini-ImageNet in Ravi and Larochelle's splits: the paper's object-centric pictures.

    <root>/train.csv, val.csv, test.csv    columns `filename` and `label`, a wnid; 64 + 16 + 20
                                           classes of 600 pictures
    <root>/images/*.jpg                    the pictures of all three
    <root>/LOC_synset_mapping.txt          ImageNet's own, for the names of the classes

A picture's key is its file name. Section 4.1: "we randomly select 2,836 images".
"""

from __future__ import annotations

import csv
from pathlib import Path

from ppt.config import MiniImageNetData
from ppt.data.object_centric import ClassPictures, class_names


class MiniImageNetSource(ClassPictures):
    """The pictures that one or several of the csv files list. Opening it reads these alone."""

    def __init__(self, config: MiniImageNetData) -> None:
        """Raises `FileNotFoundError` or `ValueError` that names the field and the path."""
        root = config.root
        folder = root / "images"
        if not folder.is_dir():
            raise FileNotFoundError(
                f"mini-ImageNet root {str(root)!r} has no folder `images`: set `root`"
            )
        splits = (config.split,) if isinstance(config.split, str) else config.split
        labels: dict[str, str] = {}
        for split in splits:
            labels |= _read_split(root, split)
        if not labels:
            raise ValueError(f"split {list(splits)} of {str(root)!r} lists no picture")
        names = class_names(root, set(labels.values()))
        classes = {key: names[label] for key, label in labels.items()}
        super().__init__(folder, classes, config.max_pictures, config.seed)


def _read_split(root: Path, split: str) -> dict[str, str]:
    """<split>.csv: file name -> label."""
    path = root / f"{split}.csv"
    if not path.is_file():
        found = sorted(p.stem for p in root.glob("*.csv"))
        raise FileNotFoundError(f"split {split!r}: no {str(path)!r} (there: {found})")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream, skipinitialspace=True)
            columns = rows.fieldnames or []
            if lacking := sorted({"filename", "label"} - set(columns)):
                raise ValueError(f"no column {lacking} (there: {list(columns)})")
            labels = {row["filename"]: row["label"] for row in rows}
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from None
    if "" in labels or not all(labels.values()):
        raise ValueError(f"{str(path)!r} has a row without filename or label")
    return labels

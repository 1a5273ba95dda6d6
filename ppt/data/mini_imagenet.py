"""mini-ImageNet in the splits by Ravi and Larochelle: the paper's object-centric pictures.

    <root>/train.csv, val.csv, test.csv    columns `filename` and `label`, which is a wnid; 64, 16
                                           and 20 classes of 600 pictures
    <root>/images/*.jpg                    the pictures of all three splits
    <root>/LOC_synset_mapping.txt          the file of ImageNet with the names of the classes

The key of a picture is its file name. The paper chooses 2,836 pictures at random (Section 4.1).
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from ppt.config import DataFormat
from ppt.config.data_formats import Seed
from ppt.data.object_centric import ClassPictures, class_names
from ppt.data.table_file import read_csv

COLUMNS = ("filename", "label")


class MiniImageNetData(DataFormat):
    """Object-centric pictures of mini-ImageNet in the splits by Ravi and Larochelle."""

    # The folder with train.csv, val.csv, test.csv and images/.
    root: Path
    # One split or a list of splits, whose pictures are taken together (our choice: all three).
    split: str | tuple[str, ...] = ("train", "val", "test")
    # How many pictures are chosen at random; null takes all. The paper takes 2,836.
    max_pictures: int | None = Field(None, gt=0)
    # The seed of that choice.
    seed: Seed = 0

    def open(self) -> MiniImageNetSource:
        return MiniImageNetSource(self)


class MiniImageNetSource(ClassPictures):
    """The pictures that are listed in the CSV files of the chosen splits."""

    def __init__(self, config: MiniImageNetData) -> None:
        """Read the CSV files and the mapping. Raises as `DataFormat.open`."""
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
    """Read <split>.csv as file name -> label."""
    path = root / f"{split}.csv"
    if not path.is_file():
        found = sorted(p.stem for p in root.glob("*.csv"))
        raise FileNotFoundError(f"split {split!r}: no {str(path)!r} (there: {found})")
    labels: dict[str, str] = {}
    for line, cells in read_csv(path, COLUMNS):
        told = f"{str(path)!r} has a row without filename or label: line {line}"
        if isinstance(cells, str):
            raise ValueError(f"{told} {cells}")
        if lacking := sorted(set(COLUMNS) - cells.keys()):
            raise ValueError(f"{str(path)!r} has no column {lacking} (there: {list(cells)})")
        name, label = (cells[column].strip() for column in COLUMNS)
        if not name or not label:
            raise ValueError(told)
        if labels.setdefault(name, label) != label:
            raise ValueError(f"{str(path)!r} gives {name!r} the labels {labels[name]} and {label}")
    return labels

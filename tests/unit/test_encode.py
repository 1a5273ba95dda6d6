"""The pipeline of encode: the same features in any bucket, and pictures decoded while nets work."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor

from ppt.images.pictures import UnreadablePicture
from ppt.steps import encode
from ppt.steps.encode import _encoded, _Pictures
from ppt.store.nodes import BucketOutput, Node, Store
from ppt.store.schema import SAMPLES

SHAPES = {"mean": (3,), "corner": (2, 2)}
NUM_PICTURES = (10, 5, 0)  # in each bucket


class Net:
    """Counts the pictures that are prepared for it."""

    def __init__(self) -> None:
        self.prepared = list[int]()  # the first pixel of each, which is its number
        self.more = threading.Condition()

    def preprocess(self, picture: np.ndarray) -> Tensor:
        with self.more:
            self.prepared.append(int(picture[0, 0, 0]))
            self.more.notify_all()
        return torch.from_numpy(picture.copy()).permute(2, 0, 1).float()

    def wait_for(self, numbers: set[int]) -> None:
        """Wait until some pictures are prepared."""
        with self.more:
            assert self.more.wait_for(lambda: numbers <= set(self.prepared), timeout=60)


def features_of(pixels: Tensor) -> dict[str, Tensor]:
    return {"mean": pixels.mean((2, 3)), "corner": pixels[:, 0, :2, :2].clone()}


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """Pictures 0 to 9 in one bucket, 10 to 14 in the next, and an empty bucket."""
    monkeypatch.setattr(encode, "BATCH_SIZE", 4)
    node = Store(str(tmp_path)).node("samples", {}, buckets=len(NUM_PICTURES))
    first = 0
    for bucket, number in enumerate(NUM_PICTURES):
        node.write_bucket(bucket, samples_of(range(first, first + number)))
        first += number
    yield node
    _Pictures.expected = _Pictures._begun = None


def samples_of(numbers: range) -> BucketOutput:
    rows = []
    for number in numbers:
        buffer = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        pixels[0, 0, 0] = number
        Image.fromarray(pixels).save(buffer, "PNG")
        row = {"picture": f"p{number}", "image": buffer.getvalue(), "height": 20, "width": 30}
        rows.append({**row, "class_name": None, "expressions": []})
    return BucketOutput({"data": pa.Table.from_pylist(rows, SAMPLES)})


def made(samples: Node, bucket: int, net: Net) -> pa.Table:
    pictures = _Pictures.of(samples, bucket, [net])
    return (
        _encoded(pictures, lambda pixels: features_of(pixels[0]), SHAPES).tables["data"].read_all()
    )


@pytest.mark.parametrize("bucket", range(len(NUM_PICTURES)))
def test_rows_are_those_of_the_pictures(samples: Node, bucket: int) -> None:
    table = made(samples, bucket, Net())
    assert table["picture"].to_pylist() == samples.read(bucket)["picture"].to_pylist()
    assert [len(part) for part in table.to_batches()] == [[4, 4, 2], [4, 1], []][bucket]
    for row, image in zip(
        table.to_pylist(), samples.read(bucket)["image"].to_pylist(), strict=True
    ):
        pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(image)))).permute(2, 0, 1)[None]
        for name, feature in features_of(pixels.float()).items():
            expected = feature.half().flatten().tolist()
            assert np.array(row[name]).flatten().tolist() == expected


def test_the_next_pictures_are_decoded_while_the_net_works(samples: Node) -> None:
    net, batches = Net(), list[list[int]]()

    def work(pixels: list[Tensor]) -> dict[str, Tensor]:
        batches.append(pixels[0][:, 0, 0, 0].int().tolist())
        following = {max(batches[-1]) + n for n in (1, 2, 3, 4)} & set(range(10))
        net.wait_for(following)
        assert len(net.prepared) == min(4 * len(batches) + 4, 10)  # and no more than these
        return features_of(pixels[0])

    list(_encoded(_Pictures.of(samples, 0, [net]), work, SHAPES).tables["data"])
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_the_next_bucket_begins_while_the_net_works(samples: Node) -> None:
    net = Net()
    _Pictures.expected = (samples, 1)

    def work(pixels: list[Tensor]) -> dict[str, Tensor]:
        if 9 in pixels[0][:, 0, 0, 0]:  # the last batch
            net.wait_for({10, 11, 12, 13})
        return features_of(pixels[0])

    list(_encoded(_Pictures.of(samples, 0, [net]), work, SHAPES).tables["data"])
    table = made(samples, 1, net)
    assert table.num_rows == 5
    assert sorted(net.prepared) == list(range(15))  # each picture once


def test_a_bucket_that_was_expected_in_vain(samples: Node) -> None:
    net = Net()
    _Pictures.expected = (samples, 1)
    made(samples, 2, net)
    table = made(samples, 0, net)
    assert table["picture"].to_pylist() == samples.read(0)["picture"].to_pylist()


def test_a_picture_that_cannot_be_read_is_told(samples: Node) -> None:
    rows = samples.read(0).to_pylist()
    rows[6]["image"] = b"no picture"
    table = pa.Table.from_pylist(rows, SAMPLES)
    broken = Store(samples.store.root).node("samples", {"broken": True}, buckets=1)
    broken.write_bucket(0, BucketOutput({"data": table}))
    with pytest.raises(UnreadablePicture):
        made(broken, 0, Net())

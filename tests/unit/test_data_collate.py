"""Arrow rows to batches: frames, padding, point targets, odd tables."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from segment_anything.utils.transforms import ResizeLongestSide
from torch.nn import functional as F

from ppt.batches.collate import _LowRes, collate
from ppt.images.masks import encode_rle, mask_to_box
from ppt.labels.points import sample_box_points
from ppt.store.arrays import tensor_field, to_tensors
from ppt.store.schema import CANDIDATE

WORDS = 6
EXPRESSION = pa.struct(
    [
        ("expression_id", pa.string()),
        ("text", pa.string()),
        ("source", pa.string()),
        ("word_features", pa.binary()),
        ("num_words", pa.int32()),
        ("candidates", pa.list_(CANDIDATE)),
    ]
)
FIELDS = [
    tensor_field("segmenter_coarse", (3, 2, 2)),
    tensor_field("segmenter_fine", (2, 4, 4)),
    tensor_field("visual_features_0", (4, 5)),
    tensor_field("visual_features_1", (4, 5)),
]
SETTINGS = {"num_points": 8, "low_res_size": 16, "image_size": 64}


def candidate(mask, score=1.0):
    return {
        "phrase": "dog",
        "mask": encode_rle(mask),
        "is_referent": score,
        "points": [0.5, 0.5],
        "point_labels": [1],
        "predicted_iou": 0.9,
    }


def expression(name, num_words, masks):
    words = np.full((num_words, WORDS), num_words, np.float16)
    return {
        "expression_id": name,
        "text": f"text {name}",
        "source": "h_ref",
        "word_features": words.tobytes(),
        "num_words": num_words,
        "candidates": [candidate(mask, float(i == 0)) for i, mask in enumerate(masks)],
    }


def table_of(rows):
    """rows: (picture, (height, width), expressions)."""
    rng = np.random.default_rng(0)
    arrays_ = [
        pa.array([name for name, _, _ in rows]),
        pa.array([size[0] for _, size, _ in rows], pa.int32()),
        pa.array([size[1] for _, size, _ in rows], pa.int32()),
        to_tensors(rng.normal(size=(len(rows), 3, 2, 2)).astype(np.float16)),
        to_tensors(rng.normal(size=(len(rows), 2, 4, 4)).astype(np.float16)),
        to_tensors(rng.normal(size=(len(rows), 4, 5)).astype(np.float16)),
        to_tensors(rng.normal(size=(len(rows), 4, 5)).astype(np.float16)),
        pa.array([expressions for _, _, expressions in rows], pa.list_(EXPRESSION)),
    ]
    schema = pa.schema(
        [
            pa.field("picture", pa.string()),
            pa.field("height", pa.int32()),
            pa.field("width", pa.int32()),
            *FIELDS,
            pa.field("expressions", pa.list_(EXPRESSION)),
        ]
    )
    return pa.Table.from_arrays(arrays_, schema=schema)


def blob(size, box):
    mask = np.zeros(size, bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


@pytest.fixture
def table():
    wide, tall = (40, 64), (128, 32)
    return table_of(
        [
            ("a", wide, [expression("a0", 3, [blob(wide, (8, 4, 24, 20))])]),
            (
                "b",
                tall,
                [
                    expression("b0", 5, [blob(tall, (0, 0, 32, 64)), blob(tall, (8, 64, 16, 96))]),
                    expression("b1", 2, [blob(tall, (0, 96, 32, 128))]),
                ],
            ),
        ]
    )


def collated(table, seed=0, **changes):
    return collate(table, rng=np.random.default_rng(seed), **{**SETTINGS, **changes})


def test_shapes_names_and_padding(table):
    batch = collated(table)
    assert batch.pictures == ["a", "b"] and batch.sizes.tolist() == [[40, 64], [128, 32]]
    assert batch.picture_index.tolist() == [0, 1, 1]
    assert batch.expression_ids == ["a0", "b0", "b1"]
    assert batch.texts == ["text a0", "text b0", "text b1"]
    assert [v.shape for v in batch.visual_features] == [(2, 4, 5)] * 2
    shapes = {name: feature.shape for name, feature in batch.segmenter_features.items()}
    assert shapes == {"coarse": (2, 3, 2, 2), "fine": (2, 2, 4, 4)}
    assert batch.word_features.shape == (3, 5, WORDS)
    assert batch.word_mask.sum(1).tolist() == [3, 5, 2]
    assert (batch.word_features[0, :3] == 3).all() and (batch.word_features[0, 3:] == 0).all()
    tensors = [*batch.segmenter_features.values(), *batch.visual_features, batch.word_features]
    assert all(t.dtype == torch.float32 for t in tensors)
    target = batch.targets[1]
    assert target.masks.shape == (2, 16, 16) and target.points.shape == (2, 8, 2)
    assert target.point_labels.shape == (2, 8) and target.is_referent.tolist() == [1, 0]


def test_features_are_the_rows_own(table):
    features = collated(table).segmenter_features
    for name, shape in (("coarse", (3, 2, 2)), ("fine", (2, 4, 4))):
        stored = np.array(table[f"segmenter_{name}"][1].as_py(), np.float16).reshape(shape)
        np.testing.assert_array_equal(features[name][1].numpy(), stored)


def test_masks_lie_in_the_padded_low_resolution_frame(table):
    batch = collated(table)
    # 40 x 64 fills 10 x 16 of 16 x 16: a pixel is 4 x 4 original ones.
    np.testing.assert_array_equal(batch.targets[0].masks[0], blob((16, 16), (2, 1, 6, 5)))
    # 128 x 32 fills 16 x 4: a pixel is 8 x 8.
    np.testing.assert_array_equal(batch.targets[1].masks[0], blob((16, 16), (0, 0, 4, 8)))
    np.testing.assert_array_equal(batch.targets[1].masks[1], blob((16, 16), (1, 8, 2, 12)))


def test_parts_of_tables_in_several_chunks(table):
    whole = collated(table)
    pieces = pa.concat_tables([table.slice(1, 1), table.slice(0, 1)])
    batch = collated(pieces)
    assert batch.pictures == ["b", "a"] and batch.expression_ids == ["b0", "b1", "a0"]
    assert batch.picture_index.tolist() == [0, 0, 1]
    for name, feature in batch.segmenter_features.items():
        torch.testing.assert_close(feature[0], whole.segmenter_features[name][1])
    torch.testing.assert_close(batch.word_features[2], whole.word_features[0])
    torch.testing.assert_close(batch.targets[2].masks, whole.targets[0].masks)


def test_points_are_drawn_anew_by_the_generator_alone(table):
    one, same, other = collated(table, 1), collated(table, 1), collated(table, 2)
    torch.testing.assert_close(one.targets[1].points, same.targets[1].points)
    assert not torch.equal(one.targets[1].points, other.targets[1].points)


def test_point_labels_say_what_is_under_the_point():
    rng = np.random.default_rng(0)
    masks = [rng.random((40, 64)) < 0.3 for _ in range(5)]
    batch = collated(table_of([("a", (40, 64), [expression("a0", 1, masks)])]), num_points=50)
    for mask, points, labels in zip(masks, *_points_of(batch), strict=True):
        columns, rows = (points * (64, 40)).astype(int).T
        np.testing.assert_array_equal(labels, mask[rows, columns])
        x0, y0, x1, y1 = mask_to_box(mask)
        assert (columns >= x0).all() and (columns < x1).all() and (rows >= y0).all()
        assert (rows < y1).all() and labels.any() and not labels.all()


def _points_of(batch):
    target = batch.targets[0]
    return target.points.double().numpy(), target.point_labels.numpy()


def test_one_point_is_always_positive():
    mask = np.zeros((60, 60), bool)
    mask[0, 0] = mask[59, 59] = True
    batch = collated(table_of([("a", (60, 60), [expression("a0", 1, [mask] * 20)])]))
    target = batch.targets[0]
    assert (target.point_labels.sum(1) >= 1).all()
    assert (target.masks.sum((1, 2)) >= 1).all()  # thinner than a pixel, but never lost
    points, labels = sample_box_points(mask, 4, np.random.default_rng(0))
    assert labels.any() and points.shape == (4, 2)


def test_empty_masks_are_left_out(table):
    empty, full = np.zeros((20, 30), bool), np.ones((20, 30), bool)
    rows = [("a", (20, 30), [expression("x", 2, [empty, full]), expression("y", 1, [empty])])]
    batch = collated(table_of(rows))
    assert [len(t.masks) for t in batch.targets] == [1, 0]
    assert batch.targets[0].is_referent.tolist() == [0]
    assert batch.targets[1].points.shape == (0, 8, 2)


def test_inference_needs_no_targets_and_no_generator(table):
    batch = collate(table, rng=None, with_targets=False, **SETTINGS)
    assert batch.targets is None and len(batch.texts) == 3
    with pytest.raises(ValueError, match="rng"):
        collate(table, rng=None, **SETTINGS)


def test_words_of_different_widths_are_refused(table):
    wrong = table.to_pylist()[0]["expressions"]
    wrong.append({**wrong[0], "word_features": b"\0" * 2 * (WORDS + 1), "num_words": 1})
    with pytest.raises(ValueError, match=r"different widths in one batch: \[6, 7\]"):
        collated(table_of([("a", (40, 64), wrong)]))


@given(
    arrays(bool, st.tuples(st.integers(2, 40), st.integers(2, 40))).filter(np.any),
    st.sampled_from([(8, 32), (16, 64), (12, 96)]),
)
@settings(max_examples=60, deadline=None)
def test_low_resolution_is_the_area_average(mask, sizes):
    low, image_size = sizes
    height, width = mask.shape
    scaled = ResizeLongestSide.get_preprocess_shape(height, width, image_size)
    # Independently: paint each of many samples of a pixel, then average.
    fine = 40
    at = (np.arange(low * fine) + 0.5) / fine * (image_size / low)
    rows, columns = at * height / scaled[0], at * width / scaled[1]
    painted = np.zeros((low * fine, low * fine))
    inside = np.ix_(rows < height, columns < width)
    painted[inside] = mask[
        np.ix_(rows[rows < height].astype(int), columns[columns < width].astype(int))
    ]
    average = F.avg_pool2d(torch.from_numpy(painted)[None], fine)[0].numpy()
    got = _LowRes(low, image_size, height, width)(mask, np.array(mask_to_box(mask)))
    clear = np.abs(average - 0.5) > 0.06
    if average.max() > 0.56:
        np.testing.assert_array_equal(got[clear], average[clear] > 0.5)
    assert got.any()

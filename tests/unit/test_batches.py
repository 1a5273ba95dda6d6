"""From stored tables to batches: frames, padding, point targets, odd tables; made ahead."""

import threading
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from segment_anything.utils.transforms import ResizeLongestSide
from stored_tables import WIDTH, blob, label, reader, stored
from torch.nn import functional as F

from ppt.batches.ahead import for_device, made_ahead
from ppt.batches.batch import Batch
from ppt.batches.gather import PictureRow, StageReader, gather_pictures
from ppt.batches.sampler import Plan
from ppt.batches.targets import LowRes, draw_points, target_table, unpack
from ppt.images.masks import mask_to_box
from ppt.store.arrays import from_tensors, ragged_field, to_ragged
from ppt.store.mapped import MappedTable
from ppt.store.schema import LABELS

WIDE, TALL = (40, 64), (128, 32)
ROWS = [  # a text has as many words as its number says
    label("a", WIDE, "3", [blob(WIDE, (8, 4, 24, 20))]),
    label("b", TALL, "5", [blob(TALL, (0, 0, 32, 64)), blob(TALL, (8, 64, 16, 96))]),
    label("b", TALL, "2", [blob(TALL, (0, 96, 32, 128))], source="h_sem"),
]


def read(folder, rows=ROWS, **changes) -> Batch:
    """The only batch of an epoch, with its pictures in the order of their rows."""
    (batch,) = reader(stored(folder, rows), batch_size=len(rows), **changes).batches(1, 0, 1)
    return batch


def test_shapes_names_and_padding(tmp_path):
    batch = read(tmp_path)
    assert batch.pictures == ["a", "b"] and batch.sizes.tolist() == [[40, 64], [128, 32]]
    assert batch.picture_index.tolist() == [0, 1, 1]
    assert batch.expression_ids == ["3", "5", "2"]
    assert batch.texts == ["text 3", "text 5", "text 2"]
    assert [v.shape for v in batch.visual_features] == [(2, 4, 5)] * 2
    shapes = {name: feature.shape for name, feature in batch.segmenter_features.items()}
    assert shapes == {"coarse": (2, 3, 2, 2), "fine": (2, 2, 4, 4)}
    assert batch.word_features.shape == (3, 5, WIDTH)
    assert batch.word_mask.sum(1).tolist() == [3, 5, 2]
    assert (batch.word_features[0, :3] == 3).all() and (batch.word_features[0, 3:] == 0).all()
    targets = batch.targets
    assert targets.expression.tolist() == [0, 1, 1, 2]
    assert targets.points.shape == (4, 8, 2) and targets.point_labels.shape == (4, 8)
    assert targets.is_referent.tolist() == [1, 1, 0, 1]


def test_a_batch_is_stored_small_and_computed_in_float32(tmp_path):
    batch = read(tmp_path)
    tensors = [*batch.segmenter_features.values(), *batch.visual_features, batch.word_features]
    assert all(t.dtype == torch.float16 for t in tensors)
    assert batch.targets.masks.shape == (4, 16, 2) and batch.targets.masks.dtype == torch.uint8
    there = batch.to("cpu")
    computed = [*there.segmenter_features.values(), *there.visual_features, there.word_features]
    assert all(t.dtype == torch.float32 for t in computed)
    assert there.targets.masks.shape == (4, 16, 16) and there.targets.masks.dtype == torch.float32
    assert all(torch.equal(a.float(), b) for a, b in zip(tensors, computed, strict=True))


def test_features_are_the_rows_own(tmp_path):
    table = stored(tmp_path, ROWS)
    rows = [PictureRow(table.features, table.words, 0, p, ["x"], ["text 3"]) for p in ("b", "a")]
    batch = gather_pictures(rows)
    assert batch.pictures == ["b", "a"] and batch.targets is None
    assert batch.picture_index.tolist() == [0, 1]
    columns = table.features.read(0)
    for name in ("coarse", "fine"):
        whole = from_tensors(columns[f"segmenter_{name}"])
        np.testing.assert_array_equal(batch.segmenter_features[name], whole[[1, 0]])
    np.testing.assert_array_equal(
        batch.visual_features[1], from_tensors(columns["visual_features_1"])[[1, 0]]
    )


def test_masks_lie_in_the_padded_low_resolution_frame(tmp_path):
    masks = read(tmp_path).to("cpu").targets.masks.numpy()
    # 40 x 64 fills 10 x 16 of 16 x 16: a pixel is 4 x 4 original ones.
    np.testing.assert_array_equal(masks[0], blob((16, 16), (2, 1, 6, 5)))
    # 128 x 32 fills 16 x 4: a pixel is 8 x 8.
    np.testing.assert_array_equal(masks[1], blob((16, 16), (0, 0, 4, 8)))
    np.testing.assert_array_equal(masks[2], blob((16, 16), (1, 8, 2, 12)))


def test_every_iteration_is_read_as_the_plan_says(tmp_path):
    """Over several buckets and iterations, and from any iteration on."""
    rows = [
        label(f"p{i}", WIDE, str(1 + (2 * i + j) % 5), [blob(WIDE, (i, j, i + 20, j + 20))])
        for i in range(9)
        for j in range(1 + i % 3)
    ]
    stage_reader = reader(stored(tmp_path, rows, num_buckets=3), batch_size=4)
    batches = list(stage_reader.batches(2, 0, 1))
    assert len(batches) == stage_reader.plan.num_iterations == 5
    for batch in batches:
        assert len(set(batch.pictures)) == len(batch.pictures) and len(batch.texts) == 4
        for n, text in enumerate(batch.texts):
            assert text == f"text {batch.expression_ids[n]}"
            assert batch.word_mask[n].sum() == int(text.split()[1])
        for g, expression in enumerate(batch.targets.expression.tolist()):
            i = int(batch.pictures[batch.picture_index[expression]][1:])
            x = batch.targets.points[g, :, 0] * WIDE[1]
            assert (x >= i).all() and (x < i + 20).all()
    some = list(stage_reader.batches(2, 0, 1, range(2, 4)))
    for whole, part in zip(batches[2:4], some, strict=True):
        assert whole.expression_ids == part.expression_ids
        assert torch.equal(whole.targets.points, part.targets.points)


def test_a_picture_is_read_once_in_each_iteration_that_uses_it(tmp_path, monkeypatch):
    """Counted where features are read; the sources share pictures, and the batch cuts them."""
    rows = [
        label(f"p{i}", WIDE, str(1 + (i + j) % 5), [blob(WIDE, (i, j, i + 20, j + 20))], source)
        for i in range(11)
        for j, source in enumerate(["h_sem", "h_ref", "h_ref", "h_sem"][: 1 + i % 4])
    ]
    table, read = stored(tmp_path, rows, num_buckets=3), Counter()
    row = MappedTable.row

    def counted(self, name, number):
        read[name] += 1
        return row(self, name, number)

    monkeypatch.setattr(MappedTable, "row", counted)
    plan = Plan([table], {"h_sem": 1.5, "h_ref": 2.0}, stage="s", seed=3, batch_size=7)
    stage_reader = StageReader(plan, (table,), 8)
    used = 0
    for rank in range(2):
        for batch in stage_reader.batches(1, rank, 2):
            used += len({batch.pictures[i] for i in batch.picture_index.tolist()})
    assert used > 11
    for name in ("segmenter_coarse", "segmenter_fine", "visual_features_0", "visual_features_1"):
        assert read[name] / used == 1.00
    assert "surgery_tokens" not in read


def test_points_are_drawn_anew_by_seed_and_iteration_alone(tmp_path):
    table = stored(tmp_path, ROWS)
    (one,), (same,), (other,), (later,) = (
        reader(table, seed).batches(epoch, 0, 1) for seed, epoch in ((1, 1), (1, 1), (2, 1), (1, 2))
    )
    assert torch.equal(one.targets.points, same.targets.points)
    for different in (other, later):
        assert not torch.equal(one.targets.points, different.targets.points)


@given(
    arrays(bool, (40, 64)).filter(np.any),
    st.sampled_from([(40, 64), (64, 40), (50, 50)]),
    st.integers(0, 9),
)
@settings(max_examples=30, deadline=None)
def test_point_labels_say_what_is_under_the_point(mask, size, seed):
    mask = mask[: size[0], : size[1]]
    mask = np.pad(mask, [(0, n - m) for n, m in zip(size, mask.shape, strict=True)])
    if not mask.any():
        return
    table = target_table(pa.Table.from_pylist([label("a", size, "1", [mask])], LABELS), 16, 64)
    packed, box = from_tensors(table["mask"]), from_tensors(table["box"])
    x0, y0, x1, y1 = mask_to_box(mask)
    np.testing.assert_allclose(box[0] * np.tile(size[::-1], 2), [x0, y0, x1, y1], rtol=1e-6)
    rng = np.random.default_rng(seed)
    points, labels = draw_points(packed, box, np.array([size]), 50, rng)
    low_res = unpack(torch.from_numpy(packed.copy())).numpy()[0]
    columns, rows = (points[0] * size[::-1] / max(size) * 16).astype(int).clip(0, 15).T
    assert (labels[0] == low_res[rows, columns])[1:].all() and labels.any()
    assert (points[0] >= box[0, :2] - 1e-6).all() and (points[0] <= box[0, 2:] + 1e-6).all()


def test_points_inside_and_outside_are_labelled_as_in_full_resolution():
    """Away from the outline, the low-resolution mask gives the labels of the mask itself."""
    y, x = np.mgrid[:480, :640]
    disc = (x - 300) ** 2 + (y - 200) ** 2 < 150**2
    labels = pa.Table.from_pylist([label("a", disc.shape, "1", [disc])], LABELS)
    table = target_table(labels, 256, 1024)
    points, found = draw_points(
        from_tensors(table["mask"]),
        from_tensors(table["box"]),
        np.array([disc.shape]),
        4000,
        np.random.default_rng(0),
    )
    radius = np.hypot(*(points[0] * (640, 480) - (300, 200)).T)
    clear = np.abs(radius - 150) > 3
    assert ((radius < 150) == found[0])[clear].all()
    assert found.mean() == pytest.approx(np.pi / 4, abs=0.03)


def test_points_are_uniform_in_the_box():
    mask = blob((50, 80), (20, 10, 60, 30))
    table = target_table(pa.Table.from_pylist([label("a", (50, 80), "1", [mask])], LABELS), 64, 64)
    packed, box = from_tensors(table["mask"]), from_tensors(table["box"])
    rng = np.random.default_rng(0)
    points, labels = draw_points(packed, box, np.array([(50, 80)]), 4000, rng)
    assert labels.mean() > 0.95  # all but those at the outline
    np.testing.assert_allclose(points[0].mean(0), [0.5, 0.4], atol=0.01)
    counts, _ = np.histogram(points[0, :, 0], bins=4, range=(0.25, 0.75))
    assert np.abs(counts / 4000 - 0.25).max() < 0.03


def test_one_point_is_always_positive(tmp_path):
    mask = np.zeros((60, 60), bool)
    mask[0, 0] = mask[59, 59] = True
    targets = read(tmp_path, [label("a", (60, 60), "1", [mask] * 20)]).to("cpu").targets
    assert (targets.point_labels.sum(1) >= 1).all()
    assert (targets.masks.sum((1, 2)) >= 1).all()  # thinner than a pixel, but never lost


def test_empty_masks_are_left_out(tmp_path):
    empty, full = np.zeros((20, 30), bool), np.ones((20, 30), bool)
    rows = [label("a", (20, 30), "2", [empty, full]), label("a", (20, 30), "1", [empty])]
    targets = read(tmp_path, rows).targets
    assert targets.expression.tolist() == [0] and targets.is_referent.tolist() == [0]
    assert targets.points.shape == (1, 8, 2)


@pytest.mark.parametrize("side", [8, 12, 16])
def test_packed_masks_of_any_side(side):
    masks = np.random.default_rng(0).random((3, side, side)) < 0.5
    packed = torch.from_numpy(np.packbits(masks, axis=-1))
    np.testing.assert_array_equal(unpack(packed), masks)


def test_ragged_columns():
    lengths = [2, 0, 3]
    values = np.arange(15, dtype=np.float16).reshape(5, 3)
    column = pa.chunked_array([to_ragged(values, lengths)])
    assert column.type == ragged_field("x", 3).type
    found = [row and [list(map(float, item)) for item in row] for row in column.to_pylist()]
    bounds = [0, *np.cumsum(lengths).tolist()]
    assert found == [values[a:b].tolist() for a, b in pairwise(bounds)]


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
    got = LowRes(low, image_size, height, width)(mask, np.array(mask_to_box(mask)))
    clear = np.abs(average - 0.5) > 0.06
    if average.max() > 0.56:
        np.testing.assert_array_equal(got[clear], average[clear] > 0.5)
    assert got.any()


@pytest.mark.parametrize("number", [1, 2])
def test_so_many_are_made_before_they_are_asked_for(number):
    made, more = [], threading.Condition()

    def items():
        for item in range(6):
            with more:
                made.append((item, threading.current_thread()))
                more.notify_all()
            yield item

    ahead = made_ahead(items(), number)
    for item in range(6):
        assert next(ahead) == item
        expected = min(item + 1 + number, 6)
        with more:
            assert more.wait_for(lambda expected=expected: len(made) >= expected, timeout=60)
            assert len(made) == expected
    assert list(ahead) == []
    assert threading.main_thread() not in {thread for _, thread in made}


def test_an_error_is_raised_where_its_item_is_asked_for():
    def items():
        yield "first"
        raise ValueError("the second one cannot be made")

    ahead = made_ahead(items(), 2)
    assert next(ahead) == "first"
    with pytest.raises(ValueError, match="the second one cannot be made"):
        next(ahead)


def test_on_a_cpu_batches_are_read_when_they_are_asked_for():
    read = []
    batches = for_device((read.append(number) or number for number in range(3)), "cpu")
    assert read == []
    assert next(batches) == 0 and read == [0]

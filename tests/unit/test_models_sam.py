"""SamSegmenter against segment_anything's own SamPredictor, prompt by prompt."""

import math
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from segment_anything.utils.transforms import ResizeLongestSide

from ppt.config import SamConfig
from ppt.models import sam as sam_module
from ppt.models.build import build_segmenter
from ppt.models.sam import SamSegmenter

SIDE, DIM = 64, 16


def make_sam():
    torch.manual_seed(0)
    sam = Sam(
        ImageEncoderViT(
            img_size=SIDE,
            patch_size=8,
            embed_dim=16,
            depth=2,
            num_heads=2,
            out_chans=DIM,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=4,
            global_attn_indexes=(1,),
        ),
        PromptEncoder(DIM, (8, 8), (SIDE, SIDE), mask_in_chans=8),
        MaskDecoder(
            transformer_dim=DIM,
            transformer=TwoWayTransformer(depth=2, embedding_dim=DIM, mlp_dim=32, num_heads=2),
            iou_head_hidden_dim=16,
        ),
    )
    return sam.eval()


@pytest.fixture(scope="module")
def segmenter():
    return SamSegmenter(make_sam())


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    sizes = [(40, 64), (90, 50), (64, 64), (33, 127)]
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sizes]


def encode(segmenter, pictures):
    pixels = torch.stack([segmenter.preprocess(picture) for picture in pictures])
    sizes = torch.tensor([picture.shape[:2] for picture in pictures])
    return segmenter.encode_images(pixels), sizes


def prompts(num_prompts, num_points, seed=0):
    rng = np.random.default_rng(seed)
    points = torch.from_numpy(rng.random((num_prompts, num_points, 2), np.float32))
    labels = torch.from_numpy(rng.integers(0, 2, (num_prompts, num_points)))
    labels[:, 0] = 1
    return points, labels


def assert_equals_predictor(segmenter, features, sizes, index, multimask_output):
    """Every prompt alone through segment_anything's SamPredictor, then all in one batch."""
    points, labels = prompts(len(index), 5)
    logits, iou = segmenter.decode(
        features, torch.tensor(index), points, labels, sizes, multimask_output=multimask_output
    )
    for prompt, picture in enumerate(index):
        size = tuple(sizes[picture].tolist())
        predictor = SamPredictor(segmenter.sam)
        predictor.features = features["image_embeddings"][picture : picture + 1]
        predictor.original_size = size
        predictor.input_size = predictor.transform.get_preprocess_shape(*size, segmenter.image_size)
        predictor.is_image_set = True
        masks, scores, low_res = predictor.predict(
            points[prompt].numpy() * size[::-1],
            labels[prompt].numpy(),
            multimask_output=multimask_output,
        )
        torch.testing.assert_close(logits[prompt], torch.from_numpy(low_res), atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(iou[prompt], torch.from_numpy(scores), atol=1e-4, rtol=1e-3)
        finished = segmenter.finish_batch(logits[prompt, :1], sizes[[picture]])[0].numpy()
        assert finished.shape == size
        assert (finished != masks[0]).mean() < 0.005  # pixels whose logit is nearly 0


def test_embeddings_equal_sam_predictor(segmenter, pictures):
    features, _ = encode(segmenter, pictures)
    predictor = SamPredictor(segmenter.sam)
    for embedding, picture in zip(features["image_embeddings"], pictures, strict=True):
        predictor.set_image(picture)
        torch.testing.assert_close(embedding, predictor.features[0], atol=1e-5, rtol=1e-4)


def test_pictures_are_encoded_as_many_at_once_as_memory_allows(segmenter, pictures, monkeypatch):
    whole, _ = encode(segmenter, pictures)
    seen = []
    hook = segmenter.sam.image_encoder.register_forward_hook(lambda m, x, y: seen.append(len(x[0])))
    of_one = 4 * (4 * 2 * 64**2)  # four copies of the attention of 2 heads
    assert segmenter.encoding_bytes == of_one
    monkeypatch.setattr(sam_module, "_BYTES_AT_ONCE", 3 * of_one)
    parts, _ = encode(segmenter, pictures)
    hook.remove()
    assert seen == [3, 1]
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("multimask_output", [True, False])
def test_equals_sam_predictor_prompt_by_prompt(segmenter, pictures, multimask_output):
    features, sizes = encode(segmenter, pictures)
    assert_equals_predictor(segmenter, features, sizes, [0, 0, 1, 2, 3, 1, 0], multimask_output)


def test_equals_sam_predictor_at_full_size():
    """ViT-B from the picture to the mask; its positions, zero when new, are made to matter.

    Three of its twelve blocks are run: those that follow repeat them.
    """
    segmenter = build_segmenter(SamConfig(name="vit_b", weights="random"))
    encoder = segmenter.sam.image_encoder
    assert [block.window_size for block in encoder.blocks] == [14, 14, 0] * 4  # 0: looks everywhere
    encoder.blocks = encoder.blocks[:3]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, values in encoder.named_parameters():
            if "pos" in name:  # pos_embed and each block's rel_pos_h, rel_pos_w
                values.normal_(std=0.1, generator=generator)
        picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        passes = []
        with encoder.register_forward_hook(lambda m, given, out: passes.append((given[0], out))):
            features, sizes = encode(segmenter, [picture])
        ((pixels, output),) = passes
        predictor = SamPredictor(segmenter.sam)
        with patch.object(encoder, "forward", return_value=output) as again:  # once is enough
            predictor.set_image(picture)
        torch.testing.assert_close(pixels, again.call_args.args[0])
        torch.testing.assert_close(features["image_embeddings"], predictor.features)
        assert_equals_predictor(segmenter, features, sizes, [0, 0], True)


def test_a_padded_point_means_no_point(segmenter, pictures):
    """One padded point is SamPredictor's own padding; more only repeat it."""
    features, sizes = encode(segmenter, pictures[:1])
    points, labels = prompts(1, 3)
    labels[0, 2] = -1
    moved = points.clone()
    moved[0, 2] = 0.9
    run = partial(segmenter.decode, features, torch.tensor([0]), sizes=sizes, multimask_output=True)
    torch.testing.assert_close(run(points, labels)[0], run(moved, labels)[0])


def test_gradient_reaches_every_point(segmenter, pictures):
    features, sizes = encode(segmenter, pictures)
    points, labels = prompts(4, 5)
    points.requires_grad_()
    logits, _ = segmenter.decode(
        features, torch.tensor([0, 1, 2, 3]), points, labels, sizes, multimask_output=False
    )
    logits.sigmoid().mean().backward()
    assert (points.grad.abs().sum(-1) > 0).all()
    assert all(parameter.grad is None for parameter in segmenter.parameters())


def test_chunks_change_nothing(pictures):
    features, sizes = encode(SamSegmenter(make_sam()), pictures)
    points, labels = prompts(7, 4)
    index = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    with torch.no_grad():
        whole, parts = (
            SamSegmenter(make_sam(), max_prompts=n).decode(
                features, index, points, labels, sizes, multimask_output=True
            )
            for n in (100, 3)
        )
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-4)


def test_no_prompts_give_no_masks(segmenter, pictures):
    features, sizes = encode(segmenter, pictures)
    none = torch.zeros(0, dtype=torch.long)
    logits, iou = segmenter.decode(
        features, none, torch.zeros(0, 4, 2), none.view(0, 1), sizes, multimask_output=False
    )
    assert logits.shape == (0, 1, 32, 32)
    assert iou.shape == (0, 1)
    assert segmenter.finish_batch(logits[:, 0], sizes[none]) == []


def test_finish_groups_pictures_of_different_sizes(segmenter, pictures):
    _, sizes = encode(segmenter, pictures)
    index = torch.tensor([3, 0, 1, 0, 2])
    logits = torch.randn(5, 32, 32)
    together = segmenter.finish_batch(logits, sizes[index])
    for one, mask, size in zip(logits, together, sizes[index].tolist(), strict=True):
        assert torch.equal(mask, segmenter.finish_batch(one[None], torch.tensor([size]))[0])
        assert mask.dtype == torch.bool and mask.shape == tuple(size)


def test_another_threshold_of_finished_masks(segmenter):
    """A pixel is in the mask where its probability is above 0.35, not 0.5."""
    logits, sizes = torch.randn(3, 32, 32), torch.tensor([[64, 64], [40, 64], [90, 45]])
    wider = segmenter.with_mask_threshold(math.log(0.35 / 0.65))
    for i, (mask, size) in enumerate(zip(wider.finish_batch(logits, sizes), sizes, strict=True)):
        inside = ResizeLongestSide.get_preprocess_shape(*size.tolist(), SIDE)
        full = segmenter.sam.postprocess_masks(logits[i, None, None], inside, tuple(size.tolist()))
        assert torch.equal(mask, full[0, 0].sigmoid() > 0.35)


def test_sizes_of_many_pictures_are_those_of_one(segmenter):
    sizes = [(h, w) for h in range(1, 1100, 37) for w in range(1, 1100, 41)]
    expected = [segmenter._input_size(*size) for size in sizes]
    assert segmenter._input_sizes(torch.tensor(sizes)).int().tolist() == [*map(list, expected)]


def test_valid_mask_covers_the_picture_alone(segmenter):
    valid = segmenter.valid_mask(torch.tensor([[64, 64], [40, 64], [90, 45]]))
    assert valid.shape == (3, 32, 32)
    assert valid[0].all()
    assert valid[1, :20].all() and not valid[1, 20:].any()
    assert valid[2, :, :16].all() and not valid[2, :, 16:].any()


def test_properties(segmenter):
    assert (segmenter.image_size, segmenter.low_res_size) == (SIDE, 32)
    assert segmenter.feature_shapes == {"image_embeddings": (DIM, 8, 8)}
    assert segmenter.fingerprint == SamSegmenter(make_sam()).fingerprint
    other = make_sam()
    other.mask_decoder.iou_token.weight.data += 1
    assert segmenter.fingerprint != SamSegmenter(other).fingerprint
    assert not segmenter.train().training

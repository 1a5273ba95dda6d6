"""SamDecoder against segment_anything's own SamPredictor, prompt by prompt."""

import math
from functools import partial

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

from ppt.config import SamConfig
from ppt.models import sam_decoder
from ppt.models.build import build_sam_decoder
from ppt.models.sam_decoder import SamDecoder

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
def decoder():
    return SamDecoder(make_sam())


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    sizes = [(40, 64), (90, 50), (64, 64), (33, 127)]
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sizes]


def encode(decoder, pictures):
    pixels = torch.stack([decoder.preprocess(picture) for picture in pictures])
    sizes = torch.tensor([picture.shape[:2] for picture in pictures])
    return decoder.encode_images(pixels), sizes


def prompts(num_prompts, num_points, seed=0):
    rng = np.random.default_rng(seed)
    points = torch.from_numpy(rng.random((num_prompts, num_points, 2), np.float32))
    labels = torch.from_numpy(rng.integers(0, 2, (num_prompts, num_points)))
    labels[:, 0] = 1
    return points, labels


def assert_equals_predictor(decoder, embeddings, sizes, index, multimask_output):
    """Every prompt alone through segment_anything's SamPredictor, then all in one batch."""
    points, labels = prompts(len(index), 5)
    logits, iou = decoder.decode(
        embeddings, torch.tensor(index), points, labels, sizes, multimask_output=multimask_output
    )
    for prompt, picture in enumerate(index):
        size = tuple(sizes[picture].tolist())
        predictor = SamPredictor(decoder.sam)
        predictor.features = embeddings[picture : picture + 1]
        predictor.original_size = size
        predictor.input_size = predictor.transform.get_preprocess_shape(*size, decoder.image_size)
        predictor.is_image_set = True
        masks, scores, low_res = predictor.predict(
            points[prompt].numpy() * size[::-1],
            labels[prompt].numpy(),
            multimask_output=multimask_output,
        )
        torch.testing.assert_close(logits[prompt], torch.from_numpy(low_res), atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(iou[prompt], torch.from_numpy(scores), atol=1e-4, rtol=1e-3)
        finished = decoder.finish(logits[prompt, 0], size).numpy()
        assert finished.shape == size
        assert (finished != masks[0]).mean() < 0.005  # pixels whose logit is nearly 0


def test_embeddings_equal_sam_predictor(decoder, pictures):
    embeddings, _ = encode(decoder, pictures)
    predictor = SamPredictor(decoder.sam)
    for embedding, picture in zip(embeddings, pictures, strict=True):
        predictor.set_image(picture)
        torch.testing.assert_close(embedding, predictor.features[0], atol=1e-5, rtol=1e-4)


def test_pictures_are_encoded_as_many_at_once_as_memory_allows(decoder, pictures, monkeypatch):
    whole, _ = encode(decoder, pictures)
    seen = []
    hook = decoder.sam.image_encoder.register_forward_hook(lambda m, x, y: seen.append(len(x[0])))
    monkeypatch.setattr(sam_decoder, "_ATTENTION_BYTES", 3 * 4 * 2 * 64**2)  # of three pictures
    parts, _ = encode(decoder, pictures)
    hook.remove()
    assert seen == [3, 1]
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("multimask_output", [True, False])
def test_equals_sam_predictor_prompt_by_prompt(decoder, pictures, multimask_output):
    embeddings, sizes = encode(decoder, pictures)
    assert_equals_predictor(decoder, embeddings, sizes, [0, 0, 1, 2, 3, 1, 0], multimask_output)


def test_equals_sam_predictor_at_full_size():
    """ViT-B from the picture to the mask; its positions, zero when new, are made to matter."""
    decoder = build_sam_decoder(SamConfig(name="vit_b", weights="random"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, values in decoder.sam.image_encoder.named_parameters():
            if "pos" in name:  # pos_embed and each block's rel_pos_h, rel_pos_w
                values.normal_(std=0.1, generator=generator)
        picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        embeddings, sizes = encode(decoder, [picture])
        predictor = SamPredictor(decoder.sam)
        predictor.set_image(picture)
        torch.testing.assert_close(embeddings, predictor.features, atol=1e-4, rtol=1e-3)
        assert_equals_predictor(decoder, embeddings, sizes, [0, 0], True)


def test_a_padded_point_means_no_point(decoder, pictures):
    """One padded point is SamPredictor's own padding; more only repeat it."""
    embeddings, sizes = encode(decoder, pictures[:1])
    points, labels = prompts(1, 3)
    labels[0, 2] = -1
    moved = points.clone()
    moved[0, 2] = 0.9
    run = partial(decoder.decode, embeddings, torch.tensor([0]), sizes=sizes, multimask_output=True)
    torch.testing.assert_close(run(points, labels)[0], run(moved, labels)[0])


def test_gradient_reaches_every_point(decoder, pictures):
    embeddings, sizes = encode(decoder, pictures)
    points, labels = prompts(4, 5)
    points.requires_grad_()
    logits, _ = decoder.decode(
        embeddings, torch.tensor([0, 1, 2, 3]), points, labels, sizes, multimask_output=False
    )
    logits.sigmoid().mean().backward()
    assert (points.grad.abs().sum(-1) > 0).all()
    assert all(parameter.grad is None for parameter in decoder.parameters())


def test_chunks_change_nothing(pictures):
    embeddings, sizes = encode(SamDecoder(make_sam()), pictures)
    points, labels = prompts(7, 4)
    index = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    with torch.no_grad():
        whole, parts = (
            SamDecoder(make_sam(), max_prompts=n).decode(
                embeddings, index, points, labels, sizes, multimask_output=True
            )
            for n in (100, 3)
        )
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-4)


def test_no_prompts_give_no_masks(decoder, pictures):
    embeddings, sizes = encode(decoder, pictures)
    none = torch.zeros(0, dtype=torch.long)
    logits, iou = decoder.decode(
        embeddings, none, torch.zeros(0, 4, 2), none.view(0, 1), sizes, multimask_output=False
    )
    assert logits.shape == (0, 1, 32, 32)
    assert iou.shape == (0, 1)
    assert decoder.finish_batch(logits[:, 0], sizes[none]) == []


def test_finish_groups_pictures_of_different_sizes(decoder, pictures):
    _, sizes = encode(decoder, pictures)
    index = torch.tensor([3, 0, 1, 0, 2])
    logits = torch.randn(5, 32, 32)
    together = decoder.finish_batch(logits, sizes[index])
    for one, mask, size in zip(logits, together, sizes[index].tolist(), strict=True):
        assert torch.equal(mask, decoder.finish(one, tuple(size)))
        assert mask.dtype == torch.bool and mask.shape == tuple(size)


def test_another_threshold_of_finished_masks(decoder):
    """A pixel is in the mask where its probability is above 0.35, not 0.5."""
    logits, sizes = torch.randn(3, 32, 32), torch.tensor([[64, 64], [40, 64], [90, 45]])
    wider = SamDecoder(decoder.sam, mask_threshold=math.log(0.35 / 0.65))
    for i, (mask, size) in enumerate(zip(wider.finish_batch(logits, sizes), sizes, strict=True)):
        inside = decoder.input_size(*size.tolist())
        full = decoder.sam.postprocess_masks(logits[i, None, None], inside, tuple(size.tolist()))
        assert torch.equal(mask, full[0, 0].sigmoid() > 0.35)


def test_valid_mask_covers_the_picture_alone(decoder):
    valid = decoder.valid_mask(torch.tensor([[64, 64], [40, 64], [90, 45]]))
    assert valid.shape == (3, 32, 32)
    assert valid[0].all()
    assert valid[1, :20].all() and not valid[1, 20:].any()
    assert valid[2, :, :16].all() and not valid[2, :, 16:].any()


def test_properties(decoder):
    assert (decoder.image_size, decoder.low_res_size, decoder.embed_dim) == (SIDE, 32, DIM)
    assert decoder.fingerprint == SamDecoder(make_sam()).fingerprint
    other = make_sam()
    other.mask_decoder.iou_token.weight.data += 1
    assert decoder.fingerprint != SamDecoder(other).fingerprint
    assert not decoder.train().training

"""ClipEncoder against open_clip itself and against CLIP Surgery written out by hand."""

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from open_clip.transformer import QuickGELU

from ppt.models.clip_encoder import ClipEncoder

IMAGE_SIZE, PATCH, WIDTH, TEXT_WIDTH, EMBED, CONTEXT = 32, 8, 32, 24, 16, 77
VISION = {"layers": 4, "width": WIDTH, "head_width": 8, "patch_size": PATCH}


def make_clip(kind=CLIP, **vision):
    torch.manual_seed(0)
    clip = kind(
        embed_dim=EMBED,
        vision_cfg=CLIPVisionCfg(image_size=IMAGE_SIZE, **{**VISION, **vision}),
        text_cfg=CLIPTextCfg(width=TEXT_WIDTH, heads=4, layers=2),
    )
    for name, parameter in clip.named_parameters():  # biases start at zero: a bug could hide
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return clip.eval()


def make_encoder(clip=None, **changes):
    settings = {
        "image_size": None,
        "taps": (2, 3, 4),
        "surgery_depth": 2,
        "templates": ["a photo of a {}.", "the {}"],
        "mean": (0.5, 0.4, 0.3),
        "std": (0.25, 0.2, 0.3),
    }
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    return ClipEncoder(clip or make_clip(), tokenizer, **{**settings, **changes})


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(3, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))


def surgery_by_hand(clip, pixels, depth, local_mask=None):
    """CLIP Surgery as its paper describes it, block by block and head by head."""
    visual, x_new = clip.visual, None
    width = visual.conv1.out_channels
    x = visual.conv1(pixels).reshape(len(pixels), width, -1).permute(0, 2, 1)
    x = torch.cat([visual.class_embedding.repeat(len(pixels), 1, 1), x], 1)
    x = visual.ln_pre(x + visual.positional_embedding)
    for i, block in enumerate(visual.transformer.resblocks):
        if i >= len(visual.transformer.resblocks) - depth:
            attention, heads = block.attn, block.attn.num_heads
            w, b = attention.in_proj_weight[-width:], attention.in_proj_bias[-width:]
            v = block.ln_1(x) @ w.T + b
            outputs = []
            for v_h in v.chunk(heads, dim=-1):
                scores = v_h @ v_h.mT / (width // heads) ** 0.5
                if local_mask is not None:
                    scores = scores + local_mask
                outputs.append(scores.softmax(-1) @ v_h)
            update = attention.out_proj(torch.cat(outputs, -1))
            x_new = (x if x_new is None else x_new) + update
        x = block(x)
    x_new = torch.cat([x[:, :1], x_new[:, 1:]], 1)
    return F.normalize(visual.ln_post(x_new) @ visual.proj, dim=-1)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_surgery_tokens_equal_the_paper_written_out(pixels, depth):
    encoder = make_encoder(surgery_depth=depth)
    found = encoder.encode_images(pixels).surgery_tokens
    assert found.shape == (3, 1 + 16, EMBED)
    torch.testing.assert_close(found, surgery_by_hand(encoder.clip, pixels, depth))


def test_surgery_respects_a_blocks_local_mask(pixels):
    mask = torch.zeros(17, 17)
    mask[3, 5:] = float("-inf")
    encoder = make_encoder()
    for block in encoder.clip.visual.transformer.resblocks:
        block.local_mask = mask
    found = encoder.encode_images(pixels).surgery_tokens
    torch.testing.assert_close(found, surgery_by_hand(encoder.clip, pixels, 2, mask))
    assert not torch.allclose(found, surgery_by_hand(encoder.clip, pixels, 2))


@pytest.mark.parametrize("kind", [CLIP, CustomTextCLIP])
def test_levels_and_first_token_are_plain_open_clip(pixels, kind):
    clip, seen = make_clip(kind), {}
    for number, block in enumerate(clip.visual.transformer.resblocks, 1):
        block.register_forward_hook(lambda m, i, out, n=number: seen.update({n: out}))
    embedding = clip.encode_image(pixels, normalize=True)
    plain = dict(seen)
    found = make_encoder(clip, taps=(1, 4)).encode_images(pixels)
    assert len(found.visual_features) == 2
    torch.testing.assert_close(found.visual_features[0], plain[1][:, 1:])
    torch.testing.assert_close(found.visual_features[1], plain[4][:, 1:])
    torch.testing.assert_close(found.surgery_tokens[:, 0], embedding)


def test_average_pooling_gives_the_pictures_own_embedding_first(pixels):
    clip = make_clip(pool_type="avg")
    found = make_encoder(clip).encode_images(pixels).surgery_tokens[:, 0]
    torch.testing.assert_close(found, clip.encode_image(pixels, normalize=True))


def test_another_image_size_leaves_the_network_untouched(pixels):
    clip = make_clip()
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    large = make_encoder(clip, image_size=48)
    tokens = large.encode_images(torch.randn(2, 3, 48, 48)).surgery_tokens
    assert large.grid == 6
    assert tokens.shape == (2, 1 + 36, EMBED)
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items())
    native = make_encoder(clip).encode_images(pixels).surgery_tokens
    torch.testing.assert_close(native, make_encoder().encode_images(pixels).surgery_tokens)


def bilinear_weights(old, new):
    """[new, old]: the shares that `old` cells in a row have in the centres of `new` cells."""
    centres = ((torch.arange(new) + 0.5) * old / new - 0.5).clamp(0, old - 1)
    return (1 - (centres[:, None] - torch.arange(old)).abs()).clamp(min=0)


@pytest.mark.parametrize("size", [16, 24, 48, 56])
def test_another_image_size_equals_a_net_with_bilinear_positions(size):
    clip = make_clip()
    vision = CLIPVisionCfg(image_size=size, **VISION)
    resampled = CLIP(EMBED, vision, CLIPTextCfg(width=TEXT_WIDTH, heads=4, layers=2))
    state = clip.state_dict()
    first, *grid = state["visual.positional_embedding"].split([1, IMAGE_SIZE // PATCH * 4])
    rows = bilinear_weights(IMAGE_SIZE // PATCH, size // PATCH)
    grid = grid[0].view(IMAGE_SIZE // PATCH, IMAGE_SIZE // PATCH, WIDTH)
    grid = torch.einsum("yr,xc,rcd->yxd", rows, rows, grid).flatten(0, 1)
    state["visual.positional_embedding"] = torch.cat([first, grid])
    resampled.load_state_dict(state)
    pixels = torch.randn(2, 3, size, size)
    found = make_encoder(clip, image_size=size).encode_images(pixels).surgery_tokens
    plain = resampled.eval().encode_image(pixels, normalize=True)
    torch.testing.assert_close(found[:, 0], plain)
    torch.testing.assert_close(found, surgery_by_hand(resampled, pixels, 2))


def test_full_size_surgery_tokens_equal_the_paper_written_out():
    clip = open_clip.create_model("ViT-B-16-quickgelu").eval()
    encoder = make_encoder(clip, taps=(4, 8, 12), surgery_depth=6)
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = surgery_by_hand(clip, pixels, 6)
    found = encoder.encode_images(pixels)
    torch.testing.assert_close(found.surgery_tokens, expected, atol=1e-5, rtol=1e-4)
    assert [level.shape for level in found.visual_features] == [(1, 196, 768)] * 3


def test_preprocess_squashes_the_whole_picture():
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 30:] = (255, 128, 0)
    pixels = make_encoder().preprocess(image)
    assert pixels.shape == (3, IMAGE_SIZE, IMAGE_SIZE)
    black = (0 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.25, 0.2, 0.3])
    orange = (torch.tensor([1, 128 / 255, 0]) - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor(
        [0.25, 0.2, 0.3]
    )
    torch.testing.assert_close(pixels[:, :, 0], black[:, None].expand(-1, IMAGE_SIZE))
    torch.testing.assert_close(pixels[:, :, -1], orange[:, None].expand(-1, IMAGE_SIZE))


@pytest.mark.parametrize("kind", [CLIP, CustomTextCLIP])
def test_words_are_open_clips_text_tower(kind):
    clip = make_clip(kind)
    encoder = make_encoder(clip)
    texts = ["left man", "the girl under the pink umbrella", ""]
    features, mask = encoder.encode_words(texts)
    assert features.shape == (3, CONTEXT, TEXT_WIDTH)
    assert mask.sum(1).tolist() == [4, 8, 2]  # start, words, end
    ends = features[torch.arange(3), mask.sum(1) - 1]
    text = clip.text if kind is CustomTextCLIP else clip
    plain = clip.encode_text(encoder.tokenizer(texts))
    torch.testing.assert_close(ends @ text.text_projection, plain, atol=1e-5, rtol=1e-4)


def test_text_beyond_the_context_is_cut():
    _, mask = make_encoder().encode_words(["word " * 100])
    assert mask.all()


def test_words_beyond_the_context_are_not_read():
    """open_clip's tokenizer leaves room for 75 tokens; each of these words is one token."""
    words = make_encoder().words_read("dog, the cat's! " + "dog " * 80)
    assert [word for word, _ in words] == ["dog", "the", "cat's", *["dog"] * 80]
    assert 70 <= sum(read for _, read in words) < 75  # a comma and an apostrophe are tokens too
    assert not words[-1][1] and all(read for _, read in words[:70])


def test_phrases_are_averaged_over_templates():
    encoder = make_encoder()
    found = encoder.encode_phrases(["red car", "dog"])
    tokens = encoder.tokenizer(["a photo of a red car.", "the red car"])
    plain = F.normalize(encoder.clip.encode_text(tokens), dim=-1).mean(0)
    torch.testing.assert_close(found[0], F.normalize(plain, dim=-1), atol=1e-5, rtol=1e-4)


def test_a_net_of_near_patches_has_one_image_size():
    clip = make_clip()
    for block in clip.visual.transformer.resblocks:
        block.local_mask = torch.zeros(17, 17)
    assert make_encoder(clip, image_size=IMAGE_SIZE).grid == 4
    with pytest.raises(ValueError, match="image_size must be 32, because .* near patches, got 48"):
        make_encoder(clip, image_size=48)


def test_fingerprint_changes_with_weights_and_settings_only():
    encoder = make_encoder()
    assert encoder.fingerprint == make_encoder().fingerprint
    assert encoder.fingerprint != make_encoder(taps=(1, 2)).fingerprint
    assert encoder.fingerprint != make_encoder(mean=(0.5, 0.4, 0.31)).fingerprint
    assert encoder.fingerprint != make_encoder(image_size=48).fingerprint
    changed = make_clip()
    changed.visual.proj.data[0, 0] += 1
    assert encoder.fingerprint != make_encoder(changed).fingerprint


def test_fingerprint_tells_what_no_tensor_of_a_checkpoint_shows():
    prints = {make_encoder().fingerprint}
    quick = make_clip()
    for block in quick.visual.transformer.resblocks:
        block.mlp.gelu = QuickGELU()
    prints.add(make_encoder(quick).fingerprint)
    prints.add(make_encoder(make_clip(head_width=16)).fingerprint)
    fenced = make_clip()
    for block in fenced.visual.transformer.resblocks:
        block.register_buffer("local_mask", torch.zeros(17, 17), persistent=False)
    prints.add(make_encoder(fenced).fingerprint)
    assert len(prints) == 4


def test_stays_frozen():
    encoder = make_encoder().train()
    assert not encoder.training
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_refuses_other_networks():
    resnet = CLIP(
        EMBED,
        CLIPVisionCfg(layers=(1, 1, 1, 1), width=8, image_size=32),
        CLIPTextCfg(width=TEXT_WIDTH, heads=4, layers=1),
    )
    with pytest.raises(ValueError, match="ModifiedResNet"):
        make_encoder(resnet)
    with pytest.raises(ValueError, match="Linear"):
        make_encoder(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="attention pooling"):
        make_encoder(make_clip(attentional_pool=True, attn_pooler_heads=4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"taps": (2, 5)}, r"taps must rise within 1..4, got \(2, 5\)"),
        ({"taps": (3, 2)}, "taps must rise"),
        ({"taps": ()}, "taps must rise"),
        ({"surgery_depth": 5}, "surgery_depth must be in 1..4, got 5"),
        ({"image_size": 36}, "image_size must be a multiple of 8, got 36"),
    ],
)
def test_wrong_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        make_encoder(**change)

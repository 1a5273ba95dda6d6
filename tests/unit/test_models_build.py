"""Building models by name: what is refused, and what the full-size nets look like."""

import contextlib

import open_clip
import pytest
import torch

from ppt.config import ClipConfig, Model, PointGeneratorConfig, SamConfig
from ppt.models.build import (
    build_image_text_encoder,
    build_point_generator,
    build_segmenter,
    check_names,
    outline_image_text_encoder,
    outline_segmenter,
)
from ppt.models.clip_builder import CLIP_SURGERY_TEMPLATES, plain_clip


def test_weights_must_be_given_for_real_nets():
    must = "weights must be the path of a checkpoint of"
    with pytest.raises(ValueError, match=f"model.clip.{must} CLIP ViT-B-16 or one of open_clip's"):
        build_image_text_encoder(ClipConfig(name="ViT-B-16"))
    with pytest.raises(ValueError, match=f"model.sam.{must} SAM vit_b "):
        build_segmenter(SamConfig(name="vit_b"))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="open_clip knows no 'ViT-B-61': did you mean ViT-B-16?"):
        check_names(Model(clip=ClipConfig(name="ViT-B-61")))
    model = Model(clip=ClipConfig(name="RN50"), sam=SamConfig(name="vit-b"))
    with pytest.raises(ValueError, match="its image tower is a ResNet\n.*did you mean vit_b?"):
        check_names(model)
    check_names(Model(clip=ClipConfig(name="ViT-B-16"), sam=SamConfig(name="mobile_sam")))
    with pytest.raises(ValueError, match="open_clip knows no 'ViT-Z'"):
        build_image_text_encoder(ClipConfig(name="ViT-Z", weights="random"))
    known = "toybox, vit_b, vit_l, vit_h, mobile_sam"
    with pytest.raises(ValueError, match=f"model.sam.name must be one of {known}, got 'sam2'"):
        build_segmenter(SamConfig(name="sam2", weights="random"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("RN50", "its image tower is a ResNet"),
        ("convnext_base", "its image tower is timm's convnext_base"),
        ("EVA02-B-16", "its image tower is timm's eva02"),
        ("ViT-B-16-SigLIP", "its image tower is timm's vit_base_patch16_siglip_224"),
        ("coca_ViT-B-32", "it is a CoCa"),
        ("roberta-ViT-B-32", "its text needs roberta-base"),
        ("ViT-H-14-CLIPA", "its text needs bert-base-uncased"),
    ],
)
def test_clips_without_plain_towers_are_refused_by_name(name, reason):
    with pytest.raises(ValueError, match=f"model.clip.name must be .* got '{name}': {reason}"):
        build_image_text_encoder(ClipConfig(name=name, weights="/nowhere.pt"))


@pytest.mark.parametrize(
    ("name", "taps", "grid", "width"),
    [
        ("ViT-B-16", (4, 8, 12), 14, 768),
        ("ViT-B-32-quickgelu", (4, 8, 12), 7, 768),
        ("ViT-B-16-plus-240", (4, 8, 12), 15, 896),
        ("ViT-L-14", (8, 16, 24), 16, 1024),
        ("ViT-H-14-378", (11, 21, 32), 27, 1280),
    ],
)
def test_any_depth_is_tapped_after_its_thirds(name, taps, grid, width):
    encoder = outline_image_text_encoder(ClipConfig(name=name))
    assert (encoder.taps, encoder.surgery_depth) == (taps, 6)
    assert (encoder.grid, encoder.visual_dim) == (grid, width)
    assert next(encoder.clip.parameters()).is_meta


def test_plain_vits_are_accepted_by_name():
    accepted = set()
    for name in open_clip.list_models():
        with contextlib.suppress(ValueError):
            plain_clip(name)
            accepted.add(name)
    assert {"ViT-B-32", "ViT-B-16", "ViT-L-14-336", "ViT-H-14", "ViT-bigG-14"} <= accepted
    assert all(name.startswith("ViT-") for name in accepted)


def test_an_outline_has_the_encoders_sizes():
    outline = outline_image_text_encoder(ClipConfig())
    encoder = build_image_text_encoder(ClipConfig())
    for name in ("visual_dim", "text_dim", "embed_dim", "num_levels", "grid", "context_length"):
        assert getattr(outline, name) == getattr(encoder, name)


def test_an_outline_has_the_segmenters_sizes():
    outline, segmenter = outline_segmenter(SamConfig()), build_segmenter(SamConfig())
    for name in ("image_size", "low_res_size", "feature_shapes", "encoding_bytes"):
        assert getattr(outline, name) == getattr(segmenter, name)
    assert all(parameter.is_meta for parameter in outline.parameters())


def test_a_wrong_setting_is_named_as_in_the_configuration():
    with pytest.raises(ValueError, match=r"^model.clip.image_size must be a multiple of 8, got 90"):
        build_image_text_encoder(ClipConfig(image_size=90))
    with pytest.raises(ValueError, match=r"^model.clip.image_size must be 96, .* got 64"):
        build_image_text_encoder(ClipConfig(image_size=64))


def test_the_toybox_has_its_own_weights():
    with pytest.raises(ValueError, match="model.clip.weights: the toybox has its own, got 'x.pt'"):
        build_image_text_encoder(ClipConfig(weights="x.pt"))
    with pytest.raises(ValueError, match="model.sam.weights: the toybox has its own, got 'x.pt'"):
        build_segmenter(SamConfig(weights="x.pt"))


def test_a_real_clip_is_tapped_as_the_paper_needs():
    state = torch.random.get_rng_state()
    encoder = build_image_text_encoder(ClipConfig(name="ViT-B-16", weights="random"))
    assert torch.equal(state, torch.random.get_rng_state())
    assert (encoder.taps, encoder.surgery_depth) == ((4, 8, 12), 6)
    assert (encoder.visual_dim, encoder.text_dim, encoder.embed_dim) == (768, 512, 512)
    assert (encoder.grid, encoder.context_length) == (14, 77)
    large = ClipConfig(name="ViT-B-16", weights="random", image_size=512)
    assert outline_image_text_encoder(large).grid == 32
    assert encoder.templates == CLIP_SURGERY_TEMPLATES and len(CLIP_SURGERY_TEMPLATES) == 85
    generator = build_point_generator(PointGeneratorConfig(), 768, 512, 3)
    features = encoder.encode_images(torch.randn(1, 3, 224, 224))
    words, mask = encoder.encode_words(["left man"])
    outputs = generator(features.visual_features, words, mask, torch.tensor([0]))
    assert outputs["pred_points"].shape == (1, 10, 8, 2)


def test_settings_override_a_nets_own():
    config = ClipConfig(taps=(1, 4), surgery_depth=2, templates=["the {}"])
    encoder = build_image_text_encoder(config)
    assert (encoder.taps, encoder.surgery_depth) == ((1, 4), 2)
    assert encoder.templates == ("the {}",)


def test_the_toybox_nets_fit_together():
    encoder, decoder = build_image_text_encoder(ClipConfig()), build_segmenter(SamConfig())
    assert encoder.image_size == decoder.image_size == 96
    assert decoder.low_res_size == 48
    tokens = encoder.encode_images(torch.zeros(1, 3, 96, 96)).surgery_tokens
    assert tokens.shape == (1, 1 + 144, encoder.embed_dim)

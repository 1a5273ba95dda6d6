"""MobileSAM: SAM's own prompt encoder and mask decoder behind a small encoder of pictures.

Zhang et al., "Faster Segment Anything" (arXiv 2306.14289). The encoder is TinyViT-5M (arXiv
2207.10666), here timm's. Unlike the original, which halves the resolution after every level, its
last level keeps that of the level before, so that a picture of 1024 pixels becomes 64 x 64 tokens.
A neck as that of SAM brings them to the width that the decoder expects.
"""

from __future__ import annotations

import re

import timm
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from ppt.config import SamConfig
from ppt.models.sam import SamSegmenter
from ppt.models.weights import build_net

IMAGE_SIZE = 1024
EMBEDDING_SIZE = 64
"""Tokens along each side of the image embedding."""

WIDTH = 256
"""C, the width of the image embedding and of the decoder."""

_LAST_LEVEL_WIDTH = 320

_FIRST_LEVEL_TENSORS = 5
"""How many tensors of the widest size the first level of the encoder holds at once."""


class TinyViTEncoder(nn.Module):
    """TinyViT-5M for pictures [I, 3, 1024, 1024]: image embeddings [I, 256, 64, 64].

    The published checkpoint also holds TinyViT's classifier, which is loaded and never used.
    """

    img_size = IMAGE_SIZE

    def __init__(self) -> None:
        super().__init__()
        self.vit = timm.create_model("tiny_vit_5m_224", num_classes=1000)
        self.vit.stages[-1].downsample.conv2.conv.stride = (1, 1)
        self.neck = nn.Sequential(
            nn.Conv2d(_LAST_LEVEL_WIDTH, WIDTH, 1, bias=False),
            LayerNorm2d(WIDTH),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
            LayerNorm2d(WIDTH),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.neck(self.vit.forward_features(pixels))


class MobileSamSegmenter(SamSegmenter):
    """A `Segmenter` of MobileSAM."""

    @property
    def encoding_bytes(self) -> int:
        """The float32 features of the first level at a quarter of the resolution, 4 times wider."""
        channels = self.sam.image_encoder.vit.stages[0].blocks[0].conv2.conv.out_channels
        return _FIRST_LEVEL_TENSORS * 4 * channels * (IMAGE_SIZE // 4) ** 2


def build_mobile_sam(config: SamConfig) -> MobileSamSegmenter:
    """Build MobileSAM. Raises ValueError for wrong weights."""
    net = build_net(
        mobile_sam,
        config.weights,
        field="model.sam.weights",
        expected="MobileSAM",
        published_name=published_name,
    )
    return MobileSamSegmenter(net)


def mobile_sam() -> Sam:
    """MobileSAM with random numbers."""
    return Sam(
        image_encoder=TinyViTEncoder(),
        prompt_encoder=PromptEncoder(
            embed_dim=WIDTH,
            image_embedding_size=(EMBEDDING_SIZE, EMBEDDING_SIZE),
            input_image_size=(IMAGE_SIZE, IMAGE_SIZE),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=WIDTH,
            transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=2048, num_heads=8),
        ),
    )


def published_name(name: str) -> str:
    """The name in the published checkpoint of a tensor of `mobile_sam`.

    The authors' levels end with the reduction to the next level's resolution, those of timm begin
    with it.
    """
    if not name.startswith("image_encoder.vit."):
        return name
    name = name.replace("encoder.vit.", "encoder.", 1)
    name = re.sub(
        r"\.stages\.(\d)\.downsample\.", lambda m: f".layers.{int(m[1]) - 1}.downsample.", name
    )
    for ours, theirs in (
        (".stages.", ".layers."),
        (".conv.weight", ".c.weight"),
        (".patch_embed.conv1.", ".patch_embed.seq.0."),
        (".patch_embed.conv2.", ".patch_embed.seq.2."),
        (".head.norm.", ".norm_head."),
        (".head.fc.", ".head."),
    ):
        name = name.replace(ours, theirs)
    return name

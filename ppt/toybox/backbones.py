"""A tiny CLIP and a tiny SAM for the toy world, built from open_clip and segment_anything classes.

Both have the interfaces of the full-size models, so the rest of the package does not distinguish
between them.
"""

from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.transformer import ResidualAttentionBlock
from safetensors.torch import load_file
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import nn

from ppt.toybox.tokenizer import CONTEXT_LENGTH, WordTokenizer
from ppt.toybox.world import IMAGE_SIZE

Model = TypeVar("Model", bound=nn.Module)

WEIGHTS = Path(__file__).parent / "weights"

PATCH_SIZE = 8
GRID = IMAGE_SIZE // PATCH_SIZE

# CLIP's pixel normalisation, for pixel values in [0, 1].
CLIP_MEAN = (0.5, 0.5, 0.5)
CLIP_STD = (0.25, 0.25, 0.25)
# CLIP Surgery's number of blocks and its text templates for this CLIP (our choice).
SURGERY_DEPTH = 1
TEMPLATES = ("a {}", "the {}", "a photo of a {}")
TAPS = (2, 3, 4)  # the blocks, counted from 1, whose outputs are the features of the levels

_CLIP_WIDTH = 128
_CLIP_HEAD_WIDTH = 32
_CLIP_MLP_RATIO = 2.0
# The greatest distance, in patches, at which a patch attends to another one, for each block (our
# choice). Without this limit patch tokens take up the content of their neighbours, and the
# similarity maps no longer localise.
_ATTENTION_RADII = (1, 1, 0, 0)

_SAM_WIDTH = 128
_SAM_PROMPT_WIDTH = 96


def build_clip() -> CLIP:
    """Build the tiny CLIP without weights.

    It maps pictures [B, 3, 96, 96] and tokens [B, 20] to embeddings [B, 128].
    """
    clip = CLIP(
        embed_dim=_CLIP_WIDTH,
        vision_cfg=CLIPVisionCfg(
            layers=len(_ATTENTION_RADII),
            width=_CLIP_WIDTH,
            head_width=_CLIP_HEAD_WIDTH,
            mlp_ratio=_CLIP_MLP_RATIO,
            patch_size=PATCH_SIZE,
            image_size=IMAGE_SIZE,
        ),
        text_cfg=CLIPTextCfg(
            context_length=CONTEXT_LENGTH,
            vocab_size=tokenizer().vocab_size,
            width=_CLIP_WIDTH,
            heads=4,
            layers=3,
        ),
        quick_gelu=False,
    )
    clip.visual.conv1 = _conv_stem(_CLIP_WIDTH)
    clip.visual.transformer.resblocks = nn.ModuleList(
        _LocalAttentionBlock(radius) for radius in _ATTENTION_RADII
    )
    return clip


def build_sam() -> Sam:
    """Build the tiny SAM without weights.

    It takes pictures of 96 x 96 pixels, encodes them on a grid of 12 x 12 and predicts mask logits
    of 48 x 48.
    """
    encoder = ImageEncoderViT(
        img_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        embed_dim=_SAM_WIDTH,
        depth=4,
        num_heads=4,
        out_chans=_SAM_PROMPT_WIDTH,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=GRID // 2,
        global_attn_indexes=(1, 3),
    )
    encoder.patch_embed.proj = _conv_stem(_SAM_WIDTH)
    return Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=_SAM_PROMPT_WIDTH,
            image_embedding_size=(GRID, GRID),
            input_image_size=(IMAGE_SIZE, IMAGE_SIZE),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=_SAM_PROMPT_WIDTH,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=_SAM_PROMPT_WIDTH, num_heads=4, mlp_dim=256
            ),
            num_multimask_outputs=3,
            iou_head_depth=3,
            iou_head_hidden_dim=96,
        ),
    )


def tokenizer() -> WordTokenizer:
    """Return the tokenizer of the tiny CLIP."""
    return WordTokenizer()


def load_clip() -> CLIP:
    """Load the pretrained tiny CLIP and freeze it."""
    return _frozen(build_clip(), WEIGHTS / "clip.safetensors")


def load_sam() -> Sam:
    """Load the pretrained tiny SAM and freeze it.

    Its `pixel_mean` and `pixel_std` are for pixel values in [0, 255].
    """
    return _frozen(build_sam(), WEIGHTS / "sam.safetensors")


class _LocalAttentionBlock(ResidualAttentionBlock):
    """An open_clip block in which a patch attends only to patches at most `radius` away.

    Its buffer `local_mask` [1 + L, 1 + L] is 0 where attention is allowed and -inf elsewhere. The
    class token attends to all tokens, and no patch attends to the class token. The buffer is not
    saved, so the state dict has the same keys as open_clip's.
    """

    def __init__(self, radius: int) -> None:
        super().__init__(_CLIP_WIDTH, _CLIP_WIDTH // _CLIP_HEAD_WIDTH, _CLIP_MLP_RATIO)
        self.register_buffer("local_mask", _local_mask(radius), persistent=False)

    def forward(
        self,
        q_x: torch.Tensor,
        k_x: torch.Tensor | None = None,
        v_x: torch.Tensor | None = None,
        attn_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return super().forward(q_x, k_x, v_x, self.local_mask if attn_mask is None else attn_mask)


def _local_mask(radius: int) -> torch.Tensor:
    """Return the attention mask that `_LocalAttentionBlock` describes."""
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], 1)
    near = (places[:, None] - places).abs().amax(-1) <= radius
    mask = torch.zeros(1 + GRID**2, 1 + GRID**2)
    mask[1:, 1:].masked_fill_(~near, float("-inf"))
    mask[1:, 0] = float("-inf")
    return mask


def _conv_stem(width: int) -> nn.Sequential:
    """Return a stack of convolutions that replaces the 8 x 8 patch convolution.

    The toy world's pictures consist of edges, which such a stack learns faster.
    """

    def halve(before: int, after: int) -> list[nn.Module]:
        return [
            nn.Conv2d(before, after, 3, 2, 1, bias=False),
            nn.GroupNorm(1, after),
            nn.GELU(),
        ]

    return nn.Sequential(
        *halve(3, 24),
        *halve(24, 48),
        *halve(48, 96),
        nn.Conv2d(96, width, 1, bias=False),
    )


def _frozen(model: Model, path: Path) -> Model:
    """Load the weights at `path` into the model, and freeze it in evaluation mode."""
    model.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return model.eval().requires_grad_(False)

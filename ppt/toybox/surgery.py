"""The tiny CLIP's patch tokens with gradients, for its pretraining and its measurement.

The frozen encoder of the method (ppt.models.clip_encoder) makes the same tokens without gradients.
"""

import torch
from open_clip.model import CLIP
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from ppt.toybox.tokenizer import WordTokenizer


def patch_tokens(
    visual: VisionTransformer, images: Tensor, depth: int, corner: tuple[int, int] = (0, 0)
) -> tuple[Tensor, Tensor, Tensor]:
    """Class embedding [B, D], patch embeddings [B, L, D] and the same by CLIP Surgery [B, L, D].

    images: [B, 3, H, W], normalised; at most the network's size. A smaller picture is a piece of a
    full one: it is seen as if its upper left patch were the one in row and column `corner`.
    depth: blocks of the surgery path. All embeddings are L2-normalised.
    """
    patches = visual.conv1(images)
    seen = _token_numbers(visual, patches.shape[-2:], corner)
    first = visual.class_embedding.expand(len(images), 1, -1)
    x = torch.cat([first, patches.flatten(2).transpose(1, 2)], 1)
    x = surgery = visual.ln_pre(x + visual.positional_embedding[seen])
    blocks = visual.transformer.resblocks
    for number, block in enumerate(blocks):
        fence = block.local_mask[seen][:, seen]
        if number == len(blocks) - depth:
            surgery = x
        if number >= len(blocks) - depth:
            surgery = surgery + _value_attention(block, x, fence)
        x = block(x, attn_mask=fence)
    tokens, surgery = (F.normalize(visual.ln_post(t) @ visual.proj, dim=-1) for t in (x, surgery))
    return tokens[:, 0], tokens[:, 1:], surgery[:, 1:]


def _token_numbers(
    visual: VisionTransformer, size: tuple[int, int], corner: tuple[int, int]
) -> Tensor:
    """Numbers of the class token and of the patches in a window of the grid."""
    rows, columns = visual.grid_size
    grid = 1 + torch.arange(rows * columns).view(rows, columns)
    (height, width), (top, left) = size, corner
    window = grid[top : top + height, left : left + width]
    return torch.cat([torch.tensor([0]), window.flatten()])


def _value_attention(block: ResidualAttentionBlock, x: Tensor, fence: Tensor) -> Tensor:
    """CLIP Surgery's softmax(v v^T) v within the block's fence. [B, 1 + L, D] -> same."""
    attention = block.attn
    batch, length, width = x.shape
    values = F.linear(
        block.ln_1(x), attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :]
    )
    heads = values.view(batch, length, attention.num_heads, -1).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(heads, heads, heads, attn_mask=fence)
    return attention.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))


def encode_texts(clip: CLIP, texts: list[str]) -> Tensor:
    """[T, D], L2-normalised: clip.encode_text without the padding behind the longest text.

    The text tower is causal, so what follows a text's end does not change it.
    """
    tokens = WordTokenizer()(texts)
    ends = tokens.argmax(1)
    length = int(ends.max()) + 1
    x = clip.token_embedding(tokens[:, :length]) + clip.positional_embedding[:length]
    x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
    return F.normalize(x[torch.arange(len(x)), ends] @ clip.text_projection, dim=-1)


def phrase_directions(clip: CLIP, phrases: list[str], templates: tuple[str, ...]) -> Tensor:
    """[T, D]: each phrase's mean over the templates, normalised, minus that of the empty phrase."""
    texts = [template.format(phrase) for phrase in (*phrases, "") for template in templates]
    embeddings = encode_texts(clip, texts).view(len(phrases) + 1, len(templates), -1)
    means = F.normalize(embeddings.mean(1), dim=-1)
    return means[:-1] - means[-1]

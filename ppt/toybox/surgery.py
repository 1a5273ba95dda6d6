"""The tiny CLIP's tokens with gradients, for its pretraining and its measurement.

The method's frozen encoder, `ppt.models.clip_encoder`, computes the same tokens without gradients.
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
    """Encode pictures with the visual tower.

    Args:
        visual: the tower, with `_LocalAttentionBlock`s.
        images: normalised pixels, [B, 3, H, W], at most as large as the tower's input. Smaller
            pictures are encoded as pieces of a full one.
        depth: the number of last blocks on CLIP Surgery's path.
        corner: the (row, column) of a piece's upper left patch in the full picture.

    Returns:
        The class embeddings [B, D], the patch embeddings [B, L, D] and CLIP Surgery's patch
        embeddings [B, L, D], all L2-normalised.
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
    """Return the numbers of the class token and of the patches in a window of the grid.

    `size` is the window's (height, width) in patches, `corner` the (row, column) where it begins.
    """
    rows, columns = visual.grid_size
    grid = 1 + torch.arange(rows * columns).view(rows, columns)
    (height, width), (top, left) = size, corner
    window = grid[top : top + height, left : left + width]
    return torch.cat([torch.tensor([0]), window.flatten()])


def _value_attention(block: ResidualAttentionBlock, x: Tensor, fence: Tensor) -> Tensor:
    """Return CLIP Surgery's attention softmax(v v^T) v for tokens `x` [B, 1 + L, D].

    `fence` [1 + L, 1 + L] is the block's attention mask. The result has the shape of `x`.
    """
    attention = block.attn
    batch, length, width = x.shape
    values = F.linear(
        block.ln_1(x), attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :]
    )
    heads = values.view(batch, length, attention.num_heads, -1).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(heads, heads, heads, attn_mask=fence)
    return attention.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))


def encode_texts(clip: CLIP, texts: list[str]) -> Tensor:
    """Return the L2-normalised embeddings [T, D] of the texts.

    The result equals that of `clip.encode_text`, but the padding after the longest text is left
    out. The text tower is causal, so tokens after the end of a text do not change its embedding.
    """
    tokens = WordTokenizer()(texts)
    ends = tokens.argmax(1)
    length = int(ends.max()) + 1
    x = clip.token_embedding(tokens[:, :length]) + clip.positional_embedding[:length]
    x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
    return F.normalize(x[torch.arange(len(x)), ends] @ clip.text_projection, dim=-1)


def phrase_directions(clip: CLIP, phrases: list[str], templates: tuple[str, ...]) -> Tensor:
    """Return [T, D], the embedding of each phrase minus that of the empty phrase.

    The embedding of a phrase is the normalised mean over the templates.
    """
    texts = [template.format(phrase) for phrase in (*phrases, "") for template in templates]
    embeddings = encode_texts(clip, texts).view(len(phrases) + 1, len(templates), -1)
    means = F.normalize(embeddings.mean(1), dim=-1)
    return means[:-1] - means[-1]

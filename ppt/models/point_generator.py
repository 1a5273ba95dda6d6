"""The point generator: the only trainable part (Section 3.1.1, Eq. 1 and 2).

Unlike in the paper, the points of Eq. 2 are offsets from the place where their query looked in the
last attention to the picture (our choice, without parameters): a gradient at a point then also
tells the attention where to look.

Letters: I pictures, B expressions, L patches of a square grid, D visual width, T words, Dt text
width, d hidden size, K queries, M points of a query.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppt.models.fusion import FewQueriesAttention, Fusion
from ppt.models.precision import full_precision


class PointGenerator(nn.Module):
    """K queries look at the fused levels one after another and become K prompts with scores."""

    def __init__(
        self,
        visual_dim: int,
        text_dim: int,
        num_levels: int,
        *,
        num_queries: int,
        num_points: int,
        hidden_size: int,
        num_heads: int,
        ffn_size: int,
        fusion_size: int,
        head_size: int,
    ) -> None:
        super().__init__()
        self.num_points = num_points
        self.queries = nn.Parameter(torch.randn(num_queries, hidden_size))  # Q_1
        self.levels = nn.ModuleList(
            _Level(
                Fusion(visual_dim, text_dim, fusion_size, num_heads, first=n == 0),
                _Layer(hidden_size, visual_dim, num_heads, ffn_size),
                _Layer(hidden_size, text_dim, num_heads, ffn_size),
            )
            for n in range(num_levels)
        )
        self.point_head = _mlp(hidden_size, head_size, 3 * num_points)
        self.score_head = _mlp(hidden_size, head_size, 1)
        self._spread_points()

    def _spread_points(self) -> None:
        """Let the M points of a query start apart, about an eighth of the picture off its place."""
        bias = self.point_head[-1].bias.data.view(self.num_points, 3)
        bias[:, :2] = 0.5 * torch.randn(self.num_points, 2)
        bias[:, 2] = 0

    def forward(
        self,
        visual_features: Sequence[Tensor],
        word_features: Tensor,
        word_mask: Tensor,
        picture_index: Tensor,
    ) -> dict[str, Tensor]:
        """Generate the point prompts of B expressions.

        Args:
            visual_features: N levels of [I, L, D].
            word_features: [B, T, Dt].
            word_mask: [B, T], True for real words.
            picture_index: [B], the picture of each expression.

        Returns:
            `pred_points` [B, K, M, 2] normalised (x, y), `pred_point_logits` [B, K, M], positive
            for foreground, and `pred_referent_logits` [B, K]. While training also what the same
            heads read from the queries after each earlier level, as `aux_pred_points`
            [N - 1, B, K, M, 2] and so on: deep supervision as in DETR (our choice).
        """
        words = _normalise(word_features)
        queries = self.queries.expand(len(words), -1, -1)
        previous = None
        read = []
        for level, visual in zip(self.levels, visual_features, strict=True):
            # The tokens of every level get one scale, and their positions are added (our choice).
            visual = _normalise(visual)
            visual = visual + _sine_positions(visual.shape[1], visual.shape[2]).to(visual)
            visual, level_words, previous = level.fusion(
                visual, words, word_mask, picture_index, previous
            )
            queries, looked_at = level.look_at_picture(queries, visual)
            queries, _ = level.look_at_words(queries, level_words, word_mask)
            read.append((queries, looked_at))
        outputs = self._read(*read[-1])
        if self.training and len(read) > 1:
            earlier = [self._read(*one) for one in read[:-1]]
            outputs |= {f"aux_{name}": torch.stack([e[name] for e in earlier]) for name in outputs}
        return outputs

    def _read(self, queries: Tensor, looked_at: Tensor) -> dict[str, Tensor]:
        """Apply the heads of Eq. 2 to queries [B, K, d] that looked at patches [B, K, L]."""
        with full_precision(queries.device):
            queries, looked_at = queries.float(), looked_at.float()
            place = looked_at @ _patch_centres(looked_at.shape[-1]).to(looked_at)  # [B, K, 2]
            points = self.point_head(queries).unflatten(-1, (self.num_points, 3))
            return {
                "pred_points": (place.logit()[:, :, None] + points[..., :2]).sigmoid(),
                "pred_point_logits": points[..., 2],
                "pred_referent_logits": self.score_head(queries).squeeze(-1),
            }


class _Level(nn.Module):
    """The fusion of a level, and the two attentions of the queries to it."""

    def __init__(self, fusion: Fusion, look_at_picture: _Layer, look_at_words: _Layer) -> None:
        super().__init__()
        self.fusion = fusion
        self.look_at_picture = look_at_picture
        self.look_at_words = look_at_words


class _Layer(nn.Module):
    """CrossAttn of Eq. 1: attention and a feed-forward net, each with a residual and a norm."""

    def __init__(self, dim: int, kv_dim: int, num_heads: int, ffn_size: int) -> None:
        super().__init__()
        self.attention = FewQueriesAttention(dim, kv_dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_size), nn.ReLU(), nn.Linear(ffn_size, dim))
        self.norm2 = nn.LayerNorm(dim)

    def forward(
        self, queries: Tensor, memory: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the new queries [B, K, d] and where they looked [B, K, S]."""
        found, looked_at = self.attention(queries, memory, mask)
        queries = self.norm1(queries + found)
        return self.norm2(queries + self.ffn(queries)), looked_at


def _mlp(dim: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, out),
    )


def _normalise(tokens: Tensor) -> Tensor:
    """Apply a layer norm without parameters, in float32."""
    return F.layer_norm(tokens.float(), tokens.shape[-1:])


# The results are kept for training too, so they are made outside of inference mode.
@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)
def _patch_centres(num_patches: int) -> Tensor:
    """The centres [L, 2] of the patches of a square grid, row by row: normalised (x, y)."""
    grid = math.isqrt(num_patches)
    assert grid * grid == num_patches
    centre = (torch.arange(grid) + 0.5) / grid
    return torch.cartesian_prod(centre, centre).flip(1)


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)
def _sine_positions(num_patches: int, dim: int) -> Tensor:
    """Sines and cosines [L, D] of x and y, with half a period to eight periods in a picture."""
    assert dim % 4 == 0
    frequency = 2 * math.pi * 2 ** torch.linspace(-1, 3, dim // 4)
    angles = _patch_centres(num_patches)[..., None] * frequency  # [L, 2, D / 4]
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)

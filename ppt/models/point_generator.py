"""The point generator: the only trainable part (Section 3.1.1, Eq. 1 and 2).

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


class PointGenerator(nn.Module):
    """K point queries look at the fused stages in turn and become K point prompts with scores."""

    def __init__(
        self,
        visual_dim: int,
        text_dim: int,
        num_stages: int,
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
        self.stages = nn.ModuleList(
            _Stage(
                Fusion(visual_dim, text_dim, fusion_size, num_heads, first=n == 0),
                _Layer(hidden_size, visual_dim, num_heads, ffn_size),
                _Layer(hidden_size, text_dim, num_heads, ffn_size),
            )
            for n in range(num_stages)
        )
        self.point_head = _mlp(hidden_size, head_size, 3 * num_points)
        self.score_head = _mlp(hidden_size, head_size, 1)
        self._spread_points()

    def _spread_points(self) -> None:
        """Start the M points of a query apart, all over the picture, with even labels."""
        bias = self.point_head[-1].bias.data.view(self.num_points, 3)
        bias[:, :2] = torch.logit(torch.rand(self.num_points, 2) * 0.8 + 0.1)
        bias[:, 2] = 0

    def forward(
        self,
        visual_features: Sequence[Tensor],
        word_features: Tensor,
        word_mask: Tensor,
        picture_index: Tensor,
    ) -> dict[str, Tensor]:
        """N stages of [I, L, D], words [B, T, Dt] and their mask, expression -> picture [B].

        Returns `pred_points` [B, K, M, 2] normalised (x, y), `pred_point_logits` [B, K, M]
        (foreground > 0) and `pred_referent_logits` [B, K].
        """
        words = _normalise(word_features)
        queries = self.queries.expand(len(words), -1, -1)
        previous = None
        for stage, visual in zip(self.stages, visual_features, strict=True):
            # Tokens of every stage come at one scale and say where they are (our choice).
            visual = _normalise(visual)
            visual = visual + _sine_positions(visual.shape[1], visual.shape[2]).to(visual)
            visual, stage_words, previous = stage.fusion(
                visual, words, word_mask, picture_index, previous
            )
            queries = stage.look_at_picture(queries, visual)
            queries = stage.look_at_words(queries, stage_words, word_mask)
        points = self.point_head(queries).unflatten(-1, (self.num_points, 3))
        return {
            "pred_points": points[..., :2].sigmoid(),
            "pred_point_logits": points[..., 2],
            "pred_referent_logits": self.score_head(queries).squeeze(-1),
        }


class _Stage(nn.Module):
    def __init__(self, fusion: Fusion, look_at_picture: _Layer, look_at_words: _Layer) -> None:
        super().__init__()
        self.fusion = fusion
        self.look_at_picture = look_at_picture
        self.look_at_words = look_at_words


class _Layer(nn.Module):
    """CrossAttn of Eq. 1: attention and feed-forward net, residual and norm after each as DETR."""

    def __init__(self, dim: int, kv_dim: int, num_heads: int, ffn_size: int) -> None:
        super().__init__()
        self.attention = FewQueriesAttention(dim, kv_dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_size), nn.ReLU(), nn.Linear(ffn_size, dim))
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        queries = self.norm1(queries + self.attention(queries, memory, mask))
        return self.norm2(queries + self.ffn(queries))


def _mlp(dim: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, out),
    )


def _normalise(tokens: Tensor) -> Tensor:
    """Layer norm without parameters, in float32 (features are stored in half precision)."""
    return F.layer_norm(tokens.float(), tokens.shape[-1:])


@functools.lru_cache(maxsize=8)
def _sine_positions(num_patches: int, dim: int) -> Tensor:
    """[L, D] sines and cosines of x and y, half a period to eight periods across the picture."""
    grid = math.isqrt(num_patches)
    assert grid * grid == num_patches and dim % 4 == 0
    centre = (torch.arange(grid) + 0.5) / grid
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    frequency = 2 * math.pi * 2 ** torch.linspace(-1, 3, dim // 4)
    angles = [axis.flatten()[:, None] * frequency for axis in (x, y)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)

"""The point generator: the only trainable part (Section 3.1.1, Eq. 1 and 2).

One thing the paper does not have: the points of Eq. 2 are offsets from where their query looked in
the last picture attention (our choice, without parameters). With free coordinates nothing told
the attention which way to go until the point head could read positions, and the point head nothing
to read until the attention knew: with one query in the toy world, 9% of the queries' places lay on
the referent after 200 steps of 32, with the reference 62% (one seed).

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
        """Start the M points of a query apart: about an eighth of the picture off its place."""
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
        """N stages of [I, L, D], words [B, T, Dt] and their mask, expression -> picture [B].

        Returns `pred_points` [B, K, M, 2] normalised (x, y), `pred_point_logits` [B, K, M]
        (foreground > 0) and `pred_referent_logits` [B, K]. While training also what the same heads
        read from the queries of the stages before, as `aux_pred_points` [N - 1, B, K, M, 2] and so
        on: deep supervision as DETR has it (our choice).
        """
        words = _normalise(word_features)
        queries = self.queries.expand(len(words), -1, -1)
        previous = None
        read = []
        for stage, visual in zip(self.stages, visual_features, strict=True):
            # Tokens of every stage come at one scale and say where they are (our choice).
            visual = _normalise(visual)
            visual = visual + _sine_positions(visual.shape[1], visual.shape[2]).to(visual)
            visual, stage_words, previous = stage.fusion(
                visual, words, word_mask, picture_index, previous
            )
            queries, looked_at = stage.look_at_picture(queries, visual)
            queries, _ = stage.look_at_words(queries, stage_words, word_mask)
            read.append((queries, looked_at))
        outputs = self._read(*read[-1])
        if self.training and len(read) > 1:
            earlier = [self._read(*one) for one in read[:-1]]
            outputs |= {f"aux_{name}": torch.stack([e[name] for e in earlier]) for name in outputs}
        return outputs

    def _read(self, queries: Tensor, looked_at: Tensor) -> dict[str, Tensor]:
        """Eq. 2: the heads' answers for queries [B, K, d] that looked at patches [B, K, L]."""
        with full_precision(queries.device):
            queries, looked_at = queries.float(), looked_at.float()
            place = looked_at @ _patch_centres(looked_at.shape[-1]).to(looked_at)  # [B, K, 2]
            points = self.point_head(queries).unflatten(-1, (self.num_points, 3))
            return {
                "pred_points": (place.logit()[:, :, None] + points[..., :2]).sigmoid(),
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

    def forward(
        self, queries: Tensor, memory: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Queries [B, K, d] and where they looked [B, K, S]."""
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
    """Layer norm without parameters, in float32 (features are stored in half precision)."""
    return F.layer_norm(tokens.float(), tokens.shape[-1:])


# What these make is kept and must serve training, also where it was first asked for at inference.
@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)
def _patch_centres(num_patches: int) -> Tensor:
    """[L, 2] normalised (x, y) of the patches of a square grid, row by row."""
    grid = math.isqrt(num_patches)
    assert grid * grid == num_patches
    centre = (torch.arange(grid) + 0.5) / grid
    return torch.cartesian_prod(centre, centre).flip(1)


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)
def _sine_positions(num_patches: int, dim: int) -> Tensor:
    """[L, D] sines and cosines of x and y, half a period to eight periods across the picture."""
    assert dim % 4 == 0
    frequency = 2 * math.pi * 2 ** torch.linspace(-1, 3, dim // 4)
    angles = _patch_centres(num_patches)[..., None] * frequency  # [L, 2, D / 4]
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)

"""The point generator: the only trainable part (Section 3.1.1, Eq. 1 and 2).

Unlike in the paper, each of the M points of Eq. 2 looks at the picture for itself, beginning where
its query looked, and its label is read from the picture where it lies.

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

from ppt.models.fusion import FewQueriesAttention, Fusion, dot_products

NO_POINT = -1
"""The label of a point that the segmenter ignores."""


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
        positive_above: float,
        negative_below: float,
    ) -> None:
        super().__init__()
        self.num_points = num_points
        self.positive_above, self.negative_below = positive_above, negative_below
        self.queries = nn.Parameter(torch.randn(num_queries, hidden_size))  # Q_1
        self.levels = nn.ModuleList(
            _Level(
                Fusion(visual_dim, text_dim, fusion_size, num_heads, first=n == 0),
                _Layer(hidden_size, visual_dim, num_heads, ffn_size),
                _Layer(hidden_size, text_dim, num_heads, ffn_size),
            )
            for n in range(num_levels)
        )
        self.point_head = _PointHead(hidden_size, visual_dim, num_points, head_size)
        self.score_head = _mlp(hidden_size, head_size, 1)

    def forward(
        self,
        visual_features: Sequence[Tensor],
        word_features: Tensor,
        word_mask: Tensor,
        picture_index: Tensor,
        *,
        read_all: bool = True,
    ) -> dict[str, Tensor]:
        """Generate the point prompts of B expressions.

        Args:
            visual_features: N levels of [I, L, D].
            word_features: [B, T, Dt].
            word_mask: [B, T], True for real words.
            picture_index: [B], the picture of each expression.
            read_all: whether the heads read the queries after every level, or after the last alone.

        Returns:
            `pred_points` [B, K, M, 2] normalised (x, y), `pred_point_logits` [B, K, M], positive
            for foreground, `pred_referent_logits` [B, K], and `attention` [B, K, L], where each
            query looked in the last level. Also what the same heads read from the queries after
            each earlier level, as `aux_pred_points` [N - 1, B, K, M, 2] and so on, for deep
            supervision as in DETR and for the confidence in a mask. Without `read_all` these have
            no level.
        """
        words = _normalise(word_features)
        queries = self.queries.expand(len(words), -1, -1)
        previous = None
        read = []
        for level, visual in zip(self.levels, visual_features, strict=True):
            # The tokens of every level get one scale, and their positions are added.
            visual = _normalise(visual)
            visual = visual + _sine_positions(*visual.shape[1:], visual.device)
            visual, level_words, previous = level.fusion(
                visual, words, word_mask, picture_index, previous
            )
            queries, looked_at = level.look_at_picture(queries, visual)
            queries, _ = level.look_at_words(queries, level_words, word_mask)
            read.append((queries, looked_at, visual))
        wanted = read if read_all else read[-1:]
        *earlier, outputs = [self._read(*level) for level in wanted]
        aux = {
            f"aux_{name}": torch.stack([e[name] for e in earlier]) if earlier else value[None][:0]
            for name, value in outputs.items()
        }
        return outputs | aux | {"attention": read[-1][1]}

    def prompt_labels(self, point_logits: Tensor) -> Tensor:
        """Turn logits [P, M] into the labels of prompts: 1 foreground, 0 background, or `NO_POINT`.

        A point whose label is uncertain is left out. The point with the highest logit of a prompt
        is always foreground, for without such a point a segmenter segments nothing in particular.
        """
        labels = torch.full_like(point_logits, NO_POINT, dtype=torch.long)
        labels = labels.masked_fill(point_logits > self.positive_above, 1)
        labels = labels.masked_fill(point_logits < self.negative_below, 0)
        return labels.scatter(1, point_logits.argmax(1, keepdim=True), 1)

    def _read(self, queries: Tensor, looked_at: Tensor, visual: Tensor) -> dict[str, Tensor]:
        """Apply the heads of Eq. 2 to queries [B, K, d] that looked at patches [B, K, L].

        `visual` [B, L, D] are the fused patches.
        """
        points, point_logits = self.point_head(queries, looked_at, visual)
        return {
            "pred_points": points,
            "pred_point_logits": point_logits,
            "pred_referent_logits": self.score_head(queries).squeeze(-1),
        }


class _PointHead(nn.Module):
    """P and r of Eq. 2: the M points of every query, and how likely each is to be foreground."""

    def __init__(self, dim: int, visual_dim: int, num_points: int, head_size: int) -> None:
        super().__init__()
        self.points = nn.Parameter(0.5 * torch.randn(num_points, dim))  # what tells them apart
        self.look_for = nn.Linear(dim, visual_dim, bias=False)
        self.found = nn.Linear(visual_dim, dim)
        self.at_point = nn.Linear(visual_dim, dim, bias=False)
        self.offset_head = _mlp(dim, head_size, 2)
        self.label_head = _mlp(dim, head_size, 1)
        for linear in (self.look_for, self.found):
            nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(self.found.bias)

    def forward(self, queries: Tensor, looked_at: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the points [B, K, M, 2], normalised (x, y), and their label logits [B, K, M].

        A point lies off the place where it looked, the mean of its attention, by an offset. Its
        label depends on the patches around the point, but does not move it.
        """
        # A patch's score is a dot product with a query plus a point; it is the sum of two products.
        points = self.look_for(self.points).expand(len(queries), -1, -1)
        wanted = torch.cat([self.look_for(queries), points], dim=1) * visual.shape[2] ** -0.5
        by_query = (queries.shape[1], len(self.points))
        of_query, of_point = dot_products(wanted, visual).split(by_query, dim=1)
        scores = (of_query + looked_at.clamp(min=1e-6).log())[:, :, None] + of_point[:, None]
        attended = scores.softmax(-1).flatten(1, 2)  # [B, K M, L]
        states = (queries[:, :, None] + self.points).flatten(1, 2)  # [B, K M, d]
        states = states + self.found(attended @ visual)
        place = attended @ patch_centres(attended.shape[-1], attended.device)  # [B, K M, 2]
        points = (place.logit() + self.offset_head(states)).sigmoid()
        around = _bilinear(visual, points.detach())
        logits = self.label_head(states + self.at_point(around)).squeeze(-1)
        return points.unflatten(1, by_query), logits.unflatten(1, by_query)


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


def _bilinear(visual: Tensor, points: Tensor) -> Tensor:
    """Interpolate patches [B, L, D] of a square grid at points [B, P, 2]: [B, P, D].

    A point takes from a patch, in x and in y, one minus its distance to it in patches. Beyond the
    outermost centres nothing changes.
    """
    grid = math.isqrt(visual.shape[1])
    at = (points * grid - 0.5).clamp(0, grid - 1)
    share = (1 - (at[..., None] - torch.arange(grid, device=at.device)).abs()).relu()
    of_x, of_y = share.unbind(-2)  # [B, P, grid]
    return (of_y[..., None] * of_x[..., None, :]).flatten(2) @ visual


# The results are kept on their device, since a copy makes the host of a GPU wait for it. They are
# kept for training too, so they are made outside of inference mode.
@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)
def patch_centres(num_patches: int, device: torch.device) -> Tensor:
    """Return the centres [L, 2] of the L cells of a square grid, row by row: normalised (x, y)."""
    grid = math.isqrt(num_patches)
    assert grid * grid == num_patches
    centre = (torch.arange(grid, device=device) + 0.5) / grid
    return torch.cartesian_prod(centre, centre).flip(1)


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)
def _sine_positions(num_patches: int, dim: int, device: torch.device) -> Tensor:
    """Sines and cosines [L, D] of x and y, with half a period to eight periods in a picture."""
    assert dim % 4 == 0
    frequency = 2 * math.pi * 2 ** torch.linspace(-1, 3, dim // 4, device=device)
    angles = patch_centres(num_patches, device)[..., None] * frequency  # [L, 2, D / 4]
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)

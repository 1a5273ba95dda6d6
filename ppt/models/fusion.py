"""Vision-language fusion of one level, after ETRIS (arXiv 2307.11545), the paper's reference [63].

Unlike there, nothing is fed back into the encoders, so that their features can be
stored. Letters: I pictures, B expressions, L patches, T words, Q queries, S places to look at, D
and Dt the widths of picture and text.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention with keys and values of another width than the queries.

    It is written out because torch's fused kernel is slower on a CPU for heads of this size. Keys
    have no bias, since it would add the same number to every score of a query.
    """

    def __init__(self, dim: int, kv_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(kv_dim, dim, bias=False)
        self.v = nn.Linear(kv_dim, dim)
        self.out = nn.Linear(dim, dim)
        for linear in (self.q, self.k, self.v, self.out):
            nn.init.xavier_uniform_(linear.weight)
        for linear in (self.q, self.v, self.out):
            nn.init.zeros_(linear.bias)

    def forward(self, query: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from queries [B, Q, dim] to a memory [B, S, kv_dim]: [B, Q, dim].

        `mask` [B, S] is True where queries may look.
        """
        q, k, v = self._queries(query), self._split(self.k(memory)), self._split(self.v(memory))
        if query.shape[1] < memory.shape[1]:
            found = _weights(q @ k.transpose(2, 3), mask) @ v
        else:  # the same with queries last: a CPU is quick along the last dimension if it is long
            weights = _weights(k @ q.transpose(2, 3), mask, keys=2)
            found = (v.transpose(2, 3) @ weights).transpose(2, 3)
        return self.out(found.transpose(1, 2).flatten(2))

    def _queries(self, query: Tensor) -> Tensor:
        """Project queries, split them into heads, and scale them: [B, heads, Q, dim / heads]."""
        q = self._split(self.q(query))
        return q * q.shape[-1] ** -0.5

    def _split(self, x: Tensor) -> Tensor:
        """Split [B, S, dim] into heads: [B, heads, S, dim / heads]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def dot_products(query: Tensor, memory: Tensor) -> Tensor:
    """Multiply each query [B, Q, D] with each place of a memory [B, S, D]: [B, Q, S].

    The memory is the first factor, so that its gradient comes in the order of its own elements.
    """
    return (memory @ query.transpose(1, 2)).transpose(1, 2)


def _weights(scores: Tensor, mask: Tensor | None, keys: int = 3) -> Tensor:
    """Turn scores [B, heads, Q, S], or [B, heads, S, Q] with `keys=2`, into attention weights.

    `mask` is [B, S].
    """
    if mask is not None:
        mask = mask[:, None, None] if keys == 3 else mask[:, None, :, None]
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(keys)


class FewQueriesAttention(Attention):
    """The same function for few queries and many keys, at less cost.

    Since q . (W_k x) = (W_k^T q) . x and sum_s a_s W_v x_s = W_v sum_s a_s x_s, the queries and the
    results are projected, and no key or value is computed.
    """

    def forward(  # type: ignore[override]
        self, query: Tensor, memory: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return also where each query looked: the mean of the heads' weights, [B, Q, S]."""
        w_k, w_v = (p.weight.unflatten(0, (self.num_heads, -1)) for p in (self.k, self.v))
        # c is a channel of a head, d one of the memory; einsum multiplies all pictures at once.
        lifted = torch.einsum("bhqc,hcd->bhqd", self._queries(query), w_k)
        scores = dot_products(lifted.flatten(1, 2), memory)
        weights = _weights(scores.unflatten(1, lifted.shape[1:3]), mask)
        mixed = (weights.flatten(1, 2) @ memory).view_as(lifted)
        found = torch.einsum("bhqd,hcd->bqhc", mixed, w_v)
        return self.out(found.flatten(2) + self.v.bias), weights.mean(1)


class Fusion(nn.Module):
    """Patches look at words and words at patches; each is multiplied by what it found."""

    def __init__(
        self, visual_dim: int, text_dim: int, fusion_size: int, num_heads: int, *, first: bool
    ) -> None:
        """`first` says that there is no previous level whose result is added."""
        super().__init__()
        self.down_visual = nn.Linear(visual_dim, fusion_size)
        self.down_words = nn.Linear(text_dim, fusion_size)
        self.norm_visual = None if first else nn.LayerNorm(fusion_size)
        self.norm_words = None if first else nn.LayerNorm(fusion_size)
        self.attend_words = Attention(fusion_size, fusion_size, num_heads)
        self.attend_visual = Attention(fusion_size, fusion_size, num_heads)
        self.up_visual = nn.Linear(fusion_size, visual_dim)
        self.up_words = nn.Linear(fusion_size, text_dim)

    def forward(
        self,
        visual: Tensor,
        words: Tensor,
        word_mask: Tensor,
        picture_index: Tensor,
        previous: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Fuse the features of a level.

        Args:
            visual: [I, L, D], the patches of each picture.
            words: [B, T, Dt].
            word_mask: [B, T], True for real words.
            picture_index: [B], the picture of each expression.
            previous: what the previous level returned as its last value.

        Returns:
            V'_n [B, L, D] and T_n [B, T, Dt] of Section 3.1.1, and what the next level adds.
        """
        v = self.down_visual(visual)[picture_index]
        t = self.down_words(words)
        if previous is not None:
            v = self.norm_visual(v + previous[0])
            t = self.norm_words(t + previous[1])
        fused_v = v * self.attend_words(v, t, word_mask)
        fused_t = t * self.attend_visual(t, v)
        visual = visual[picture_index] + self.up_visual(fused_v)
        return visual, words + self.up_words(fused_t), (v, t)

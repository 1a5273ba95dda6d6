"""The interface of the encoder of pictures and texts.

Letters: B pictures or texts, S side of the encoder's pictures in pixels, L = `grid` * `grid`
patches, D `visual_dim`, T = `context_length` words, Dt `text_dim`, E `embed_dim`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor


@dataclass
class ImageFeatures:
    """The features of B pictures.

    `visual_features` are the patch tokens of each level, [B, L, D]. `surgery_tokens`
    [B, 1 + L, E] lie in the space that pictures and texts share and have length 1: first the
    embedding of the whole picture, then those of the patches.
    """

    visual_features: list[Tensor]
    surgery_tokens: Tensor


class ImageTextEncoder(Protocol):
    """A frozen encoder of pictures and texts, for example CLIP.

    Patches are numbered row by row. The picture is squashed to a square, so patch (row, column)
    covers the same share of the picture's height and width, whatever its size.
    """

    @property
    def grid(self) -> int:
        """The number of patches along each side of a picture."""

    @property
    def num_levels(self) -> int:
        """The number of levels of the picture encoder whose features are returned."""

    @property
    def visual_dim(self) -> int:
        """The width of a level's patch tokens."""

    @property
    def text_dim(self) -> int:
        """The width of word features."""

    @property
    def embed_dim(self) -> int:
        """The width of the space that pictures and texts share."""

    @property
    def context_length(self) -> int:
        """The number of words of a text, counted as the tokenizer counts them."""

    @property
    def fingerprint(self) -> str:
        """A hash (hex) of the weights and of every setting that the features depend on."""

    def parameters(self) -> Iterator[Tensor]:
        """The weights."""

    def to(self, device: torch.device | str) -> Self:
        """Move the encoder to a device and return it."""

    def preprocess(self, image: np.ndarray) -> Tensor:
        """Squash and normalise a picture, uint8 [H, W, 3] RGB: float [3, S, S] on the CPU."""

    def encode_images(self, pixels: Tensor) -> ImageFeatures:
        """Compute the features of pictures [B, 3, S, S], each from `preprocess`, in one pass."""

    def encode_words(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Compute the features of every word of B texts.

        Returns:
            Features [B, T, Dt], and bool [B, T] that is True for real words. Features beyond the
            end of a text mean nothing. Longer texts are cut.
        """

    def words_read(self, text: str) -> list[tuple[str, bool]]:
        """Return the words of a text in their order, and whether the encoder reads each of them.

        It does not read words beyond its context, nor those that its tokenizer does not know.
        """

    def encode_phrases(self, phrases: Sequence[str]) -> Tensor:
        """Compute one embedding of length 1 for each phrase, [B, E], as in `surgery_tokens`."""

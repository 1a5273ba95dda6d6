"""The interface of a promptable segmenter, and the coordinate frame in which it works.

A segmenter turns a picture into features, and features and points into masks. It is frozen. To add
one, write a class with these members and name its builder in `ppt.models.build.SEGMENTERS`.

Frames. Sizes of pictures are (height, width) in pixels. Points are (x, y), normalised to [0, 1] by
the width and height of the original picture. Logits are of the *padded square*: the picture is
scaled until its long side is `image_size` pixels, lies in the upper left of a square of that side,
and the rest is padding; the logits divide this square into `low_res_size` rows and columns.

Letters: I pictures, P prompts, M points of a prompt, S `image_size`, H4 = W4 = `low_res_size`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor


class Segmenter(Protocol):
    """A frozen promptable segmenter, for example SAM."""

    @property
    def image_size(self) -> int:
        """S, the side of the padded square in pixels."""

    @property
    def low_res_size(self) -> int:
        """The side of the logits that `decode` gives."""

    @property
    def feature_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each feature of one picture, by the names that `encode_images` uses.

        The features are stored in float16, so these shapes also tell what a picture takes on disk.
        """

    @property
    def fingerprint(self) -> str:
        """A hash (hex) of the weights and of every setting that the features or masks depend on."""

    @property
    def encoding_bytes(self) -> int:
        """The memory that encoding one picture takes at its most, in bytes, without the weights."""

    def parameters(self) -> Iterator[Tensor]:
        """The weights."""

    def to(self, device: torch.device | str) -> Self:
        """Move the segmenter to a device and return it."""

    def preprocess(self, image: np.ndarray) -> Tensor:
        """Bring a picture, uint8 [H, W, 3], into the padded square: float [3, S, S] on the CPU."""

    def encode_images(self, pixels: Tensor) -> dict[str, Tensor]:
        """Compute the features of pictures.

        Args:
            pixels: [I, 3, S, S], each from `preprocess`.

        Returns:
            One float32 tensor [I, ...] for each name in `feature_shapes`.
        """

    def decode(
        self,
        features: dict[str, Tensor],
        picture_index: Tensor,
        points: Tensor,
        point_labels: Tensor,
        sizes: Tensor,
        *,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """Decode the masks of P prompts. Gradients reach `points` and nothing else.

        Args:
            features: what `encode_images` gave for I pictures.
            picture_index: [P] long, the picture of each prompt.
            points: [P, M, 2] normalised (x, y) of the original picture.
            point_labels: [P, M] integers: 1 foreground, 0 background, -1 no point.
            sizes: [I, 2] original (height, width).
            multimask_output: three masks for each prompt instead of one.

        Returns:
            The logits [P, 1 or 3, H4, W4] in the padded square, positive inside of the mask, and
            the score of each mask [P, 1 or 3], which is the IoU that the segmenter predicts.
        """

    def valid_mask(self, sizes: Tensor) -> Tensor:
        """Return which cells of the logits lie inside each picture.

        Args:
            sizes: [I, 2] original (height, width).

        Returns:
            bool [I, H4, W4], False in the padding.
        """

    def finish_batch(self, logits: Tensor, sizes: Tensor) -> list[Tensor]:
        """Turn logits into masks of the original pictures.

        Args:
            logits: [P, H4, W4].
            sizes: [P, 2] original (height, width) of each prompt's picture.

        Returns:
            P masks, bool [height, width].
        """

    def with_mask_threshold(self, mask_threshold: float) -> Self:
        """Return the same segmenter with another least logit of the pixels of a mask."""

"""The frozen CLIP as the encoder of pictures and texts, with the second path of CLIP Surgery.

Letters as in `ppt.models.image_text_encoder`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import CLIP, CustomTextCLIP
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn

from ppt.models.frozen import Frozen, hash_tensors
from ppt.models.image_text_encoder import ImageFeatures
from ppt.models.precision import autocast

_TEXTS_AT_ONCE = 256


class ClipEncoder(Frozen):
    """An `ImageTextEncoder` of open_clip's CLIP.

    A level is the output of a block. The second path of CLIP Surgery (arXiv 2304.05653) runs beside
    the first over the last `surgery_depth` blocks. It takes the values v from the first path and
    leaves out the feed-forward nets: x_new <- x_new + proj(softmax(v v^T / sqrt(d)) v).
    """

    mean: Tensor  # [3, 1, 1] buffers
    std: Tensor

    def __init__(
        self,
        clip: CLIP | CustomTextCLIP,
        tokenizer: Callable[[list[str]], Tensor],
        *,
        image_size: int | None,
        taps: tuple[int, ...],
        surgery_depth: int,
        templates: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        """Wrap and freeze a CLIP.

        Args:
            clip: the net.
            tokenizer: turns texts into tokens [B, T].
            image_size: the side of the pictures in pixels; None for the net's own.
            taps: the blocks that are levels, counted from 1.
            surgery_depth: the number of blocks with a second path.
            templates: sentences for a phrase, such as "a photo of a {}.".
            mean: of the pixels in [0, 1], for each colour.
            std: likewise.

        Raises:
            ValueError: the towers are not open_clip's plain transformers, or a setting is wrong.
        """
        super().__init__()
        self._check(clip)
        depth = len(clip.visual.transformer.resblocks)
        patch = clip.visual.patch_size[0]
        image_size = image_size or clip.visual.image_size[0]
        if image_size % patch:
            raise ValueError(f"image_size must be a multiple of {patch}, got {image_size}")
        if not taps or list(taps) != sorted(set(taps)) or not 1 <= taps[0] <= taps[-1] <= depth:
            raise ValueError(f"taps must rise within 1..{depth}, got {taps}")
        masks = [getattr(block, "local_mask", None) for block in clip.visual.transformer.resblocks]
        if any(mask is not None and len(mask) != 1 + (image_size // patch) ** 2 for mask in masks):
            raise ValueError(
                f"image_size must be {clip.visual.image_size[0]}, because this net's attention is "
                f"limited to near patches, got {image_size}"
            )
        if not 1 <= surgery_depth <= depth:
            raise ValueError(f"surgery_depth must be in 1..{depth}, got {surgery_depth}")
        self.clip = clip
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.grid = image_size // patch
        self.taps = tuple(taps)
        self.surgery_depth = surgery_depth
        self.templates = tuple(templates)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self._mean_and_std = self.mean, self.std  # these remain on the CPU
        self.freeze()

    @staticmethod
    def _check(clip: nn.Module) -> None:
        if not isinstance(clip, CLIP | CustomTextCLIP):
            raise ValueError(f"ClipEncoder needs open_clip's CLIP, got {type(clip).__name__}")
        if not isinstance(clip.visual, VisionTransformer):
            name = type(clip.visual).__name__
            raise ValueError(f"ClipEncoder needs a VisionTransformer as image tower, got {name}")
        if clip.visual.attn_pool is not None:
            raise ValueError("ClipEncoder cannot tap a VisionTransformer with attention pooling")
        text = clip.text if isinstance(clip, CustomTextCLIP) else clip
        if text is not clip and not isinstance(text, TextTransformer):
            name = type(text).__name__
            raise ValueError(f"ClipEncoder needs a TextTransformer as text tower, got {name}")
        pool = text.pool_type if text is not clip else clip.text_pool_type
        causal = text.attn_mask is not None and getattr(text, "cls_emb", None) is None
        if not causal or pool not in ("argmax", "eos"):
            raise ValueError(f"ClipEncoder needs causal text read at its end, got pooling {pool!r}")

    @property
    def _text(self) -> nn.Module:
        return self.clip.text if isinstance(self.clip, CustomTextCLIP) else self.clip

    @property
    def num_levels(self) -> int:
        return len(self.taps)

    @property
    def visual_dim(self) -> int:
        return self.clip.visual.transformer.width

    @property
    def text_dim(self) -> int:
        return int(self._text.ln_final.normalized_shape[0])

    @property
    def embed_dim(self) -> int:
        return self.clip.visual.proj.shape[1]

    @property
    def context_length(self) -> int:
        return self.clip.context_length

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and of the settings that the features of pictures depend on.

        The templates are not among them: they concern the embeddings of phrases only.
        """
        settings: list[Any] = [self.image_size, self.taps, self.surgery_depth]
        for tower in (self.clip.visual.transformer, self._text.transformer):
            block = tower.resblocks[0]  # the same tensors fit other heads and another activation
            settings += [block.attn.num_heads, type(block.mlp.gelu).__name__]
        return hash_tensors(self.numbers(), settings)

    # ------------------------------------------------------------ pictures

    def preprocess(self, image: np.ndarray) -> Tensor:
        """Resize and normalise a picture, uint8 [H, W, 3] RGB: float [3, S, S].

        The whole picture is squashed into the square, because a crop could cut the referent off.
        This is done on the CPU: threads then do not wait for a GPU.
        """
        mean, std = self._mean_and_std
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        size = (self.image_size, self.image_size)
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
        return (pixels[0].clamp(0, 255) / 255 - mean) / std

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> ImageFeatures:
        """Compute the features of pictures [B, 3, S, S], each from `preprocess`, in one pass.

        The last `surgery_depth` blocks have CLIP Surgery's second path: it adds up the updates of
        v-v attention and does not change the tokens of the first path.
        """
        visual = self.clip.visual
        levels, surgery = [], None
        blocks = visual.transformer.resblocks
        with autocast(pixels.device):
            tokens = self._embed_patches(pixels)
            for number, block in enumerate(blocks, start=1):
                if number > len(blocks) - self.surgery_depth:
                    update = block.ls_1(_value_attention(block, block.ln_1(tokens)))
                    surgery = (tokens if surgery is None else surgery) + update
                tokens = block(tokens)
                if number in self.taps:
                    levels.append(tokens[:, 1:])
        # Plain CLIP's embedding of the picture. open_clip pools and normalises only in `_pool` what
        # is encoded already; its public functions would run all blocks a second time.
        picture = visual._pool(tokens)[0] @ visual.proj
        patches = visual.ln_post(surgery[:, 1:]) @ visual.proj
        joint = F.normalize(torch.cat([picture[:, None], patches], dim=1), dim=-1)
        return ImageFeatures(levels, joint)

    def _embed_patches(self, pixels: Tensor) -> Tensor:
        visual = self.clip.visual
        patches = visual.conv1(pixels).flatten(2).transpose(1, 2)
        first = visual.class_embedding.expand(len(patches), 1, -1)
        return visual.ln_pre(torch.cat([first, patches], dim=1) + self._positions())

    def _positions(self) -> Tensor:
        """The positions [1 + L, D], resampled where the image size is not the net's own.

        As in CLIP Surgery, they are resampled bilinearly and without antialiasing.
        """
        positions, side = self.clip.visual.positional_embedding, self.clip.visual.grid_size
        if side == (self.grid, self.grid):
            return positions
        patches = positions[1:].T.reshape(1, -1, *side)
        patches = F.interpolate(patches, (self.grid, self.grid), mode="bilinear")
        return torch.cat([positions[:1], patches[0].flatten(1).T])

    # ------------------------------------------------------------ text

    @torch.no_grad()
    def encode_words(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Compute the features of every word of B texts, after the last norm.

        Returns:
            The features [B, T, Dt], which are 0 beyond the longest text, and a mask bool [B, T] of
            the words of each text. The end token counts as a word.
        """
        features, last = self._run_text(texts)
        features = F.pad(features, (0, 0, 0, self.context_length - features.shape[1]))
        mask = torch.arange(self.context_length, device=last.device) <= last[:, None]
        return features, mask

    def words_read(self, text: str) -> list[tuple[str, bool]]:
        """Return the words of a text in their order, and whether the encoder reads each of them.

        A word beyond the context changes no token of what comes before it. The toybox's tokenizer
        says which words it knows; open_clip's knows the parts of every word.
        """
        found = list(re.finditer(r"\w+(?:['’-]\w+)*", text))
        rows = self.tokenizer(["", *(text[: word.end()] for word in found)])
        knows = getattr(self.tokenizer, "knows", lambda word: True)
        return [
            (word[0], knows(word[0]) and not torch.equal(before, after))
            for word, before, after in zip(found, rows[:-1], rows[1:], strict=True)
        ]

    @torch.no_grad()
    def encode_phrases(self, phrases: Sequence[str]) -> Tensor:
        """Compute one embedding of length 1 for each phrase, [B, E].

        It is the mean of the unit embeddings of all templates with the phrase in them, normalised
        again.
        """
        texts = [template.format(phrase) for phrase in phrases for template in self.templates]
        parts = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            features, last = self._run_text(texts[start : start + _TEXTS_AT_ONCE])
            parts.append(features[torch.arange(len(last)), last])
        ends = torch.cat(parts)
        projection = self._text.text_projection
        joint = projection(ends) if isinstance(projection, nn.Linear) else ends @ projection
        joint = F.normalize(joint, dim=-1).view(len(phrases), len(self.templates), -1)
        return F.normalize(joint.mean(1), dim=-1)

    def _run_text(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Compute features [B, T', Dt] and the position [B] of each end token.

        Attention is causal, so nothing after the longest text is computed: T' <= T.
        """
        text = self._text
        tokens = self.tokenizer(list(texts)).to(self.mean.device)
        pool = getattr(self.clip, "text_pool_type", None) or text.pool_type
        end = getattr(self.clip, "text_eos_id", None) or getattr(text, "eos_id", None)
        if pool == "argmax":
            last = tokens.argmax(-1)
        else:
            last = (tokens == torch.tensor(end)).int().argmax(-1)
        length = int(last.max()) + 1
        x = text.token_embedding(tokens[:, :length]) + text.positional_embedding[:length]
        with autocast(x.device):
            x = text.transformer(x, attn_mask=text.attn_mask[:length, :length])
        return text.ln_final(x), last


def _value_attention(block: nn.Module, x: Tensor) -> Tensor:
    """CLIP Surgery's v-v attention with the block's own weights, from [B, 1 + L, D] to the same.

    A block of the toybox has a `local_mask`, which restricts this attention as it does its own.
    """
    attention = block.attn
    width = x.shape[-1]
    weight = attention.in_proj_weight[2 * width :]
    bias = None if attention.in_proj_bias is None else attention.in_proj_bias[2 * width :]
    v = F.linear(x, weight, bias).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    mask = getattr(block, "local_mask", None)
    mixed = F.scaled_dot_product_attention(v, v, v, attn_mask=mask)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))

"""The frozen SAM: image embeddings, and masks from points for many pictures in one batch.

Letters: I pictures, P prompts, M points of a prompt, S image size, [C, h, w] the embedding,
H4 = W4 = 4h the low-resolution logits. Logits are of the PADDED square: a picture fills its upper
left part, see `valid_mask`.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from ppt.models.frozen import Frozen, hash_tensors
from ppt.models.precision import autocast

_ATTENTION_BYTES = 2**30
"""Of the attention of the pictures encoded at once: one of a full-size SAM, all of small ones."""


class SamDecoder(Frozen):
    """segment_anything's Sam with a batched decoder through which points get their gradient."""

    def __init__(self, sam: Sam, *, max_prompts: int = 64, mask_threshold: float = 0.0) -> None:
        """`max_prompts` bounds how many prompts are decoded at once without gradients.

        A finished mask holds the pixels whose logit is above `mask_threshold` (SAM's own is 0).
        """
        super().__init__()
        self.sam = sam
        self.max_prompts = max_prompts
        self.mask_threshold = mask_threshold
        self.image_size: int = sam.image_encoder.img_size
        self.low_res_size: int = 4 * sam.prompt_encoder.image_embedding_size[0]
        self.embed_dim: int = sam.prompt_encoder.embed_dim  # C
        self.freeze()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and of the pixel statistics."""
        return hash_tensors(self.numbers(), self.image_size)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of a picture whose long side was scaled to `image_size`."""
        return ResizeLongestSide.get_preprocess_shape(height, width, self.image_size)

    def preprocess(self, image: np.ndarray) -> Tensor:
        """uint8 [H, W, 3] RGB -> float [3, S, S]: long side to S, padded below and to the right."""
        resized = ResizeLongestSide(self.image_size).apply_image(image)
        pixels = torch.from_numpy(resized).to(self.sam.device).permute(2, 0, 1).float()
        return self.sam.preprocess(pixels)

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """[I, 3, S, S] from `preprocess` -> [I, C, h, w], as many at once as memory allows."""
        encoder = self.sam.image_encoder
        tokens, heads = (self.low_res_size // 4) ** 2, encoder.blocks[0].attn.num_heads
        at_once = max(_ATTENTION_BYTES // (4 * heads * tokens**2), 1)
        with autocast(pixels.device):
            parts = [encoder(part).float() for part in pixels.split(at_once)]
        return torch.cat(parts)

    def decode(
        self,
        image_embeddings: Tensor,
        picture_index: Tensor,
        points: Tensor,
        point_labels: Tensor,
        sizes: Tensor,
        *,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """Masks of P prompts, each on its picture, as SamPredictor gives them one by one.

        `image_embeddings` [I, C, h, w]; `picture_index` [P]; `points` [P, M, 2] normalised (x, y)
        of the original picture; `point_labels` [P, M] 1 foreground, 0 background, -1 no point;
        `sizes` [I, 2] original (height, width). Returns logits [P, 1 or 3, H4, W4] and predicted
        IoU [P, 1 or 3]. Gradients reach `points`; labels are hard and get none.
        """
        scale = self._input_sizes(sizes)[picture_index].flip(-1)  # (width, height) of the input
        coords = points * scale[:, None]
        step = len(points) if torch.is_grad_enabled() else self.max_prompts
        parts = [
            self._decode(
                image_embeddings[picture_index[start : start + step]],
                coords[start : start + step],
                point_labels[start : start + step],
                multimask_output,
            )
            for start in range(0, len(points), max(step, 1))
        ]
        if not parts:
            masks = 3 if multimask_output else 1
            logits = points.new_zeros(0, masks, self.low_res_size, self.low_res_size)
            return logits, points.new_zeros(0, masks)
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _decode(
        self, embeddings: Tensor, coords: Tensor, labels: Tensor, multimask_output: bool
    ) -> tuple[Tensor, Tensor]:
        """MaskDecoder.predict_masks for one picture per prompt; the stock one takes a single."""
        prompt, decoder = self.sam.prompt_encoder, self.sam.mask_decoder
        sparse, dense = prompt(points=(coords, labels), boxes=None, masks=None)
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(len(sparse), -1, -1), sparse], dim=1)
        position = prompt.get_dense_pe().expand(len(sparse), -1, -1, -1)
        with autocast(coords.device):  # not the prompt encoder: it turns pixels into phases
            hidden, image = decoder.transformer(embeddings.float() + dense, position, tokens)
            image = image.transpose(1, 2).reshape(embeddings.shape)
            upscaled = decoder.output_upscaling(image).float()
        hidden = hidden.float()
        chosen = range(1, decoder.num_mask_tokens) if multimask_output else range(1)
        kernels = torch.stack(
            [decoder.output_hypernetworks_mlps[i](hidden[:, 1 + i]) for i in chosen], dim=1
        )
        logits = (kernels @ upscaled.flatten(2)).unflatten(-1, upscaled.shape[-2:])
        predicted_iou = decoder.iou_prediction_head(hidden[:, 0])
        return logits, predicted_iou[:, chosen.start : chosen.stop]

    def valid_mask(self, sizes: Tensor) -> Tensor:
        """[I, 2] original (height, width) -> bool [I, H4, W4], True where the picture lies."""
        inside = self._input_sizes(sizes)
        centre = torch.arange(self.low_res_size, device=sizes.device) + 0.5
        centre = centre * (self.image_size / self.low_res_size)
        rows, columns = centre < inside[:, :1], centre < inside[:, 1:]
        return rows[:, :, None] & columns[:, None, :]

    def finish(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """[H4, W4] -> bool [height, width] of the original picture."""
        return self.finish_batch(logits[None], torch.tensor([size]))[0]

    @torch.no_grad()
    def finish_batch(self, logits: Tensor, sizes: Tensor) -> list[Tensor]:
        """[P, H4, W4] and the prompts' original sizes [P, 2] -> P bool [height, width] masks."""
        masks: list[Tensor] = [logits[:0]] * len(logits)
        groups: dict[tuple[int, int], list[int]] = {}
        for i, (height, width) in enumerate(sizes.tolist()):
            groups.setdefault((height, width), []).append(i)
        for size, members in groups.items():
            input_size = self.input_size(*size)
            for start in range(0, len(members), self.max_prompts):
                chosen = members[start : start + self.max_prompts]
                full = self.sam.postprocess_masks(logits[chosen, None], input_size, size)
                for i, mask in zip(chosen, full[:, 0] > self.mask_threshold, strict=True):
                    masks[i] = mask
        return masks

    def _input_sizes(self, sizes: Tensor) -> Tensor:
        inside = [self.input_size(height, width) for height, width in sizes.tolist()]
        return torch.tensor(inside, dtype=torch.float32, device=sizes.device).view(-1, 2)

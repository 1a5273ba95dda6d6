"""The frozen SAM as a segmenter: masks from points, for many pictures in one batch.

Letters and frames as in `ppt.models.segmenter`; [C, h, w] is the image embedding, H4 = 4h.
"""

from __future__ import annotations

from functools import cached_property
from typing import Self

import numpy as np
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torch.nn import functional as F

from ppt.config import SamConfig
from ppt.models.frozen import Frozen, hash_tensors
from ppt.models.precision import autocast
from ppt.models.weights import RANDOM, build_net, random_net, refuse_weights
from ppt.toybox import backbones as toybox

EMBEDDINGS = "image_embeddings"
"""The name of SAM's only feature."""

_BYTES_AT_ONCE = 2**30
"""Pictures are encoded at once on a CPU as long as they take no more memory than this."""

_SHARE_AT_ONCE = 0.2
"""The same on a GPU, as a share of its memory; other processes may use it as well."""

_COPIES_OF_ATTENTION = 4
"""How many tensors of the attention's size a global block of the image encoder holds at once."""


def build_sam(config: SamConfig) -> SamSegmenter:
    """Build one of segment_anything's own models. Raises ValueError for wrong weights."""
    net = build_net(
        sam_model_registry[config.name],
        config.weights,
        field="model.sam.weights",
        expected=f"SAM {config.name}",
    )
    return SamSegmenter(net)


def build_toybox_sam(config: SamConfig) -> SamSegmenter:
    """Build the embedded SAM. Raises ValueError where weights are named."""
    if config.weights == RANDOM:
        return SamSegmenter(random_net(toybox.build_sam))
    refuse_weights("model.sam.weights", config.weights)
    return SamSegmenter(toybox.load_sam())


class SamSegmenter(Frozen):
    """A `Segmenter` of segment_anything's `Sam`, with a decoder for many pictures at once."""

    def __init__(self, sam: Sam, *, max_prompts: int = 64, mask_threshold: float = 0.0) -> None:
        """Wrap and freeze a SAM.

        Args:
            sam: the net.
            max_prompts: how many prompts are decoded at once where no gradient is needed.
            mask_threshold: a finished mask holds the pixels whose logit is above it.
        """
        super().__init__()
        self.sam = sam
        self.max_prompts = max_prompts
        self.mask_threshold = mask_threshold
        self.image_size: int = sam.image_encoder.img_size
        self.low_res_size: int = 4 * sam.prompt_encoder.image_embedding_size[0]
        self._mean_and_std = sam.pixel_mean, sam.pixel_std  # these remain on the CPU
        self.freeze()

    @property
    def feature_shapes(self) -> dict[str, tuple[int, ...]]:
        prompt = self.sam.prompt_encoder
        return {EMBEDDINGS: (prompt.embed_dim, *prompt.image_embedding_size)}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and of the pixel statistics."""
        return hash_tensors(self.numbers(), self.image_size)

    @property
    def encoding_bytes(self) -> int:
        """The float32 attention of a block that looks at the whole picture, and its copies."""
        heads = self.sam.image_encoder.blocks[0].attn.num_heads
        tokens = (self.low_res_size // 4) ** 2
        return _COPIES_OF_ATTENTION * 4 * heads * tokens**2

    def with_mask_threshold(self, mask_threshold: float) -> Self:
        return type(self)(self.sam, max_prompts=self.max_prompts, mask_threshold=mask_threshold)

    def preprocess(self, image: np.ndarray) -> Tensor:
        """Do what `Sam.preprocess` does, on the CPU: threads then do not wait for a GPU."""
        resized = ResizeLongestSide(self.image_size).apply_image(image)
        mean, std = self._mean_and_std
        pixels = (torch.from_numpy(resized).permute(2, 0, 1).float() - mean) / std
        height, width = pixels.shape[1:]
        return F.pad(pixels, (0, self.image_size - width, 0, self.image_size - height))

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> dict[str, Tensor]:
        """The image embeddings [I, C, h, w], as many pictures at once as memory allows."""
        memory = _BYTES_AT_ONCE
        if pixels.is_cuda:
            total = torch.cuda.get_device_properties(pixels.device).total_memory
            memory = int(_SHARE_AT_ONCE * total)
        at_once = max(memory // self.encoding_bytes, 1)
        with autocast(pixels.device):
            parts = [self.sam.image_encoder(part).float() for part in pixels.split(at_once)]
        return {EMBEDDINGS: torch.cat(parts)}

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
        """Decode prompts, each on its picture, as SamPredictor does one by one.

        See `Segmenter.decode`. Labels are hard and get no gradient.
        """
        embeddings = features[EMBEDDINGS]
        scale = self._input_sizes(sizes)[picture_index].flip(-1)  # (width, height) of the input
        coords = points * scale[:, None]
        step = len(points) if torch.is_grad_enabled() else self.max_prompts
        parts = [
            self._decode(
                embeddings[picture_index[start : start + step]],
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
        """Do what `MaskDecoder.predict_masks` does, with a picture of its own for each prompt.

        Args:
            embeddings: [P, C, h, w].
            coords: [P, M, 2] in pixels of the padded square.
            labels: [P, M].
        """
        prompt, decoder = self.sam.prompt_encoder, self.sam.mask_decoder
        sparse = self._point_tokens(coords, labels)
        dense = prompt.no_mask_embed.weight[:, :, None, None]
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

    def _point_tokens(self, coords: Tensor, labels: Tensor) -> Tensor:
        """Return what the prompt encoder makes of points without a box, [P, M + 1, C].

        It is computed for all labels at once: the prompt encoder itself picks the points of each
        label, for which a GPU's host has to wait.
        """
        prompt = self.sam.prompt_encoder
        coords = F.pad(coords + 0.5, (0, 0, 0, 1))  # as without a box, with one point of no label
        labels = F.pad(labels, (0, 1), value=-1)
        tokens = prompt.pe_layer.forward_with_coords(coords, prompt.input_image_size)
        tokens = tokens.masked_fill((labels == -1)[..., None], 0.0)
        kinds = [prompt.not_a_point_embed, *prompt.point_embeddings[:2]]
        return tokens + torch.cat([kind.weight for kind in kinds])[labels.long() + 1]

    def valid_mask(self, sizes: Tensor) -> Tensor:
        inside = self._input_sizes(sizes)
        centre = torch.arange(self.low_res_size, device=sizes.device) + 0.5
        centre = centre * (self.image_size / self.low_res_size)
        rows, columns = centre < inside[:, :1], centre < inside[:, 1:]
        return rows[:, :, None] & columns[:, None, :]

    @torch.no_grad()
    def finish_batch(self, logits: Tensor, sizes: Tensor) -> list[Tensor]:
        masks: list[Tensor] = [logits[:0]] * len(logits)
        groups: dict[tuple[int, int], list[int]] = {}
        for i, (height, width) in enumerate(sizes.tolist()):
            groups.setdefault((height, width), []).append(i)
        for size, members in groups.items():
            input_size = self._input_size(*size)
            for start in range(0, len(members), self.max_prompts):
                chosen = members[start : start + self.max_prompts]
                full = self.sam.postprocess_masks(logits[chosen, None], input_size, size)
                for i, mask in zip(chosen, full[:, 0] > self.mask_threshold, strict=True):
                    masks[i] = mask
        return masks

    def _input_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) of a picture whose long side was scaled to `image_size`."""
        return ResizeLongestSide.get_preprocess_shape(height, width, self.image_size)

    def _input_sizes(self, sizes: Tensor) -> Tensor:
        """Return `_input_size` of sizes [I, 2], float32, without a look at their values."""
        scale = self.image_size / sizes.amax(-1, keepdim=True).double()
        return (sizes * scale + 0.5).floor().float()

"""A trained stage for use: a picture and an expression in, a mask out. No Ray.

from ppt.predict import Predictor

predictor = Predictor.from_checkpoint("runs/quickstart")
predictor.predict("photo.jpg", "the man in the green shirt").overlay().save("overlay.png")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image

from ppt.checkpoint import StoredCheckpoint, load_checkpoint, open_checkpoint
from ppt.config import ConfigError
from ppt.data.batch import Batch
from ppt.data.pictures import read_picture
from ppt.data.sources import RawExpression, split_expressions
from ppt.drawing import overlay
from ppt.engine import Prediction, evaluate
from ppt.masks import encode_rle, rle_boxes
from ppt.models.build import build_clip_encoder, build_point_generator, build_sam_decoder
from ppt.models.point_prompting import PointPrompting

AnyPicture = str | Path | Image.Image | np.ndarray


@dataclass
class PicturePrediction(Prediction):
    """A `Prediction` that has its picture with it. Everything is in the frame of the UPRIGHT
    picture: its EXIF orientation is applied.
    """

    image: np.ndarray  # uint8 [height, width, 3] RGB
    checkpoint: str  # digest of the checkpoint that made it

    def overlay(self) -> Image.Image:
        """The mask on the picture, positive (green) and negative (red) points, text and score."""
        note = f"score {self.score:.2f}"
        return overlay(self.image, self.mask, self.points, self.point_labels, self.text, note)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, JSON-able. Points are (x, y) in pixels; `mask` is COCO's RLE and `box` its
        tight [x, y, width, height], all 0 for an empty mask.
        """
        height, width = self.mask.shape
        counts = encode_rle(self.mask)
        x0, y0, x1, y1 = rle_boxes([counts], height, width)[0].tolist()
        return {
            "picture": self.picture,
            "expression": self.text,
            "score": self.score,
            "points": (self.points * (width, height)).round(2).tolist(),
            "point_labels": self.point_labels.tolist(),
            "box": [x0, y0, x1 - x0, y1 - y0],
            "height": height,
            "width": width,
            "mask": {"size": [height, width], "counts": counts.decode()},
            "checkpoint": self.checkpoint,
        }


class Predictor:
    """f_theta of one checkpoint with its frozen encoders, on one device."""

    def __init__(self, checkpoint: StoredCheckpoint, device: str | torch.device = "cpu") -> None:
        """Raises ConfigError where the encoders cannot be built or are not those it was trained
        with.
        """
        model = checkpoint.model
        try:
            clip, sam = build_clip_encoder(model.clip), build_sam_decoder(model.sam)
        except (ValueError, OSError) as error:
            raise ConfigError(
                f"the encoders of checkpoint {checkpoint.digest} cannot be built: {error}"
            ) from error
        for name, encoder in (("clip", clip), ("sam", sam)):
            _check_fingerprint(name, encoder.fingerprint, checkpoint)
        generator = build_point_generator(
            model.point_generator, clip.visual_dim, clip.text_dim, len(clip.taps)
        )
        try:
            load_checkpoint(checkpoint.folder, generator)
        except Exception as error:  # safetensors has an error of its own for a broken file
            raise ConfigError(f"checkpoint {checkpoint.folder} cannot be read: {error}") from error
        self.checkpoint = checkpoint
        self.device = torch.device(device)
        self.clip = clip.to(self.device)
        self.model = PointPrompting(generator, sam).to(self.device).eval()

    @classmethod
    def from_checkpoint(
        cls,
        run: str | Path,
        *,
        stage: str | None = None,
        clip_weights: str | Path | None = None,
        sam_weights: str | Path | None = None,
        device: str | torch.device | None = None,
    ) -> Predictor:
        """The model of a run's folder (the chosen stage, or `stage`) or of a checkpoint's folder.

        `clip_weights` and `sam_weights` say where the encoders' files lie, if not where they lay
        in training. `device` is CUDA where there is a GPU. Raises ConfigError.
        """
        checkpoint = with_weights(open_checkpoint(run, stage), clip_weights, sam_weights)
        return cls(checkpoint, device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @overload
    def predict(self, picture: AnyPicture, text: str) -> PicturePrediction: ...

    @overload
    def predict(self, picture: AnyPicture, text: list[str]) -> list[PicturePrediction]: ...

    @torch.inference_mode()
    def predict(
        self, picture: AnyPicture, text: str | list[str]
    ) -> PicturePrediction | list[PicturePrediction]:
        """The referent of an expression, or of each of several; the picture is encoded once.

        `picture` is a path, a PIL image or an array, see `ppt.data.pictures.read_picture`. Raises
        `UnreadablePicture` for a picture and ValueError for a text without a word.
        """
        image = read_picture(picture)
        name = str(picture) if isinstance(picture, str | Path) else ""
        batch = self._encode(name, image, [text] if isinstance(text, str) else text)
        found = [
            PicturePrediction(**vars(prediction), image=image, checkpoint=self.checkpoint.digest)
            for prediction in evaluate(self.model, [batch], device=self.device)
        ]
        return found[0] if isinstance(text, str) else found

    def _encode(self, name: str, image: np.ndarray, texts: Sequence[str]) -> Batch:
        """Features as the pipeline stores them, so that the same numbers come of them."""
        expressions, rejected = split_expressions(
            RawExpression(str(i), text) for i, text in enumerate(texts)
        )
        if rejected or not expressions:
            raise ValueError(rejected[0].reason if rejected else "no expression is given")
        texts = [e.text for e in expressions]
        sam = self.model.decoder
        words, word_mask = self.clip.encode_words(texts)
        longest = int(word_mask.sum(1).max())
        features = self.clip.encode_images(self.clip.preprocess(image)[None])
        return Batch(
            pictures=[name],
            sizes=torch.tensor([image.shape[:2]]),
            visual_features=[_as_stored(stage) for stage in features.visual_features],
            image_embeddings=_as_stored(sam.encode_images(sam.preprocess(image)[None])),
            picture_index=torch.zeros(len(texts), dtype=torch.long),
            expression_ids=[e.expression_id for e in expressions],
            texts=texts,
            word_features=_as_stored(words * word_mask[..., None])[:, :longest],
            word_mask=word_mask[:, :longest],
            targets=None,
        )


def save_mask(mask: np.ndarray, path: str | Path) -> None:
    """bool [H, W] -> a grey PNG of 0 and 255 at the picture's size."""
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def with_weights(
    checkpoint: StoredCheckpoint, clip: str | Path | None, sam: str | Path | None
) -> StoredCheckpoint:
    """The checkpoint with other places for its encoders' weights; None leaves one as it is."""
    model = checkpoint.model
    parts = {
        name: getattr(model, name).model_copy(update={"weights": str(path)})
        for name, path in (("clip", clip), ("sam", sam))
        if path is not None
    }
    return replace(checkpoint, model=model.model_copy(update=parts))


def _as_stored(features: torch.Tensor) -> torch.Tensor:
    return features.half().float()


def _check_fingerprint(name: str, built: str, checkpoint: StoredCheckpoint) -> None:
    trained = checkpoint.encoders.get(name, "none")
    if built != trained:
        weights = getattr(checkpoint.model, name).weights
        raise ConfigError(
            f"{name}: checkpoint {checkpoint.digest} was trained with weights or settings of "
            f"fingerprint {trained[:12]}, those of {weights or 'the toybox'} have {built[:12]}: "
            f"give {name}_weights (--{name}-weights) the file that it was trained with"
        )

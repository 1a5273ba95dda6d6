"""A trained stage for users: a picture and an expression go in, and a mask comes out.

`ppt.predict` offers it as the package's interface.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image

from ppt.batches.batch import Batch
from ppt.config import ConfigError
from ppt.data.source import RawExpression, split_expressions
from ppt.images.drawing import overlay
from ppt.images.masks import encode_rle, rle_boxes
from ppt.images.pictures import printable, read_picture
from ppt.labels.similarity import similarity
from ppt.models.build import build_image_text_encoder, build_point_generator, build_segmenter
from ppt.models.image_text_encoder import ImageTextEncoder
from ppt.models.loaded import default_device
from ppt.models.point_prompting import PointPrompting
from ppt.models.prediction import Prediction, predict_batches
from ppt.serving.export import fetch_model
from ppt.serving.stored_checkpoint import (
    OTHER_VERSION,
    StoredCheckpoint,
    open_checkpoint,
    remedy,
    with_weights,
)
from ppt.training.checkpoint import load_checkpoint

AnyPicture = str | Path | Image.Image | np.ndarray


@dataclass
class PicturePrediction(Prediction):
    """A `Prediction` together with its picture.

    Everything is in the frame of the upright picture, to which its EXIF orientation is applied.
    """

    image: np.ndarray  # uint8 [height, width, 3] RGB
    checkpoint: str  # digest of the checkpoint that made the prediction
    unread: list[str]  # the words of the text that the text encoder does not read

    @property
    def verdict(self) -> str:
        """The score as a text, which says so if the mask is more likely wrong than right."""
        return f"score {self.score:.2f}" + (", unsure" if self.score < 0.5 else "")

    def overlay(self) -> Image.Image:
        """Draw the mask and its points on the picture, with the text and the verdict below.

        Positive points are green, and negative ones are red.
        """
        return overlay(
            self.image, self.mask, self.points, self.point_labels, self.text, self.verdict
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the prediction as plain data that can be written as JSON.

        Points are (x, y) in pixels. `mask` is COCO's run-length encoding, and `box` is its tight
        box [x, y, width, height] in pixels, all 0 for an empty mask.
        """
        height, width = self.mask.shape
        counts = encode_rle(self.mask)
        x0, y0, x1, y1 = rle_boxes([counts], height, width)[0].tolist()
        return {
            "picture": self.picture,
            "expression": self.text,
            "unread": self.unread,
            "score": self.score,
            "points": (self.points * (width, height)).round(2).tolist(),
            "point_labels": self.point_labels.tolist(),
            "box": [x0, y0, x1 - x0, y1 - y0],
            "height": height,
            "width": width,
            "mask": {"size": [height, width], "counts": counts.decode()},
            "checkpoint": self.checkpoint,
        }


@dataclass(frozen=True)
class Question:
    """A picture and the expressions whose referents are asked for."""

    image: np.ndarray  # uint8 [height, width, 3] RGB, as `read_picture` returns it
    texts: Sequence[str]
    name: str = ""  # of the picture, for display


class Predictor:
    """The model of one checkpoint on one device: f_theta and its frozen encoders."""

    def __init__(self, checkpoint: StoredCheckpoint, device: str | torch.device = "cpu") -> None:
        """Build the encoders, and load the checkpoint.

        Raises ConfigError if the encoders cannot be built, if they are not those of the training,
        or if the checkpoint cannot be read.
        """
        model = checkpoint.model
        try:
            clip, sam = build_image_text_encoder(model.clip), build_segmenter(model.sam)
        except (ValueError, OSError) as error:
            raise ConfigError(
                f"the encoders of checkpoint {checkpoint.digest} cannot be built: {error}"
            ) from error
        for name, fingerprint in (("clip", clip.fingerprint), ("sam", sam.fingerprint)):
            _check_fingerprint(name, fingerprint, checkpoint)
        generator = build_point_generator(
            model.point_generator, clip.visual_dim, clip.text_dim, clip.num_levels
        )
        try:
            load_checkpoint(checkpoint.folder, generator)
        except ValueError as error:
            raise ConfigError(f"checkpoint: {OTHER_VERSION} ({error})") from error
        except Exception as error:  # safetensors raises its own error for a broken file
            told = f"checkpoint {checkpoint.folder} cannot be read: {error}"
            raise ConfigError(f"{told}: {remedy(checkpoint.folder)}") from error
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
        """Return the predictor of a trained stage.

        Args:
            run: the folder of a run or of a checkpoint.
            stage: a stage of the run; by default the run's chosen stage.
            clip_weights: the file of CLIP's weights, if it is not where it was in training.
            sam_weights: the file of SAM's weights, if it is not where it was in training.
            device: by default CUDA if there is a GPU, and else the CPU.

        Raises:
            ConfigError: if the checkpoint or the weights cannot be used.
        """
        checkpoint = with_weights(open_checkpoint(run, stage), clip_weights, sam_weights)
        return cls(checkpoint, device or default_device())

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        clip_weights: str | Path | None = None,
        sam_weights: str | Path | None = None,
        device: str | torch.device | None = None,
    ) -> Predictor:
        """Return the predictor of a model that `ppt export` wrote.

        Args:
            model: the folder, or its URL (`https://...`, `s3://...`). What a URL gives is compared
                with the checksums in the model's manifest.
            clip_weights, sam_weights, device: as for `from_checkpoint`. Weights that lie in the
                folder are found.

        Raises:
            ConfigError: if the model cannot be fetched or used.
        """
        folder = fetch_model(model) if isinstance(model, str) and "://" in model else model
        return cls.from_checkpoint(
            folder, clip_weights=clip_weights, sam_weights=sam_weights, device=device
        )

    @overload
    def predict(self, picture: AnyPicture, text: str) -> PicturePrediction: ...

    @overload
    def predict(self, picture: AnyPicture, text: list[str]) -> list[PicturePrediction]: ...

    def predict(
        self, picture: AnyPicture, text: str | list[str]
    ) -> PicturePrediction | list[PicturePrediction]:
        """Segment the referent of an expression, or of each of several ones.

        The picture is encoded once for all expressions.

        Args:
            picture: a path, a PIL image or an array, see `ppt.images.pictures.read_picture`.
            text: an expression, or a list of expressions.

        Returns:
            A prediction, or a list of predictions if `text` is a list.

        Raises:
            UnreadablePicture: if the picture cannot be read.
            ValueError: if an expression has no word.
        """
        texts = [text] if isinstance(text, str) else text
        question = Question(read_picture(picture), texts, name_of(picture))
        [found] = self.predict_pictures([question])
        return found[0] if isinstance(text, str) else found

    @torch.inference_mode()
    def predict_pictures(self, questions: Sequence[Question]) -> list[list[PicturePrediction]]:
        """Segment the referents of the expressions of several pictures in one pass of the model.

        Raises ValueError if an expression has no word.
        """
        return self.segment(questions, self.encode(questions))

    def segment(self, questions: Sequence[Question], batch: Batch) -> list[list[PicturePrediction]]:
        """Do what `predict_pictures` does with a batch that `encode` has made of the questions."""
        found: list[list[PicturePrediction]] = [[] for _ in questions]
        for picture, prediction in zip(
            batch.picture_index.tolist(),
            predict_batches(
                self.model, [batch], device=self.device, calibration=self.checkpoint.calibration
            ),
            strict=True,
        ):
            read, unread = read_and_unread(self.clip, prediction.text)
            if not read:  # the mask is for a text without words, whatever it looks like
                prediction.score = 0.0
            found[picture].append(
                PicturePrediction(
                    **vars(prediction),
                    image=questions[picture].image,
                    checkpoint=self.checkpoint.digest,
                    unread=unread,
                )
            )
        return found

    @torch.inference_mode()
    def encode(self, questions: Sequence[Question]) -> Batch:
        """Encode pictures and their expressions.

        The features are rounded as in the store, so that predictions equal those of the pipeline.
        Raises ValueError if an expression has no word, or if a picture has no expression.
        """
        texts = [text for question in questions for text in checked_texts(question.texts)]
        counts = torch.tensor([len(question.texts) for question in questions])
        index = torch.arange(len(questions)).repeat_interleave(counts)
        images = [question.image for question in questions]
        segmenter = self.model.segmenter
        words, word_mask = self.clip.encode_words(texts)
        longest = int(word_mask.sum(1).max())
        features = self.clip.encode_images(torch.stack([*map(self.clip.preprocess, images)]))
        *phrases, empty = self.clip.encode_phrases([*texts, ""]).float()
        tokens = as_stored(features.surgery_tokens)[index.to(features.surgery_tokens.device)]
        pixels = torch.stack([*map(segmenter.preprocess, images)])
        return Batch(
            pictures=[question.name for question in questions],
            sizes=torch.tensor([image.shape[:2] for image in images]),
            visual_features=[as_stored(level) for level in features.visual_features],
            segmenter_features={
                name: as_stored(feature)
                for name, feature in segmenter.encode_images(pixels).items()
            },
            picture_index=index,
            expression_ids=[str(i) for i in range(len(texts))],
            texts=texts,
            word_features=as_stored(words * word_mask[..., None])[:, :longest],
            word_mask=word_mask[:, :longest],
            targets=None,
            similarity=similarity(tokens, torch.stack(phrases), empty),
        )


def name_of(picture: AnyPicture) -> str:
    """Return the name of a picture in its predictions: its path, or none for an array."""
    return printable(picture) if isinstance(picture, str | Path) else ""


def checked_texts(texts: Sequence[str]) -> list[str]:
    """Return expressions as they are encoded, see `split_expressions`.

    Raises ValueError if one of them cannot be used, or if there is none.
    """
    kept, rejected = split_expressions(RawExpression(str(i), t) for i, t in enumerate(texts))
    if rejected or not kept:
        raise ValueError(rejected[0].reason if rejected else "no expression is given")
    return [expression.text for expression in kept]


def read_and_unread(clip: ImageTextEncoder, text: str) -> tuple[list[str], list[str]]:
    """Return the words of a text, in their order, that an encoder reads and that it does not.

    It reads neither a word that it does not know nor one that it cuts off.
    """
    words = clip.words_read(text)
    return [word for word, is_read in words if is_read], [w for w, is_read in words if not is_read]


def save_mask(mask: np.ndarray, path: str | Path) -> None:
    """Save a mask, bool [H, W], as a grey PNG file of the same size with the values 0 and 255."""
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def as_stored(features: torch.Tensor) -> torch.Tensor:
    """Round features to half precision, as they are in the store."""
    return features.half().float()


def _check_fingerprint(name: str, built: str, checkpoint: StoredCheckpoint) -> None:
    """Raise ConfigError if an encoder is not the one of the training."""
    trained = checkpoint.encoders.get(name, "none")
    if built != trained:
        weights = getattr(checkpoint.model, name).weights
        raise ConfigError(
            f"{name}: checkpoint {checkpoint.digest} was trained with weights or settings of "
            f"fingerprint {trained[:12]}, those of {weights or 'the toybox'} have {built[:12]}: "
            f"give {name}_weights (--{name}-weights) the file that it was trained with"
        )

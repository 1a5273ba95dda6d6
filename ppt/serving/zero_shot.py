"""CLIP and SAM without training: masks for any picture, by the published baseline of this package.

CLIP Surgery's similarity map of the whole expression gives the points, and SAM the mask, as in the
baseline `clip_sam_published` of `ppt evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import open_clip
import torch

from ppt.config import ClipConfig, ConfigError, SamConfig
from ppt.downloads.published_files import FILES, PublishedFile, published_weights
from ppt.images.pictures import read_picture
from ppt.labels.candidates import Candidate, PhrasePrompt, candidate_masks
from ppt.labels.points import PUBLISHED_IMAGE_SIZE, PUBLISHED_RECIPE
from ppt.labels.similarity import similarity_maps
from ppt.models.build import SEGMENTERS, build_image_text_encoder, build_segmenter
from ppt.models.clip_builder import plain_clip
from ppt.models.loaded import clip_fingerprint, default_device, sam_fingerprint
from ppt.models.weights import clip_name, is_torchscript, read_state_dict, sam_name
from ppt.serving.predictor import (
    AnyPicture,
    PicturePrediction,
    Predictor,
    as_stored,
    checked_texts,
    name_of,
    read_and_unread,
)
from ppt.serving.stored_checkpoint import StoredCheckpoint
from ppt.store.nodes import digest_of

TOYBOX = "toybox"


@dataclass
class ZeroShotPrediction(PicturePrediction):
    """A prediction without training; its score is SAM's own estimate of the mask's IoU."""

    encoders: dict[str, str]  # the names of `clip` and `sam`

    @property
    def verdict(self) -> str:
        return f"SAM's score {self.score:.2f}" if self.mask.any() else "nothing found"

    def as_dict(self) -> dict[str, Any]:
        """Return the prediction as plain data, with the names of CLIP and SAM as `zero_shot`."""
        return {**super().as_dict(), "zero_shot": self.encoders}


@dataclass(frozen=True)
class ZeroShot:
    """The CLIP and the SAM of a zero-shot model, in place of a checkpoint."""

    clip: ClipConfig
    sam: SamConfig

    calibration = None

    @property
    def digest(self) -> str:
        """The digest of all on which the predictions depend."""
        return _digest(clip_fingerprint(self.clip), sam_fingerprint(self.sam))


def _digest(clip_fingerprint: str, sam_fingerprint: str) -> str:
    recipe = PUBLISHED_RECIPE.model_dump()
    return digest_of({"clip": clip_fingerprint, "sam": sam_fingerprint, "recipe": recipe})


class ZeroShotPredictor:
    """A `Predictor` without a checkpoint, on one device."""

    def __init__(self, model: ZeroShot, device: str | torch.device | None = None) -> None:
        """Build CLIP and SAM. `device` is by default CUDA if there is a GPU, and else the CPU.

        Raises ConfigError if the weights are not there or do not fit.
        """
        self.model = model
        self.device = torch.device(device or default_device())
        try:
            self.clip = build_image_text_encoder(model.clip).to(self.device)
            self.segmenter = build_segmenter(model.sam).to(self.device)
        except (ValueError, OSError) as error:
            raise ConfigError(str(error)) from error
        self.digest = _digest(self.clip.fingerprint, self.segmenter.fingerprint)

    @classmethod
    def of(
        cls,
        clip: str = "clip_vit_b_16",
        sam: str = "sam_vit_b",
        device: str | torch.device | None = None,
    ) -> ZeroShotPredictor:
        """Return the predictor with the CLIP and the SAM that `zero_shot` takes by these names."""
        return cls(zero_shot(clip, sam), device)

    @overload
    def predict(self, picture: AnyPicture, text: str) -> ZeroShotPrediction: ...

    @overload
    def predict(self, picture: AnyPicture, text: list[str]) -> list[ZeroShotPrediction]: ...

    @torch.inference_mode()
    def predict(
        self, picture: AnyPicture, text: str | list[str]
    ) -> ZeroShotPrediction | list[ZeroShotPrediction]:
        """Segment what expressions describe; arguments and errors as of `Predictor.predict`."""
        image = read_picture(picture)
        texts = checked_texts([text] if isinstance(text, str) else text)
        *phrases, empty = self.clip.encode_phrases([*texts, ""]).float()
        pixels = self.clip.preprocess(image)[None].to(self.device)
        tokens = as_stored(self.clip.encode_images(pixels).surgery_tokens)
        maps = similarity_maps(tokens.expand(len(texts), -1, -1), torch.stack(phrases), empty)
        pixels = self.segmenter.preprocess(image)[None].to(self.device)
        features = {n: as_stored(f) for n, f in self.segmenter.encode_images(pixels).items()}
        found = candidate_masks(
            self.segmenter,
            features,
            torch.tensor([image.shape[:2]], device=self.device),
            [PhrasePrompt(0, text, map_) for text, map_ in zip(texts, maps, strict=True)],
            PUBLISHED_RECIPE,
        )
        predictions = [
            self._prediction(name_of(picture), image, i, texts[i], maps[i], candidate)
            for i, candidate in enumerate(found)
        ]
        return predictions[0] if isinstance(text, str) else predictions

    def _prediction(
        self,
        picture: str,
        image: np.ndarray,
        number: int,
        text: str,
        similarity: torch.Tensor,
        found: Candidate | None,
    ) -> ZeroShotPrediction:
        """Make a prediction of a candidate; without one its mask is empty and its score is 0.

        The score is also 0 if no word of the text is read.
        """
        attention = similarity.float().cpu().numpy()
        read, unread = read_and_unread(self.clip, text)
        return ZeroShotPrediction(
            picture=picture,
            expression_id=str(number),
            text=text,
            mask=found.mask if found else np.zeros(image.shape[:2], bool),
            points=found.points if found else np.zeros((0, 2), np.float32),
            point_labels=found.point_labels if found else np.zeros(0, np.int8),
            score=min(max(found.predicted_iou, 0.0), 1.0) if found and read else 0.0,
            evidence=None,
            attention=attention / max(attention.sum(), 1e-6),
            mask_without=None,
            image=image,
            checkpoint=self.digest,
            unread=unread,
            encoders={"clip": self.model.clip.name, "sam": self.model.sam.name},
        )


AnyModel = StoredCheckpoint | ZeroShot
"""What can predict: a trained checkpoint, or CLIP and SAM without training."""


def open_predictor(model: AnyModel, device: str | torch.device) -> Predictor | ZeroShotPredictor:
    """Build the predictor of a model. Raises ConfigError if it cannot be built."""
    if isinstance(model, StoredCheckpoint):
        return Predictor(model, device)
    return ZeroShotPredictor(model, device)


# ---------------------------------------------------------------- CLIP and SAM by name


def zero_shot(clip: str, sam: str, root: str | Path = ".") -> ZeroShot:
    """Find the CLIP and the SAM that a user names.

    Args:
        clip: a name of `ppt download` (clip_vit_b_16) or open_clip's name of the same net;
            `toybox`; open_clip's name with one of its tags or the path of a file
            (ViT-B-16:laion2b_s34b_b88k); or the path of an archive as OpenAI publishes it, which
            tells what it is.
        sam: a name of `ppt download` (sam_vit_b) or of `model.sam.name`, or the path of a file.
        root: the folder into which `ppt download` has put the weights.

    Raises:
        ConfigError: if a name is not known, or if weights are not there; the message says in a line
            how to get them.
    """
    missing: list[PublishedFile] = []

    def weights(entry: PublishedFile) -> str:
        place = entry.place(Path(root))
        if not place.exists():
            missing.append(entry)
        return str(place)

    found = ZeroShot(_clip(clip, weights), _sam(sam, weights))
    if missing:
        names = [entry.name for entry in missing]
        places = " and ".join(repr(str(entry.place(Path(root)))) for entry in missing)
        raise ConfigError(
            f"{places} {'are' if len(names) > 1 else 'is'} not there: get "
            f"{'them' if len(names) > 1 else 'it'} with `ppt download {' '.join(names)}`, name "
            "other weights by --clip and --sam, or a trained model by --checkpoint"
        )
    return found


def _entry(name: str, kind: str) -> PublishedFile | None:
    """Return the published weights of a CLIP or a SAM, by the name of the download or the net."""
    entry = FILES.get(name) or published_weights(name)
    return entry if entry and entry.model and _kind(entry) == kind else None


def _kind(entry: PublishedFile) -> str:
    return "sam" if entry.model in SEGMENTERS else "clip"


def _known(kind: str) -> str:
    return ", ".join(e.name for e in FILES.values() if e.model and _kind(e) == kind)


def _clip(given: str, weights: Callable[[PublishedFile], str]) -> ClipConfig:
    if given == TOYBOX:
        return ClipConfig()
    if entry := _entry(given, "clip"):
        return _sized(str(entry.model), weights(entry))
    name, colon, of_name = given.partition(":")
    if colon and name in open_clip.list_models():
        return _sized(name, of_name)
    path = Path(given).expanduser()
    if not path.exists():
        raise ConfigError(
            f"--clip: {given!r} is no file and no known name: give one of {_known('clip')}, or a "
            "name of open_clip with a tag or a file (ViT-B-16:laion2b_s34b_b88k, ViT-B-16:PATH)"
        )
    if not is_torchscript(path):
        raise ConfigError(
            f"--clip: {given} does not tell which CLIP it is and which activation it was trained "
            f"with: put open_clip's name before it, as in ViT-B-16:{given} or "
            f"ViT-B-16-quickgelu:{given}"
        )
    return _sized(f"{_name_in(path, clip_name, '--clip', 'plain ViT of CLIP')}-quickgelu", given)


def _sized(name: str, weights: str) -> ClipConfig:
    """Return the configuration of a CLIP for pictures of the published size, in whole patches."""
    try:
        patch = plain_clip(name)["vision_cfg"].get("patch_size", 32)
    except ValueError as error:
        raise ConfigError(f"--clip: {error}") from None
    return ClipConfig(
        name=name, weights=weights, image_size=round(PUBLISHED_IMAGE_SIZE / patch) * patch
    )


def _sam(given: str, weights: Callable[[PublishedFile], str]) -> SamConfig:
    if given == TOYBOX:
        return SamConfig()
    if entry := _entry(given, "sam"):
        return SamConfig(name=str(entry.model), weights=weights(entry))
    path = Path(given).expanduser()
    if not path.exists():
        raise ConfigError(
            f"--sam: {given!r} is no file and no known name: give one of {_known('sam')}, or the "
            "path of such a file"
        )
    return SamConfig(name=_name_in(path, sam_name, "--sam", "SAM"), weights=given)


def _name_in(
    path: Path, name_of_state: Callable[[dict[str, torch.Tensor]], str | None], field: str, of: str
) -> str:
    """Return the name of the net whose weights a file holds."""
    try:
        name = name_of_state(read_state_dict(path, field=field))
    except (IndexError, TypeError):  # a known tensor with a shape of another kind
        name = None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if name is None:
        raise ConfigError(f"{field}: {path} is no {of}")
    return name

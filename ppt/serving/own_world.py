"""The refusal to answer photographs with encoders that know nothing but the embedded world."""

from __future__ import annotations

import numpy as np

from ppt.images.pictures import UnreadablePicture
from ppt.serving.stored_checkpoint import StoredCheckpoint
from ppt.serving.zero_shot import TOYBOX, AnyModel
from ppt.toybox.recognise import is_of_the_world


class ForeignPicture(UnreadablePicture):
    """The error of a picture about which a model knows nothing."""


def check_world(model: AnyModel, image: np.ndarray, name: str) -> None:
    """Check that a model knows pictures such as this one.

    Args:
        model: a trained checkpoint, or CLIP and SAM without training.
        image: uint8 [H, W, 3].
        name: the name of the picture, for the message.

    Raises:
        ForeignPicture: if CLIP or SAM are those of the embedded world, and the picture is not.
    """
    encoders = model.model if isinstance(model, StoredCheckpoint) else model
    if TOYBOX in (encoders.clip.name, encoders.sam.name) and not is_of_the_world(image):
        raise ForeignPicture(
            f"{name!r} is no picture of the embedded world, and this model knows nothing else: its "
            "masks would mean nothing (leave out --checkpoint to use CLIP and SAM, or give --force)"
        )

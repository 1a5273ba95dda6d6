"""The refusal to answer photographs with encoders that know nothing but the embedded world."""

from __future__ import annotations

import numpy as np

from ppt.images.pictures import UnreadablePicture
from ppt.serving.stored_checkpoint import StoredCheckpoint
from ppt.serving.zero_shot import TOYBOX, AnyModel
from ppt.toybox.recognise import is_of_the_world

FOREIGN = "the picture is none of the embedded world, and this model knows nothing else"
"""What is told of a picture that `check_world` refuses."""


def check_world(model: AnyModel, image: np.ndarray) -> None:
    """Check that a model knows pictures such as this one.

    Args:
        model: a trained checkpoint, or CLIP and SAM without training.
        image: uint8 [H, W, 3].

    Raises:
        UnreadablePicture: with the message `FOREIGN`, if CLIP or SAM are those of the embedded
            world, and the picture is not.
    """
    encoders = model.model if isinstance(model, StoredCheckpoint) else model
    if TOYBOX in (encoders.clip.name, encoders.sam.name) and not is_of_the_world(image):
        raise UnreadablePicture(FOREIGN)

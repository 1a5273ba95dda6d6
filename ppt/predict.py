"""Models for use in Python: a trained one, and CLIP and SAM without training.

from ppt.predict import Predictor

predictor = Predictor.from_checkpoint("runs/quickstart")
predictor.predict("photo.jpg", "the man in the green shirt").overlay().save("overlay.png")

`ZeroShotPredictor.of()` is used in the same way.
"""

from ppt.serving.predictor import PicturePrediction, Predictor
from ppt.serving.zero_shot import ZeroShotPredictor

__all__ = ["PicturePrediction", "Predictor", "ZeroShotPredictor"]

"""A trained model for use in Python.

from ppt.predict import Predictor

predictor = Predictor.from_checkpoint("runs/quickstart")
predictor.predict("photo.jpg", "the man in the green shirt").overlay().save("overlay.png")
"""

from ppt.serving.predictor import PicturePrediction, Predictor

__all__ = ["PicturePrediction", "Predictor"]

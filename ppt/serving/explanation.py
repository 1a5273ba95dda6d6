"""What people see of a prediction besides its mask: the words that were read, and the candidates.

The candidates are those of the pseudo labels (Section 3.3): the mask that the frozen encoders give
each noun phrase. The trained generator does not use them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ppt.config import Labels
from ppt.labels.candidates import Candidate, PhrasePrompt, instance_candidates, merge_candidates
from ppt.labels.noun_phrases import noun_phrases
from ppt.labels.similarity import as_maps
from ppt.serving.predictor import PicturePrediction, Predictor, Question, checked_texts


@dataclass(frozen=True)
class Explanation:
    """The prediction for one expression, with what explains it."""

    prediction: PicturePrediction
    words: list[tuple[str, bool]]  # in their order; whether the encoder reads the word
    candidates: list[Candidate]


@torch.inference_mode()
def explain(
    predictor: Predictor, image: np.ndarray, texts: Sequence[str], labels: Labels
) -> list[Explanation]:
    """Predict the expressions of a picture, and explain each prediction.

    Args:
        predictor: the model.
        image: uint8 [H, W, 3] RGB, as `read_picture` returns it.
        texts: the expressions.
        labels: how candidates are made; those of the run show what the training saw.

    Raises:
        ValueError: if an expression has no word.
    """
    texts = checked_texts(texts)
    phrases_of = [noun_phrases(text, labels.chunker) for text in texts]
    phrases = list(dict.fromkeys(phrase for found in phrases_of for phrase in found))
    question = Question(image, [*texts, *phrases])  # the picture is encoded once for both
    batch = predictor.encode([question]).to(predictor.device)
    [predictions] = predictor.segment([question], batch)
    assert batch.similarity is not None
    maps = as_maps(batch.similarity[len(texts) :])
    found = instance_candidates(
        predictor.model.segmenter,
        batch.segmenter_features,
        batch.sizes,
        [PhrasePrompt(0, phrase, m) for phrase, m in zip(phrases, maps, strict=True)],
        labels.referring,
        max_instances=labels.max_instances,
        threshold=labels.instance_threshold,
    )
    by_phrase = dict(zip(phrases, found, strict=True))
    return [
        Explanation(
            prediction,
            predictor.clip.words_read(text),
            merge_candidates([c for p in of_text for c in by_phrase[p]], labels.merge_iou),
        )
        for text, of_text, prediction in zip(
            texts, phrases_of, predictions[: len(texts)], strict=True
        )
    ]

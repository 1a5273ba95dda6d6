"""CLIP Surgery's maps against the published formulas written out one patch at a time."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ppt.labels.similarity import similarity_map, similarity_maps


@pytest.fixture
def tokens():
    return F.normalize(torch.randn(17, 12, generator=torch.Generator().manual_seed(0)), dim=-1)


@pytest.fixture
def texts():
    return F.normalize(torch.randn(4, 12, generator=torch.Generator().manual_seed(1)), dim=-1)


def stretched(values):
    return (values - values.min()) / (values.max() - values.min())


def test_one_phrase_is_what_the_empty_text_does_not_say(tokens, texts):
    phrase, empty = texts[0], texts[3]
    by_hand = np.array(
        [
            sum(p * (t - e) for p, t, e in zip(patch, phrase, empty, strict=True))
            for patch in tokens[1:]
        ]
    )
    expected = stretched(by_hand).reshape(4, 4)
    np.testing.assert_allclose(similarity_map(tokens, phrase, empty), expected, atol=1e-5)


def test_many_phrases_are_each_on_their_own(tokens, texts):
    pair = torch.stack([tokens, tokens.flip(0)])
    maps = similarity_maps(pair, texts[:2], texts[3])
    for i in range(2):
        torch.testing.assert_close(maps[i], similarity_map(pair[i], texts[i], texts[3]))


def test_a_constant_map_is_zero_and_never_nan(tokens, texts):
    same = tokens[:1].expand(17, -1)
    for maps in (
        similarity_map(same, texts[0], texts[3]),
        similarity_map(tokens, texts[0], texts[0]),
    ):
        assert (maps == 0).all()


def test_patches_must_be_a_square(tokens, texts):
    with pytest.raises(ValueError, match="13 patches are no square grid"):
        similarity_map(tokens[:14], texts[0], texts[1])

"""Who may be the referent, by the words alone; the choice itself is in test_labels_candidates."""

import pytest

from ppt.config import Select
from ppt.steps.select import eligible_candidates

ROW = {"candidates": [{"phrase": p} for p in ("car", "car", "dog", "car")]}


@pytest.mark.parametrize(("head_phrase", "expected"), [(False, [0, 1, 2, 3]), (True, [0, 1, 3])])
def test_only_the_head_phrase_may_be_the_referent_if_asked(head_phrase, expected):
    assert eligible_candidates(ROW, Select(head_phrase=head_phrase)) == expected

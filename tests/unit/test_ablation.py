"""Table 3's rows say what differs from the full method, and no more."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from run_record import build_record

from ppt.config import ConfigError, Curriculum, load_curriculum, load_row
from ppt.evaluation.metrics import Overlaps, measure
from ppt.evaluation.outcomes import candidate_group, outcome
from ppt.experiments.ablation import Ablation, Line, Measured, load_rows, outcomes
from ppt.experiments.ablation_page import write_ablation
from ppt.experiments.candidate_groups import overlaps_by_candidates
from ppt.experiments.table3 import TABLE3
from ppt.images.masks import encode_rle, mask_area
from ppt.steps.evaluate import metrics_of
from ppt.tracking.record import Chosen, stage_epochs

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "curricula" / "ablations" / "table3"
FULL = ROOT / "curricula" / "quickstart.yaml"
PAPER = ROOT / "curricula" / "paper" / "refcoco.yaml"


def row(number: int, *overrides: str, base: Path | None = None) -> Curriculum:
    return load_row(ROWS / f"row{number}.yaml", overrides, base)


def sources(curriculum: Curriculum) -> set[str]:
    return {source for stage in curriculum.stages.values() for source in stage.sources}


@pytest.mark.parametrize("base", [FULL, PAPER], ids=["quickstart", "paper"])
def test_the_nine_rows(base: Path) -> None:
    rows = {n: row(n, base=base) for n in range(1, 10)}
    assert {c.name for c in rows.values()} == TABLE3.keys()
    full = load_curriculum(base)
    assert rows[5] == full.model_copy(update={"name": "row5"})
    names = list(full.stages)
    assert [list(rows[n].stages) for n in (1, 3, 4)] == [[], names[:1], names[:3]]
    for n in (3, 4):
        assert all(rows[n].stages[name] == full.stages[name] for name in rows[n].stages)
    assert sources(rows[2]) == sources(rows[9]) == {"h_sem", "h_ref"}
    assert sources(rows[7]) == {"h_sem", "h_ref", "d_sem"}
    assert sources(rows[8]) == {"h_sem", "h_ref", "d_ref"}
    assert list(rows[2].stages) == names[:1]  # on the quickstart as long as row 5
    assert rows[2].stages[names[0]].num_epochs == 18 > full.stages[names[0]].num_epochs
    for n in (2, 6):  # no curriculum: every stage alike, nobody selects
        stages = rows[n].stages.values()
        assert len({tuple(sorted(s.sources.items())) for s in stages}) == 1
        assert not any(s.select for s in stages)
        whole = {"unselected": "whole_expression"}
        assert rows[n].labels == full.labels.model_copy(update=whole)
    for n in (6, 7, 8, 9):  # as many epochs
        assert [(s.num_epochs, s.rounds) for s in rows[n].stages.values()] == [
            (s.num_epochs, s.rounds) for s in full.stages.values()
        ]
    for n in (7, 8, 9):  # but for their sources they are the full method
        for name, stage in rows[n].stages.items():
            kept = {s: w for s, w in full.stages[name].sources.items() if s in sources(rows[n])}
            assert stage == full.stages[name].model_copy(update={"sources": kept})


def test_row_6_has_as_much_of_each_source_as_the_full_method() -> None:
    def amounts(curriculum: Curriculum) -> dict[str, float]:
        found: dict[str, float] = {}
        for stage in curriculum.stages.values():
            for source, weight in stage.sources.items():
                times = weight * stage.num_epochs * stage.rounds
                found[source] = found.get(source, 0.0) + times
        return found

    assert amounts(row(6)) == pytest.approx(amounts(row(5)), rel=0.02)


def test_an_override_serves_rows_with_and_without_the_stage() -> None:
    override = "stages.ris_joint.num_epochs=7"
    assert list(row(3, override).stages) == ["semantic_alignment"]
    assert row(5, override).stages["ris_joint"].num_epochs == 7


def test_rows_are_runs_of_their_own(tmp_path: Path) -> None:
    rows = load_rows(ROWS, [], None, [0, 7])
    assert [[(c.name, c.seed) for c in rows[r]] for r in ("row1", "row9")] == [
        [("row1.seed0", 0), ("row1.seed7", 7)],
        [("row9.seed0", 0), ("row9.seed7", 7)],
    ]
    with pytest.raises(ConfigError, match="no curricula in"):
        load_rows(tmp_path, [], None, [0])
    (tmp_path / "a.yaml").write_text("name: a\n")
    with pytest.raises(ConfigError, match="give it a base"):
        load_rows(tmp_path, [], None, [0])
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(f"base: {FULL}\nname: same\n")
    with pytest.raises(ConfigError, match="'same' is another row's already"):
        load_rows(tmp_path, [], None, [0])


@pytest.mark.parametrize(
    ("intersection", "predicted", "target", "expected"),
    [
        (0, 0, 10, "nothing"),
        (10, 10, 10, "found"),
        (5, 5, 10, "found"),  # IoU 0.5
        (4, 4, 10, "part"),
        (10, 21, 10, "too much"),
        (4, 10, 10, "wrong object"),
        (0, 10, 10, "wrong object"),
        (6, 11, 10, "too much"),  # IoU 0.4, more than half of both
    ],
)
def test_outcomes(intersection: int, predicted: int, target: int, expected: str) -> None:
    assert outcome(intersection, predicted, target) == expected


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 30))
def test_found_is_what_precision_counts(both: int, only: int, missed: int) -> None:
    iou = both / (both + only + missed)
    assert (outcome(both, both + only, both + missed) == "found") == (iou >= 0.5)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_run_lengths_tell_their_area(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.4
    assert mask_area(encode_rle(mask)) == mask.sum()


def test_every_sentence_is_in_one_group_of_candidates(tmp_path: Path) -> None:
    assert [candidate_group(n) for n in range(5)] == ["none", "1", "2", "3 or more", "3 or more"]
    results = build_record(tmp_path, num_pictures=5).stages[-1].results
    rows = results.read_all().to_pylist()
    counts = {(row["picture"], row["expression_id"]): i for i, row in enumerate(rows) if i}
    found = overlaps_by_candidates(results, counts)
    assert {group: len(m) for group, m in found.items()} == {
        "none": 1,  # what was not labelled
        "1": 1,
        "2": 1,
        "3 or more": len(rows) - 3,
    }
    assert measure(found["1"])["mIoU"] == pytest.approx(100 * rows[1]["iou"])
    pairs = [p for o in found.values() for p in zip(o.intersection, o.union, strict=True)]
    assert measure(Overlaps.of(pairs)) == metrics_of(results)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of an ablation with two rows, one of which is trained."""
    folder = tmp_path_factory.mktemp("ablation")
    record = build_record(folder / "runs")
    record.chosen = Chosen("refinement.2", "last")
    baseline, trained = record.results("clip_sam_published"), record.stages[-1].results
    lines = []
    for name, results in (("row1", baseline), ("row5", trained)):
        measured = Measured(
            record,
            metrics_of(results),
            outcomes(results),
            overlaps_by_candidates(results, {}),
            trained=results if results is trained else None,
        )
        lines.append(Line(name, TABLE3[name].title, TABLE3[name], {7: measured}))
    write_ablation(Ablation("table3", [7], lines, 7, 7, 12), folder)
    return folder / "report.html"


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_in_a_browser(page: Path, width: int, browser: Any) -> None:
    """Nothing is cut off, and a shadow is where a table goes on, as on the page of a run."""
    seen = browser.look_at(page.as_uri(), width)
    assert seen.told == [] and seen.cut_off == []
    assert "have a negative point" in seen.text and "Better with negative points" in seen.text
    picture = np.asarray(Image.open(io.BytesIO(seen.picture)).convert("L")).astype(int)
    right = {1280: 1105, 400: 383}[width]  # the last column of the tables
    shaded = (abs(picture[:, right] - 195) < 8).sum()  # a shadow, which is a quarter of black
    assert (shaded > 150) == (width == 400)


def test_what_is_shared_counts_once() -> None:
    assert stage_epochs([("a", 4), ("b", 3), ("a", 4), ("c", 1)]) == (8, 12)

"""The page: whole, self-contained, and right about what it shows."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from common import nodes_of
from PIL import Image
from run_record import STAGES, build_record

from ppt.curriculum.choice import choose_stage
from ppt.images.drawing import MARK
from ppt.images.panels import (
    SIDE,
    candidates_panel,
    data_uri,
    mask_panel,
    picture_panel,
    similarity_panel,
)
from ppt.report import write_report
from ppt.report.gallery import outcome_gallery, stage_panels
from ppt.report.scenes import draw
from ppt.report.sentences import Sentence, changes, compare
from ppt.report.sources import select_rounds, training_sources
from ppt.tracking.record import RunRecord

NUM_PICTURES = 8
_VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Balanced tags, attributes that fetch, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        if tag not in _VOID:
            self.open.append(tag)
        if tag in ("img", "image"):
            self.sources.append(values.get("src") or values["href"])
        if tag == "a":
            self.links.append(values["href"])
        self.ids |= {values["id"]} if "id" in values else set()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return build_record(tmp_path_factory.mktemp("runs"), NUM_PICTURES)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A run of two pictures, for pages of which only a line is of interest."""
    return build_record(tmp_path_factory.mktemp("few"), 2)


@pytest.fixture(scope="module")
def html(record: RunRecord) -> str:
    return write_report(record, Path(record.folder) / "report.html").read_text()


def test_page_is_well_formed_and_self_contained(html: str) -> None:
    page = Page(html)
    assert page.open == []
    assert "://" not in re.sub(r"data:image/webp;base64,[A-Za-z0-9+/=]+", "", html)
    assert all(link[1:] in page.ids for link in page.links)
    assert len(html) < 6e6


def test_every_picture_decodes(html: str) -> None:
    sources = Page(html).sources
    assert len(sources) > 40
    for source in sources:
        head, _, data = source.partition(",")
        assert head == "data:image/webp;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        picture.load()
        assert max(picture.size) == SIDE


def test_page_names_all_of_the_run(html: str, record: RunRecord) -> None:
    text = Page(html).text
    for stage in STAGES:
        assert stage.replace("_", " ") in text
    for name in ("d_sem", "d_ref", "h_sem", "h_ref", "Select, round 3", "loss_mask"):
        assert name in text
    for node in nodes_of(record).values():
        assert node.digest in text
    gain = record.stages[-1].metrics["mIoU"] - record.baselines["clip_sam_best"].metrics["mIoU"]
    assert f"{gain:.1f} points above the best CLIP+SAM" in text
    assert "picture is 1x1, needs at least 8x8" in text
    assert "text <b>is</b> only spaces" in text  # shown as it is, not as markup
    assert "num_queries: 10" in text


def test_same_record_same_page(html: str, record: RunRecord, tmp_path: Path) -> None:
    assert write_report(record, tmp_path / "again.html").read_text() == html


def test_a_run_of_baselines_alone(few: RunRecord, tmp_path: Path) -> None:
    bare = replace(few, stages=[], selected=[], chosen=None)
    page = Page(write_report(bare, tmp_path / "bare.html").read_text())
    assert page.open == [] and "CLIP+SAM, published" in page.text


def test_a_model_chosen_on_ground_truth_says_so(few: RunRecord, tmp_path: Path) -> None:
    scores = {name: 50.0 + number for number, name in enumerate(reversed(STAGES))}
    for by, note in (("truth", "not weakly supervised"), ("pseudo_iou", "no ground truth")):
        chosen = replace(few, chosen=choose_stage(by, list(STAGES), scores))
        text = Page(write_report(chosen, tmp_path / "report.html").read_text()).text
        assert "takes, is semantic alignment :" in text and note in text
        assert "semantic alignment 53.0" in text


def test_sentences_without_kinds(tmp_path: Path) -> None:
    record = build_record(tmp_path, 2, kinds=False)
    page = Page(write_report(record, tmp_path / "report.html").read_text())
    assert page.open == []
    assert "by kind" not in page.text and "unknown" not in page.text


# ---------------------------------------------------------------- what it is made of


def test_comparison_agrees_with_the_metrics(record: RunRecord) -> None:
    comparison = compare(record)
    for stage in record.stages:
        assert 100 * comparison.iou[stage.name].mean() == pytest.approx(stage.metrics["mIoU"])
        by_kind = comparison.by_kind(stage.name)
        sizes = [comparison.of_kind(kind).sum() for kind in comparison.kinds]
        mean = np.average([by_kind[kind] for kind in comparison.kinds], weights=sizes)
        assert mean == pytest.approx(stage.metrics["mIoU"])


def test_changes_add_up(record: RunRecord) -> None:
    comparison = compare(record)
    found = list(changes(record, comparison))
    assert [c.after for c in found] == list(STAGES)
    assert [c.before for c in found] == ["clip_sam_best", *list(STAGES)[:-1]]
    for change in found:
        whole = change.improved + change.worsened + change.unchanged
        assert whole == len(comparison.sentences) == 2 * NUM_PICTURES
    total = sum(change.difference for change in found)
    gain = record.stages[-1].metrics["mIoU"] - record.baselines["clip_sam_best"].metrics["mIoU"]
    assert total == pytest.approx(gain)


def test_groups_hold_every_sentence_once(record: RunRecord) -> None:
    groups = outcome_gallery(record, compare(record))
    assert [g.key for g in groups] == ["learnt", "missed", "lost", "kept"]
    assert sum(g.number for g in groups) == 2 * NUM_PICTURES
    for group in groups:
        assert bool(group.strips) == bool(group.number)
        for item in group.strips:
            first, last = item.figures[3].iou, item.figures[-2].iou
            assert first is not None and last is not None
            assert (last >= 0.5) == (group.key in ("learnt", "kept"))
            assert (first >= 0.5) == (group.key in ("lost", "kept"))


def test_draw_is_by_lot_with_kinds_in_turn() -> None:
    sentences = [
        Sentence(f"picture-{i // 2}", f"{i}", "", "class" if i < 90 else "relation")
        for i in range(100)
    ]
    chosen = draw(sentences, range(100), 6)
    assert chosen == draw(sentences, reversed(range(100)), 6)
    kinds = [sentences[i].kind for i in chosen]
    assert kinds == ["class", "relation"] * 3
    assert len({sentences[i].picture for i in chosen}) == 6
    assert len(draw(sentences, range(4), 6)) == 2  # two pictures, so two sentences
    assert draw(sentences, [], 6) == []


def test_sources_are_counted_and_shown(record: RunRecord) -> None:
    sources = {source.name: source for source in training_sources(record)}
    sizes = {name: (s.pictures, s.expressions) for name, s in sources.items()}
    n = NUM_PICTURES
    assert sizes == {"d_sem": (n, n), "d_ref": (n, 2 * n), "h_sem": (n, n), "h_ref": (n, n)}
    assert all(len(source.examples) == 7 for source in sources.values())


def test_select_rounds(record: RunRecord) -> None:
    rounds, choices = select_rounds(record)
    n = NUM_PICTURES
    assert [(r.selected, r.unselected) for r in rounds] == [(n - 1, 1)] * 3
    assert [r.changed for r in rounds] == [0, n // 2, 0]
    assert [r.first_phrase for r in rounds] == [n - 1, n // 2 - 1, n // 2 - 1]
    assert any(len(set(choice.by_round)) > 1 for choice in choices)
    assert any(set(choice.by_round) == {None} for choice in choices)


def test_stage_panels_are_the_same_sentences(record: RunRecord) -> None:
    first, last = (stage_panels(record, stage) for stage in (record.stages[0], record.stages[-1]))
    assert list(first) == list(last) and len(first) == 6
    for panel in first.values():
        assert panel.width > 3 * SIDE


# ---------------------------------------------------------------- drawing


@pytest.fixture
def image() -> np.ndarray:
    return np.full((60, 120, 3), 128, np.uint8)


def test_panels_keep_the_shape(image: np.ndarray) -> None:
    mask = np.zeros((60, 120), bool)
    mask[10:40, 20:60] = True
    panels = [
        picture_panel(image),
        mask_panel(image, mask),
        candidates_panel(image, [mask, ~mask], ["#ff0000", "#00ff00"]),
        similarity_panel(image, np.eye(4)),
    ]
    assert {panel.size for panel in panels} == {(SIDE, SIDE // 2)}
    assert {panel.mode for panel in panels} == {"RGB"}


def test_mask_and_points_are_where_they_belong(image: np.ndarray) -> None:
    mask = np.zeros((60, 120), bool)
    mask[:, :60] = True
    panel = np.asarray(
        mask_panel(
            image, mask, colour="#0000ff", points=[0.75, 0.25, 0.75, 0.75], point_labels=[1, 0]
        )
    ).astype(int)
    inside, outside = panel[SIDE // 4, SIDE // 4], panel[5, SIDE - 5]
    assert inside[2] > inside[0] + 30 and abs(outside[2] - outside[0]) < 5
    x = round(0.75 * SIDE) - 5  # beside the sign, inside the disc
    positive, negative = panel[SIDE // 8 - 2, x + 1], panel[SIDE * 3 // 8 - 2, x + 1]
    assert positive[1] > positive[0] + 40 and negative[0] > negative[1] + 40


def test_many_points_leave_a_small_picture_to_be_seen(image: np.ndarray) -> None:
    """One is drawn as large as ever, and forty together cover little."""
    points = np.random.default_rng(0).uniform(0.1, 0.9, (40, 2))
    nothing = np.zeros((60, 120), bool)
    plain = np.asarray(mask_panel(image, nothing)).astype(int)

    def covered(number: int) -> float:
        drawn = mask_panel(image, nothing, points=points[:number], point_labels=[1] * number)
        return float((abs(np.asarray(drawn).astype(int) - plain).max(-1) > 0).mean())

    disc = np.pi * MARK**2 / 4 / (SIDE * SIDE / 2)
    assert covered(1) == pytest.approx(disc, rel=0.25)  # its rim is smoothed
    assert covered(40) < 6 * covered(1)


def test_an_empty_mask_and_a_point_outside_are_drawn(image: np.ndarray) -> None:
    panel = mask_panel(image, np.zeros((60, 120), bool), points=[1.0, 1.0], point_labels=[0])
    assert data_uri(panel).startswith("data:image/webp;base64,")


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_cut_off_in_a_browser(
    html: str, tmp_path: Path, width: int, browser: Any
) -> None:
    """At the widths of a desk and of a phone; what is too wide is scrolled within its own box."""
    page = tmp_path / "report.html"
    page.write_text(html)
    seen = browser.look_at(page.as_uri(), width)
    assert seen.told == [] and seen.cut_off == []
    right = {1280: 1235, 400: 385}[width]  # of the text's column
    edge = np.asarray(Image.open(io.BytesIO(seen.picture)).convert("L"))[:, right]
    shaded = (abs(edge.astype(int) - 189) < 8).sum()  # a shadow, which is a quarter of black
    assert (shaded > 300) == (width == 400)  # where a table goes on
    page.write_text(html.replace("</main>", "<div style='width: 2000px'>wide</div></main>"))
    assert browser.look_at(page.as_uri(), width).cut_off == ["DIV.null: wide"]  # it would be seen

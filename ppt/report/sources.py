"""The four training sources: their sizes, examples of them, and the choices of Select in H_ref."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ppt.config import SOURCES
from ppt.images.masks import decode_rle
from ppt.images.panels import CANDIDATES, candidates_panel, data_uri, mask_panel
from ppt.report.picture_rows import images_of, rows_of
from ppt.store.nodes import DATA, LABELS, Node, digest_of
from ppt.store.schema import SentenceKey, sentence_key
from ppt.tracking.record import RunRecord

REFERENT, CONTEXT = CANDIDATES[0], CANDIDATES[1]

PER_SOURCE = 7
"""The number of examples of each source."""
NUM_CHOICES = 8
"""The number of sentences that illustrate Select."""

_ABOUT = {
    "d_sem": "object-centric pictures, “the [class] in the middle”; the label is CLIP+SAM's mask",
    "d_ref": "made of D_sem: mosaics and pictures in pictures, with positions and relations",
    "h_sem": "referring pictures whose expression has one candidate; its mask is noisy",
    "h_ref": "referring pictures with several candidates; Select says which is the referent",
}


@dataclass(frozen=True)
class Example:
    """A training sample, with its referent in blue and its context objects in orange."""

    text: str
    picture: str  # data URI


@dataclass(frozen=True)
class Source:
    """A training source with its size and some examples."""

    name: str
    about: str
    pictures: int
    expressions: int
    examples: list[Example]


@dataclass(frozen=True)
class _Labels:
    """The labels of a data set, and the samples that belong to them."""

    node: Node
    table: str
    samples: Node

    def rows(self, source: str) -> Iterator[dict]:
        """Yield `picture`, `expression_id` and `source` of each label of a source."""
        for bucket in range(self.node.num_buckets):
            columns = ["picture", "expression_id", "source"]
            for row in self.node.read(bucket, self.table, columns).to_pylist():
                if row["source"] == source:
                    yield row


def training_sources(record: RunRecord) -> list[Source]:
    """Return the sources that the run has, with their sizes and some examples.

    The labels are those of the last round.
    """
    return [
        _source(name, labels) for name in SOURCES if (labels := _labels(record, name)) is not None
    ]


def _labels(record: RunRecord, source: str) -> _Labels | None:
    if source.startswith("h_"):
        return _Labels(record.rounds()[-1], DATA, record.data["referring"].samples)
    tables = record.data["d_ref" if source == "d_ref" else "object_centric"]
    if not tables.has("labels"):
        return None
    return _Labels(tables.labels, LABELS if source == "d_ref" else DATA, tables.samples)


def _source(name: str, labels: _Labels) -> Source:
    rows = list(labels.rows(name))
    chosen = _lot(rows, PER_SOURCE)
    pictures = [row["picture"] for row in chosen]
    images = images_of(labels.samples, pictures)
    full = rows_of(labels.node, pictures, labels.table)
    ids = {row["expression_id"] for row in chosen}
    examples = [
        Example(row["text"], _draw(row, images[picture]))
        for picture in pictures
        for row in full[picture]
        if row["expression_id"] in ids
    ]
    return Source(name, _ABOUT[name], len({r["picture"] for r in rows}), len(rows), examples)


def _draw(row: dict, image) -> str:
    """Draw the pseudo labels of a sample, and return a data URI.

    A single mask is drawn with the points that SAM was prompted with.
    """
    masks = _masks(row)
    if len(masks) == 1:
        (only,) = row["candidates"]
        panel = mask_panel(
            image,
            masks[0],
            colour=REFERENT,
            points=only["points"],
            point_labels=only["point_labels"],
        )
        return data_uri(panel)
    # The referent is drawn last, so that no other mask hides it.
    order = sorted(range(len(masks)), key=lambda i: row["candidates"][i]["is_referent"])
    colours = [REFERENT if row["candidates"][i]["is_referent"] > 0 else CONTEXT for i in order]
    return data_uri(candidates_panel(image, [masks[i] for i in order], colours))


def _masks(row: dict) -> list:
    return [decode_rle(c["mask"], row["height"], row["width"]) for c in row["candidates"]]


def _lot(rows: list[dict], count: int) -> list[dict]:
    """Draw up to `count` rows of different pictures; every machine draws the same ones."""
    chosen: dict[str, dict] = {}
    for row in sorted(rows, key=lambda row: digest_of(row["expression_id"])):
        chosen.setdefault(row["picture"], row)
        if len(chosen) == count:
            break
    return list(chosen.values())


# ---------------------------------------------------------------- Select


@dataclass(frozen=True)
class Round:
    """The decisions of one Select about H_ref, in numbers of sentences."""

    number: int
    selected: int  # sentences with a referent
    unselected: int  # sentences without one
    changed: int  # sentences whose referent is not that of the round before (0 in the first)
    first_phrase: int  # sentences whose referent is the first candidate


@dataclass(frozen=True)
class Choice:
    """A sentence of H_ref: its candidates in their colours, and the one chosen in each round."""

    text: str
    picture: str  # data URI
    phrases: list[tuple[str, str]]  # (phrase, colour)
    by_round: list[int | None]  # index of the referent; None without one


def select_rounds(record: RunRecord) -> tuple[list[Round], list[Choice]]:
    """Return the figures of each Select, and sentences of H_ref that illustrate it.

    Up to half of the sentences are ones whose referent changed between rounds; these come first.
    """
    nodes = record.rounds()
    if len(nodes) == 1:
        return [], []
    chosen = [_chosen(node) for node in nodes[1:]]
    figures = []
    for number, by_key in enumerate(chosen, 1):
        before = chosen[number - 2] if number > 1 else by_key
        sure = [index for index in by_key.values() if index is not None]
        changed = sum(before[key] != index for key, index in by_key.items())
        first = sum(index == 0 for index in sure)
        figures.append(Round(number, len(sure), len(by_key) - len(sure), changed, first))
    return figures, _choices(record, chosen)


def _chosen(labels: Node) -> dict[SentenceKey, int | None]:
    """Return the index of the referent of each sentence of H_ref, or None if it has no referent."""
    found = {}
    for bucket in range(labels.num_buckets):
        for row in labels.read(bucket).to_pylist():
            if row["source"] == "h_ref":
                found[sentence_key(row)] = _referent(row)
    return found


def _referent(row: dict) -> int | None:
    scores = [candidate["is_referent"] for candidate in row["candidates"]]
    return scores.index(max(scores)) if max(scores) > 0 else None


def _choices(record: RunRecord, chosen: list[dict[SentenceKey, int | None]]) -> list[Choice]:
    keys = [{"picture": p, "expression_id": e} for p, e in chosen[0]]

    def moved(row: dict) -> bool:
        key = sentence_key(row)
        return len({by_key[key] for by_key in chosen}) > 1

    shown = _lot([row for row in keys if moved(row)], NUM_CHOICES // 2)
    shown += _lot([row for row in keys if not moved(row)], NUM_CHOICES - len(shown))
    pictures = [row["picture"] for row in shown]
    images = images_of(record.data["referring"].samples, pictures)
    labels = rows_of(record.data["referring"].labels, pictures)
    choices = []
    for row in shown:
        key = sentence_key(row)
        (label,) = [r for r in labels[key[0]] if r["expression_id"] == key[1]]
        colours = [CANDIDATES[i % len(CANDIDATES)] for i in range(len(label["candidates"]))]
        panel = candidates_panel(images[key[0]], _masks(label), colours)
        phrases = [c["phrase"] for c in label["candidates"]]
        choices.append(
            Choice(
                label["text"],
                data_uri(panel),
                list(zip(phrases, colours, strict=True)),
                [by_key[key] for by_key in chosen],
            )
        )
    return choices

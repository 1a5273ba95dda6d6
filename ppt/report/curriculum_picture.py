"""A drawing of the curriculum.

It shows the sources, the stages that train on them, Select, and the mIoU after each stage.
"""

from __future__ import annotations

from markupsafe import Markup

from ppt.config import SOURCES
from ppt.report.names import title_of
from ppt.report.sources import Source
from ppt.report.svg import line, path, svg, tag, text
from ppt.tracking.record import RunRecord, StageRecord

# Lengths are in units of the drawing.
GUTTER, COLUMN, LANE = 268, 182, 84  # width left of the stages; width of a stage; height of a lane
TOP, BOX, CHART = 8, 66, 210  # heights of the space above the lanes, of a stage's box, of the chart
GAP = 46  # height of the space for arrows between lanes, boxes and chart


def curriculum_picture(record: RunRecord, sources: list[Source]) -> Markup:
    """Draw the sources as lanes above columns of stages, and the mIoU below each stage."""
    stages = record.stages
    width = GUTTER + COLUMN * len(stages) + 24
    boxes_at = TOP + LANE * len(sources) + GAP
    chart_at = boxes_at + BOX + GAP
    parts = [_arrow_heads()]
    for row, source in enumerate(sources):
        parts.append(_lane(source, TOP + row * LANE, width))
    for column, stage in enumerate(stages):
        x = GUTTER + column * COLUMN
        parts += _feeds(record, stage, sources, x, boxes_at)
        if stage.selected:
            parts.append(_select(record, stage, sources, x, boxes_at))
        parts.append(_box(stage, x, boxes_at))
        if column:
            y = boxes_at + BOX / 2
            arrow = {"class_": "flow", "marker_end": "url(#head)"}
            parts.append(tag("path", d=f"M{x - 10} {y} L{x + 2} {y}", **arrow))
    parts.append(_chart(record, chart_at, width))
    return svg(width, chart_at + CHART + 28, parts, "The curriculum", "curriculum")


def _arrow_heads() -> str:
    head = tag("path", d="M0 0 L8 4 L0 8 z", class_="head")
    shape = {"markerWidth": 8, "markerHeight": 8, "refX": 7, "refY": 4, "orient": "auto"}
    return tag("defs", tag("marker", head, id="head", markerUnits="userSpaceOnUse", **shape))


def _lane(source: Source, y: float, width: float) -> str:
    thumb = LANE - 16
    parts = [
        tag("rect", x=0, y=y, width=width, height=LANE - 8, rx=8, class_=f"lane {source.name}"),
        text(thumb + 22, y + 30, source.name, "name"),
        text(thumb + 22, y + 49, f"{source.expressions:,} expressions", "small"),
        text(thumb + 22, y + 65, f"{source.pictures:,} pictures", "small"),
    ]
    if source.examples:
        place = {"x": 8, "y": y + 4, "width": thumb, "height": thumb}
        parts.append(tag("image", href=source.examples[0].picture, **place))
    return "".join(parts)


def _feeds(
    record: RunRecord, stage: StageRecord, sources: list[Source], x: float, boxes_at: float
) -> list[str]:
    """Draw a dot in the lane of each source of the stage, and a line from there to the stage."""
    weights = record.curriculum.stages[stage.stage].sources
    parts = []
    for row, source in enumerate(sources):
        if source.name not in weights:
            continue
        at = x + COLUMN / 2 + 26 * (SOURCES.index(source.name) - 1.5)
        y = TOP + row * LANE + (LANE - 8) / 2
        parts.append(path([(at, y), (at, boxes_at)], f"feed {source.name}"))
        parts.append(tag("circle", cx=at, cy=y, r=7, class_=f"dot {source.name}"))
        weight = weights[source.name]
        if weight != 1:
            parts.append(text(at + 8, y - 10, f"× {weight:g}", "small"))
    return parts


def _select(
    record: RunRecord, stage: StageRecord, sources: list[Source], x: float, boxes_at: float
) -> str:
    """Draw Select before a stage as an arrow into the lane of H_ref, with the number of the round.

    Returns an empty string if H_ref is not among the sources.
    """
    names = [source.name for source in sources]
    if "h_ref" not in names:
        return ""
    number = next(i for i, node in enumerate(record.rounds()) if node == stage.selected)
    y = TOP + names.index("h_ref") * LANE + (LANE - 8) / 2
    start, end = x - 34, x + COLUMN / 2 + 26 * 1.5 - 9
    way = f"M{start} {boxes_at} C{start} {y + 18} {start + 24} {y} {end} {y}"
    label = text(x + 14, y - 7, f"Select, round {number}", "small select-label")
    return tag("path", d=way, class_="select", marker_end="url(#head)") + label


def _box(stage: StageRecord, x: float, y: float) -> str:
    middle = x + (COLUMN - 12) / 2 + 2
    title = title_of(stage.name)
    size = min(15.0, 1.5 * (COLUMN - 24) / len(title))  # long names are set smaller
    epochs = f"{stage.num_epochs} epoch{'s' if stage.num_epochs > 1 else ''}"
    return "".join(
        [
            tag("rect", x=x + 2, y=y, width=COLUMN - 12, height=BOX, rx=10, class_="box"),
            text(middle, y + 28, title, "stage", "middle", size),
            text(middle, y + 48, f"{epochs}, {stage.seconds:,.0f} s", "small", "middle"),
        ]
    )


def _chart(record: RunRecord, top: float, width: float) -> str:
    """Draw the mIoU after each stage in the stage's column, and the baselines as dashed lines."""
    values = [stage.metrics["mIoU"] for stage in record.stages]
    lines = {name: b.metrics["mIoU"] for name, b in record.baselines.items()}
    low, high = _limits([*values, *lines.values()])

    def height(value: float) -> float:
        return top + CHART * (1 - (value - low) / (high - low))

    parts = [
        line(GUTTER - 8, top + CHART, width - 16, top + CHART, "axis"),
        text(8, top + 10, "mIoU on held-out", "name"),
        text(8, top + 28, "sentences, percent", "small"),
    ]
    label_at = {name: height(value) for name, value in lines.items()}
    best = record.best_baseline
    for name, y in label_at.items():
        parts.append(line(GUTTER - 8, y, width - 16, y, "baseline"))
        # Labels closer than 32 units are moved apart: the best baseline's up, others down.
        near = any(abs(y - other) < 32 for n, other in label_at.items() if n != name)
        shift = (-12 if name == best else 14) if near else 0
        words = f"{title_of(name)}  {lines[name]:.1f}"
        parts.append(text(GUTTER - 16, y + 4 + shift, words, "small", "end"))
    middle = (COLUMN - 12) / 2 + 2
    points = [(GUTTER + i * COLUMN + middle, height(v)) for i, v in enumerate(values)]
    if points:
        parts.append(path(points, "curve"))
    for (x, y), value in zip(points, values, strict=True):
        parts.append(tag("circle", cx=x, cy=y, r=5.5, class_="point"))
        parts.append(text(x, y - 13, f"{value:.1f}", "value", "middle"))
    return "".join(parts)


def _limits(values: list[float]) -> tuple[float, float]:
    """Return the bounds of the axis at multiples of 5, with room for numbers above the points."""
    low, high = min(values, default=0.0), max(values, default=100.0)
    return max(0.0, 5 * ((low - 3) // 5)), 5 * ((high + 4) // 5 + 1)

"""Charts over the whole curriculum, one for each figure of the history: losses first."""

from __future__ import annotations

from markupsafe import Markup

from ppt.report.svg import line, path, svg, tag, text
from ppt.tracking.record import RunRecord

WIDTH, HEIGHT = 340, 150
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 26, 22


def training_curves(record: RunRecord) -> list[Markup]:
    """Draw a chart for each figure of an epoch, with the stages in order from left to right."""
    names = dict.fromkeys(
        name for stage in record.stages for epoch in stage.history for name in epoch
    )
    return [_curve(record, name) for name in names if name != "epoch"]


def _curve(record: RunRecord, name: str) -> Markup:
    curves = [[e[name] for e in stage.history if name in e] for stage in record.stages]
    total = sum(map(len, curves))
    values = [value for curve in curves for value in curve]
    high = max([*values, 1e-9]) * 1.08

    def place(epoch: int, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (epoch + 0.5) / total
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / high

    parts = [
        text(4, 14, name, "name"),
        line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "axis"),
        text(LEFT - 6, HEIGHT - BOTTOM + 4, "0", "small", "end"),
        text(LEFT - 6, place(0, max(values))[1] + 4, f"{max(values):.3g}", "small", "end"),
    ]
    epoch = 0
    for number, (stage, curve) in enumerate(zip(record.stages, curves, strict=True)):
        points = [place(epoch + i, value) for i, value in enumerate(curve)]
        if number:
            x = LEFT + (WIDTH - LEFT - RIGHT) * epoch / total
            parts.append(line(x, TOP, x, HEIGHT - BOTTOM, "border"))
        epoch += len(curve)
        if not points:
            continue
        parts.append(path(points, "curve"))
        for (x, y), value in zip(points, curve, strict=True):
            label = tag("title", f"{stage.name}: {value:.4g}")
            parts.append(tag("circle", label, cx=x, cy=y, r=2.5, class_="point"))
        middle = (points[0][0] + points[-1][0]) / 2
        parts.append(text(middle, HEIGHT - 6, str(number + 1), "small", "middle"))
    return svg(WIDTH, HEIGHT, parts, f"{name} by epoch", "loss")

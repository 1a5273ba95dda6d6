"""A few lines of SVG: shapes as strings, whose colours come from the page's style sheet."""

from __future__ import annotations

from html import escape

from markupsafe import Markup


def tag(name: str, content: str = "", /, **attributes: object) -> str:
    """<name a="1">content</name>; `class_` and `stroke_width` lose or turn their underscore."""
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for key, value in attributes.items()
    )
    return f"<{name}{text}>{content}</{name}>"


def text(
    x: float,
    y: float,
    words: str,
    class_: str = "",
    anchor: str = "start",
    size: float | None = None,
) -> str:
    """Words at (x, y); `size` where it differs from the style sheet's."""
    style = {"style": f"font-size: {_number(size)}px"} if size else {}
    return tag("text", escape(words), x=x, y=y, class_=class_, text_anchor=anchor, **style)


def line(x0: float, y0: float, x1: float, y1: float, class_: str = "") -> str:
    return tag("line", x1=x0, y1=y0, x2=x1, y2=y1, class_=class_)


def path(points: list[tuple[float, float]], class_: str = "") -> str:
    """Straight lines from point to point."""
    steps = " L".join(f"{_number(x)} {_number(y)}" for x, y in points)
    return tag("path", d=f"M{steps}", class_=class_)


def svg(width: float, height: float, content: list[str], title: str, class_: str = "") -> Markup:
    """A drawing that fills its place, between 0.8 and 1.3 times its own size.

    `title` is what a screen reader says.
    """
    attributes = {
        "viewBox": f"0 0 {_number(width)} {_number(height)}",
        "style": f"width: 100%; min-width: {0.8 * width:.0f}px; max-width: {1.3 * width:.0f}px",
        "role": "img",
        "aria_label": title,
        "class_": class_,
    }
    return Markup(tag("svg", "".join(content), **attributes))


def _number(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)

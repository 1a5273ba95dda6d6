"""Functions that return SVG shapes as strings; the page's style sheet gives them their colours."""

from __future__ import annotations

from html import escape

from markupsafe import Markup


def tag(name: str, content: str = "", /, **attributes: object) -> str:
    """Return an SVG element, such as `<name a="1">content</name>`.

    In the names of attributes a trailing underscore is dropped (`class_`) and other underscores
    become hyphens (`stroke_width`).
    """
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
    """Return a text element at (x, y); `size` in pixels overrides that of the style sheet."""
    style = {"style": f"font-size: {_number(size)}px"} if size else {}
    return tag("text", escape(words), x=x, y=y, class_=class_, text_anchor=anchor, **style)


def line(x0: float, y0: float, x1: float, y1: float, class_: str = "") -> str:
    """Return a straight line from (x0, y0) to (x1, y1)."""
    return tag("line", x1=x0, y1=y0, x2=x1, y2=y1, class_=class_)


def path(points: list[tuple[float, float]], class_: str = "") -> str:
    """Return a path of straight lines from point to point."""
    steps = " L".join(f"{_number(x)} {_number(y)}" for x, y in points)
    return tag("path", d=f"M{steps}", class_=class_)


def svg(width: float, height: float, content: list[str], title: str, class_: str = "") -> Markup:
    """Return a drawing that fills its container, at between 0.8 and 1.3 times its own size.

    `title` is the text that a screen reader speaks.
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

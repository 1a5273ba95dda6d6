"""The page templates in this folder. A template that uses an undefined name raises an error."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from ppt.report.names import title_of


def template(name: str) -> Template:
    """Return a template by the name of its file, with the filter `title_of`."""
    environment = Environment(
        loader=PackageLoader("ppt.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["title_of"] = title_of
    return environment.get_template(name)

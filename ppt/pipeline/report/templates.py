"""The page templates beside this file; a name they use and nobody gave is an error."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from ppt.pipeline.report.names import title_of


def template(name: str) -> Template:
    """A template by its file's name, with the filter `title_of`."""
    environment = Environment(
        loader=PackageLoader("ppt.pipeline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["title_of"] = title_of
    return environment.get_template(name)

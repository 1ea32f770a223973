"""Pages from Jinja2 templates: one HTML file each, with style and figures inside, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from graphllmrec.io import write_text
from graphllmrec.report import format

_FILTERS: tuple[Callable[..., str], ...] = (format.number, format.integer)


def write_page(path: Path | str, template: str, **context: Any) -> None:
    """Fill `template` (a file of report/templates/) with `context` and write the page to `path`.

    All text is escaped. Raises jinja2.UndefinedError where the template names something that is not in the context.
    """
    write_text(Path(path), _environment().get_template(template).render(**context))


@cache
def _environment() -> Environment:
    loader = PackageLoader("graphllmrec.report")
    made = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    made.filters.update({function.__name__: function for function in _FILTERS})
    css = files("graphllmrec.report").joinpath("page.css").read_text(encoding="utf-8")
    made.globals.update(css=Markup(css), version=version("graphllmrec"))
    return made

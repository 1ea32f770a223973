"""Pages and fragments from Jinja2 templates: style and figures are inside, nothing comes from elsewhere."""

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
from graphllmrec.terminal import visible

_FILTERS: tuple[Callable[..., str], ...] = (format.number, format.integer, format.markdown_text)


def write_page(path: Path | str, template: str, **context: Any) -> None:
    """Fill `template` (a file of report/templates/) with `context` and write the page to `path`.

    All text is escaped. Raises jinja2.UndefinedError where the template names something that is not in the context.
    """
    write_text(Path(path), render(template, **context))


def render(template: str, **context: Any) -> str:
    """The filled template. Raises as `write_page` does."""
    return _environment().get_template(template).render(**context)


@cache
def _environment() -> Environment:
    loader = PackageLoader("graphllmrec.report")
    made = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, finalize=_shown,
    )  # fmt: skip
    made.filters.update({function.__name__: function for function in _FILTERS})
    styles = {name: Markup(files("graphllmrec.report").joinpath(f"{name}.css").read_text(encoding="utf-8"))
              for name in ("page", "notebook")}  # fmt: skip
    made.globals.update(css=styles["page"], notebook_css=styles["notebook"], version=version("graphllmrec"))
    return made


def _shown(value: Any) -> Any:
    """Text without control characters and characters that reorder what stands beside it (terminal.py)."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "\n".join(map(visible, value.split("\n")))

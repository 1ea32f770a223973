"""How results look in a notebook: a heading, facts, and tables, as one HTML fragment in the colours of the page.

    class Dataset:
        def _repr_html_(self) -> str:
            return notebook_html(View(self.name, {"users": integer(self.num_users)}))

A class of any layer describes itself as a View, which is plain data; notebook.html.j2 renders and escapes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from graphllmrec.report.elements import Table
from graphllmrec.report.render import render


@dataclass(frozen=True)
class Share:
    """A part of a whole, drawn as a bar."""

    name: str
    value: str
    part: float  # length of the bar, in [0, 1]
    negative: bool = False  # it is subtracted


@dataclass(frozen=True)
class View:
    """What a notebook shows of an object."""

    title: str
    facts: Mapping[str, str] = field(default_factory=dict)
    shares: Sequence[Share] = ()
    tables: Mapping[str, Table] = field(default_factory=dict)  # by heading; "" without one
    notes: Sequence[str] = ()


def notebook_html(view: View) -> str:
    """The fragment; every text in it is escaped."""
    return render("notebook.html.j2", view=view)

"""How much an interaction counts: counts, weights, event types and age, as one positive weight per interaction.

    r = Σ over repeats of   event weight · (weight, count, or 1) · 2^(-age / half-life)
    w = r ("linear")   or   log2(1 + r) ("log": a thousand plays are not a thousand clicks; one is 1)

The sum over repeats is for tables with weights, counts or events, or with `repeats = "add"`; otherwise the first
occurrence counts once. log2(1 + r) is the confidence of Hu, Koren & Volinsky 2008, "Collaborative Filtering for
Implicit Feedback Datasets" (ICDM), eq. 6, without its two constants. Models use w relative to its mean over the
training part, so a constant factor changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from graphllmrec.data.checks import Problems, check_numbers
from graphllmrec.data.tables import Interactions
from graphllmrec.errors import DataError

Scale = Literal["log", "linear", "none"]
Repeats = Literal["first", "add"]
Floats = NDArray[np.float32]

_LISTED = 5  # event types that a note or hint lists
_DAY = 86_400  # seconds
_LEAST = 1e-30  # weights stay positive


@dataclass(frozen=True)
class Weighting:
    """Settings of weights; arguments of `load_data`."""

    scale: Scale = "log"  # "none": every interaction counts the same
    events: Mapping[str, float] = field(default_factory=dict)  # event type -> weight; others are left out
    half_life: float = 0.0  # days; 0: old interactions count as much as new ones
    repeats: Repeats = "first"


def read_weights(
    problems: Problems, columns: Mapping[str, str], weighting: Weighting, notes: list[str]
) -> tuple[Floats | None, NDArray[np.bool_]]:
    """Weights (n_rows,) from the columns weight, count and event, and the rows (n_rows,) that are interactions.

    None where nothing weighs them. Left out, with a note: rows whose label, weight or count is 0 or less, and events
    that `weighting` does not list. A negative weight or count is a problem, a missing value too.
    """
    file = problems.table.file
    keep = _labelled(problems, columns, notes)
    found: list[Floats] = []
    for meaning in ("weight", "count"):
        if meaning in columns and weighting.scale != "none":
            values = check_numbers(problems, columns[meaning])
            problems.add(values < 0, f"negative {meaning}", columns[meaning], "weights say how much a click counts")
            problems.add(values > 1e30, f"too large for a {meaning}", columns[meaning])
            found.append(np.clip(values, 0, 1e30).astype(np.float32))
            _note(notes, file, (values == 0) & ~problems.blank, f"with {columns[meaning]} 0 left out")
            keep &= values > 0
    if "event" in columns:
        weights = _event_weights(problems, columns["event"], weighting, notes)
        if weights is not None:
            found.append(weights)
            keep &= weights > 0
    elif weighting.events:
        raise DataError("no event column for data.events", file=file, hint="name it event, or leave data.events out")
    if not found:
        return None, keep
    if not problems.found and not keep[~problems.blank].any():
        raise DataError("no row is an interaction: all are left out", file=file, hint="; ".join(notes))
    return np.prod(found, axis=0, dtype=np.float32), keep


def _labelled(problems: Problems, columns: Mapping[str, str], notes: list[str]) -> NDArray[np.bool_]:
    """Rows (n_rows,) that are interactions by their label; ratings of 0 or less are told, not left out."""
    file, keep = problems.table.file, np.ones(len(problems.blank), dtype=bool)
    if "label" in columns:
        values = check_numbers(problems, columns["label"])
        keep = values > 0
        _note(notes, file, ~keep & ~problems.blank, f"with {columns['label']} 0 or less left out")
        if not problems.found and not keep.any():
            raise DataError("no row has a label above 0", file=file, column=columns["label"])
    return keep


def _event_weights(
    problems: Problems, column: str, weighting: Weighting, notes: list[str]
) -> Floats | None:  # fmt: skip
    """The weight of every row's event (n_rows,), 0 for one that is not listed; None without listed events."""
    events = problems.table.frame[column].cast(pl.String).str.strip_chars()
    counted = events.drop_nulls().value_counts(sort=True, name="rows")
    kinds = counted.get_column(column).to_list()
    if not weighting.events:
        shares = ", ".join(f"{kind} {rows / len(events):.0%}" for kind, rows in counted.head(_LISTED).iter_rows())
        if len(kinds) > 1:
            notes.append(
                f"{problems.table.file}: events of column {column} ({shares}) all count the same; "
                f"weigh them with data.events, e.g. {{{kinds[0]} = 1, {kinds[-1]} = 5}}"
            )
        return None
    if unknown := sorted(set(weighting.events) - set(kinds)):
        raise DataError(
            f"data.events names {', '.join(map(repr, unknown))}, which column {column!r} does not have",
            file=problems.table.file,
            hint=f"events there: {', '.join(kinds[:_LISTED])}",
        )
    problems.add(events.is_null().to_numpy(), "missing event", column)
    weights = events.replace_strict(weighting.events, default=0.0, return_dtype=pl.Float32)
    others = [kind for kind in kinds if kind not in weighting.events]
    _note(notes, problems.table.file, (weights == 0).to_numpy() & ~problems.blank,
          f"of other events left out ({', '.join(others[:_LISTED])})")  # fmt: skip
    return weights.fill_null(0.0).to_numpy().astype(np.float32)


def _note(notes: list[str], file: str, rows: NDArray[np.bool_], what: str) -> None:
    if rows.any():
        notes.append(f"{file}: {int(rows.sum()):,} rows {what}")


def settle_repeats(rows: Interactions, num_items: int, weighting: Weighting) -> Interactions:
    """The first occurrence of every (user, item) pair, with the summed and scaled weight of all of them."""
    if rows.weight is None and weighting.repeats == "add" and weighting.scale != "none":
        rows = replace(rows, weight=np.ones(len(rows), dtype=np.float32))
    pairs = rows.user * np.int64(num_items) + rows.item
    first = pl.Series(pairs).is_first_distinct().to_numpy()
    kept = rows if first.all() else rows.where(first)
    if rows.weight is None:
        return kept
    totals = pl.DataFrame({"pair": pairs, "weight": rows.weight.astype(np.float64)}).group_by(
        "pair", maintain_order=True
    )
    total = totals.agg(pl.col("weight").sum())["weight"].to_numpy()  # in the order of first occurrence
    scaled = np.log2(1 + total) if weighting.scale == "log" else total
    return replace(kept, weight=np.maximum(scaled, _LEAST).astype(np.float32))


def fade(rows: Interactions, half_life: float, newest: float, per_second: int) -> Interactions:
    """The interactions weighted by 2^(-age / half_life) of the age in days at the time `newest` (unix seconds)."""
    assert rows.order is not None
    age = np.maximum(newest - rows.order / per_second, 0) / _DAY
    own = np.float32(1) if rows.weight is None else rows.weight
    return replace(rows, weight=np.maximum(own * np.exp2(-age / half_life), _LEAST).astype(np.float32))

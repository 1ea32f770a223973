"""Statistics of a dataset, as JSON values and as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
from rich import box
from rich.markup import escape
from rich.table import Table

from graphllmrec.data.roles import as_strings, role_by_type
from graphllmrec.data.split import Split
from graphllmrec.data.tables import Dataset, Ints, Items
from graphllmrec.data.weights import Floats
from graphllmrec.terminal import visible

_EXAMPLE = 40  # characters of an example that are shown
QUANTILES = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


def statistics(dataset: Dataset, split: Split | None = None) -> dict[str, Any]:
    """Figures of a dataset, ready for JSON; with a split also its sizes and the items that are cold in it.

    Clicks are distinct (user, item) pairs. `clicks_per_item` is over clicked items; `density` is a share of
    users × items. `items_without_click` are in the items table only.
    """
    clicks = dataset.interactions
    per_user = np.bincount(clicks.user, minlength=dataset.num_users)
    per_item = clicks.item_degree(dataset.num_items)
    has_text = items_with_text(dataset)
    cells = dataset.num_users * dataset.num_items
    out: dict[str, Any] = {
        "name": dataset.name,
        "users": dataset.num_users,
        "items": dataset.num_items,
        "interactions": len(clicks),
        "density": len(clicks) / cells if cells else 0.0,
        "repeats_dropped": dataset.repeats,
        "clicks_per_user": _quantiles(per_user),
        "clicks_per_item": _quantiles(per_item[per_item > 0]),
        "items_with_text": float(has_text.mean()) if len(has_text) else 0.0,
        "items_without_click": int((per_item == 0).sum()),
        "items_clicked_without_text": int((~has_text & (per_item > 0)).sum()),
        "text_columns": dataset.items.text_columns,
        "columns": column_statistics(dataset.items),
        "order": dataset.order,
        "tied_users": dataset.tied_users,
        "ties": dataset.ties,
        "weights": _quantiles(clicks.weight) if clicks.weight is not None else None,
        "time_span": _time_span(clicks.order) if dataset.order == "timestamp" else None,
        "notes": list(dataset.notes),
    }
    if split is not None:
        out["split"] = _split_statistics(split)
    return out


def column_statistics(items: Items) -> list[dict[str, Any]]:
    """The columns of the items table: column, role, reason, share of items that have a value, and an example."""
    known = {role.column: role for role in items.roles}
    kept = [known.get(name) or role_by_type(items.table[name]) for name in items.table.columns if name != "item_id"]
    dropped = [role for role in items.roles if role.role == "left out"]
    return [
        {"column": role.column, "role": role.role, "reason": role.reason, **_filled(items.table, role.column)}
        for role in (*kept, *dropped)
    ]


def _filled(table: pl.DataFrame, column: str) -> dict[str, Any]:
    if column not in table.columns:  # left out
        return {"filled": None, "example": None}
    values = table[column].drop_nulls()
    example = as_strings(values.head(1)).to_list() if len(values) else [None]
    shown = ", ".join(map(str, example[0])) if isinstance(example[0], list) else example[0]
    return {"filled": len(values) / max(len(table), 1), "example": shown}


def items_with_text(dataset: Dataset) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Has the item any text (num_items,)?"""
    has_text = np.zeros(dataset.num_items, dtype=bool)
    for column in dataset.items.text_columns:
        has_text |= dataset.items.table[column].is_not_null().to_numpy()
    return has_text


def _quantiles(counts: Ints | Floats) -> dict[str, float]:
    if not len(counts):
        return {}
    values = np.quantile(counts, list(QUANTILES.values()))
    return {"mean": float(counts.mean()), **{name: float(value) for name, value in zip(QUANTILES, values, strict=True)}}


def _time_span(order: Ints | None) -> list[str] | None:
    if order is None or not len(order):
        return None
    # numpy's dates do not end in the year 9999
    return [str(np.datetime64(int(bound), "s")) + "Z" for bound in (order.min(), order.max())]


def _split_statistics(split: Split) -> dict[str, Any]:
    degree = split.item_degree()
    return {
        "kind": split.kind,
        "settings": dict(split.settings),
        "train": len(split.train),
        "valid": len(split.valid),
        "test": len(split.test),
        "test_users": len(np.unique(split.test.user)),
        "cold_items": int((degree == 0).sum()),
        "test_targets_cold": float((degree[split.test.item] == 0).mean()) if len(split.test) else 0.0,
        "test_users_without_history": int((split.known("test").lengths[np.unique(split.test.user)] == 0).sum()),
    }


def statistics_table(dataset: Dataset, split: Split | None = None, more: Iterable[tuple[str, str]] = ()) -> Table:
    """The same figures as a table, and `more` lines: `rich.print(statistics_table(dataset))`."""
    return figures_table(statistics(dataset, split), more)


def figures_table(figures: dict[str, Any], more: Iterable[tuple[str, str]] = ()) -> Table:
    """The figures of `statistics`, and `more` lines, as a table."""
    table = Table(title=figures["name"], show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    for label, value in (*_lines(figures), *more):
        table.add_row(label, value)
    return table


def columns_table(dataset: Dataset) -> Table:
    """The role of every column of the items table, and why, as a table."""
    table = Table(title="columns of the items", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("column", "role", "reason", "filled", "example"):
        table.add_column(name, justify="right" if name == "filled" else "left", overflow="fold")
    for row in column_statistics(dataset.items):
        filled = "" if row["filled"] is None else f"{row['filled']:.0%}"
        example = visible((row["example"] or "").replace("\n", " "))
        shown = example if len(example) <= _EXAMPLE else example[: _EXAMPLE - 1] + "…"
        table.add_row(*map(escape, (visible(row["column"]), row["role"], row["reason"], filled, shown)))
    return table


def _lines(figures: dict[str, Any]) -> list[tuple[str, str]]:
    columns = ", ".join(figures["text_columns"]) or "none"
    lines = [
        ("users × items", f"{figures['users']:,} × {figures['items']:,}"),
        ("interactions", f"{figures['interactions']:,} (density {figures['density']:.3%})"),
        ("repeats dropped", f"{figures['repeats_dropped']:,}"),
        ("clicks per user", _spread(figures["clicks_per_user"])),
        ("clicks per clicked item", _spread(figures["clicks_per_item"])),
        ("items with text", f"{figures['items_with_text']:.1%} ({columns})"),
        ("items without click", f"{figures['items_without_click']:,}"),
        ("clicked, but without text", f"{figures['items_clicked_without_text']:,}"),
        ("order", figures["order"] or "none"),
    ]
    if figures["order"]:
        lines.append(("users with their newest two tied", f"{figures['tied_users']:.1%} (sorted by {figures['ties']})"))
    if figures["weights"]:
        lines.append(("weight per click", _spread(figures["weights"], ",.3g")))
    if figures["time_span"]:
        lines.append(("time span", " to ".join(bound[:10] for bound in figures["time_span"])))
    if "split" in figures:
        lines += _split_lines(figures["split"])
    return lines + [("note", note) for note in figures["notes"]]


def _spread(quantiles: dict[str, float], shape: str = ",.0f") -> str:
    if not quantiles:
        return "none"
    median, mean, p95 = (quantiles[name] for name in ("median", "mean", "p95"))
    return f"median {median:{shape}}, mean {mean:,.1f}, p95 {p95:{shape}}, max {quantiles['max']:{shape}}"


def _split_lines(split: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("split", split["kind"]),
        ("train / valid / test", f"{split['train']:,} / {split['valid']:,} / {split['test']:,}"),
        ("test users", f"{split['test_users']:,} ({split['test_users_without_history']:,} without history)"),
        (
            "items without training click",
            f"{split['cold_items']:,} (targets of {split['test_targets_cold']:.1%} of the test)",
        ),
    ]

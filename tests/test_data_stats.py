"""The figures of a small dataset, counted by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from graphllmrec.data import Dataset, load_data, make_split, statistics, statistics_table


@pytest.fixture
def toy(tmp_path: Path) -> Dataset:
    rows = ["a,x,86400", "a,y,86401", "a,z,86402", "b,x,172800", "b,x,172801", "b,q,0"]
    (tmp_path / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows, ""]))
    (tmp_path / "items.csv").write_text("item_id,title,brand\nx,Ex,\ny,,\nw,Double,B\nz,,C\n")
    return load_data(tmp_path, name="toy")


def test_figures_counted_by_hand(toy: Dataset) -> None:
    figures = statistics(toy, make_split(toy))
    assert json.loads(json.dumps(figures)) == figures
    assert (figures["users"], figures["items"], figures["interactions"], figures["repeats_dropped"]) == (2, 5, 5, 1)
    assert figures["density"] == 0.5
    assert figures["clicks_per_user"]["mean"] == 2.5
    assert (figures["clicks_per_item"]["median"], figures["clicks_per_item"]["max"]) == (1, 2)
    assert figures["items_with_text"] == 0.6
    assert (figures["items_without_click"], figures["items_clicked_without_text"]) == (1, 2)
    assert figures["time_span"] == ["1970-01-01T00:00:00Z", "1970-01-03T00:00:00Z"]
    assert figures["split"] == {
        "kind": "leave-last-out",
        "settings": {"ties": "hash", "tied_users": 0.0},
        "train": 3,
        "valid": 1,
        "test": 1,
        "test_users": 1,
        "cold_items": 3,
        "test_targets_cold": 1.0,
        "test_users_without_history": 0,
    }


def test_table_shows_them(toy: Dataset) -> None:
    page = io.StringIO()
    Console(width=100, file=page).print(statistics_table(toy, make_split(toy)))
    shown = page.getvalue()
    for part in (
        "toy",
        "2 × 5",
        "5 (density 50.000%)",
        "60.0% (title, brand)",
        "1970-01-01 to 1970-01-03",
        "3 / 1 / 1",
    ):
        assert part in shown


def test_order_without_clock_has_no_time_span(tmp_path: Path) -> None:
    (tmp_path / "interactions.csv").write_text("user_id,item_id\na,x\n")
    figures = statistics(load_data(tmp_path))
    assert (figures["time_span"], figures["order"], figures["text_columns"]) == (None, None, [])
    assert figures["items_with_text"] == 0

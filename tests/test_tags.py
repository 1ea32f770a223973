"""Tags as item text and as reviews, and none of them from what a model must not see."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from graphllmrec import Recommender
from graphllmrec.data import demo_data, load_data, make_split
from graphllmrec.data.prepare import read_and_split
from graphllmrec.data.tags import MAX_TAGS, without_held_out_tags
from graphllmrec.progress import RunLogger
from graphllmrec.recipe import load_recipe
from graphllmrec.run_folder import fingerprint


def world(folder: Path, tags: str) -> Path:
    folder.mkdir(exist_ok=True)
    rows = [f"{user},{item},{time}" for user in "abc" for time, item in enumerate("wxyz")]
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows, ""]))
    (folder / "items.csv").write_text("item_id,title\nw,W\nx,X\ny,Y\nz,Z\n")
    (folder / "tags.csv").write_text("user_id,item_id,tag\n" + tags)
    return folder


def tags_of(items: object) -> dict[str, list[str] | None]:
    table: pl.DataFrame = items.table  # type: ignore[attr-defined]
    return dict(zip(table["item_id"], table["tags"].to_list(), strict=True))


def test_the_most_frequent_tags_come_first_and_equal_ones_by_alphabet(tmp_path: Path) -> None:
    many = "".join(f"a,x,tag{number:02}\n" for number in range(15))
    data = load_data(world(tmp_path, "a,w,Slow\nb,w,dark\nc,w,slow \na,w,blue\nb,q,lost\n" + many))
    found = tags_of(data.items)
    assert found["w"] == ["slow", "blue", "dark"]
    assert found["x"] == [f"tag{number:02}" for number in range(MAX_TAGS)]
    assert (found["y"], found["z"]) == (None, None)


def test_tags_of_validation_and_test_interactions_are_no_text(tmp_path: Path) -> None:
    # y is in validation and z in test for every user; d never clicked, and one tag has no user
    folder = world(tmp_path, "a,w,early\na,y,mine\nb,z,best\nd,z,plain\n,z,plain\nd,y,old\n")
    data = load_data(folder)
    split = make_split(data)
    seen = without_held_out_tags(data, split)
    assert tags_of(data.items) == {"w": ["early"], "x": None, "y": ["mine", "old"], "z": ["plain", "best"]}
    assert tags_of(seen.items) == {"w": ["early"], "x": None, "y": ["old"], "z": ["plain"]}
    assert seen.notes[-1].startswith("2 tags written at validation or test interactions")
    fitted = Recommender.from_recipe("popularity").fit(folder)
    assert tags_of(fitted.dataset.items) == tags_of(seen.items)


def test_the_fingerprint_of_a_run_is_that_of_what_the_model_saw(tmp_path: Path) -> None:
    recipe = load_recipe("popularity", {})
    with RunLogger() as logger:
        seen, _ = read_and_split(world(tmp_path, "a,z,mine\n"), recipe.data, recipe.seed, logger)
    assert fingerprint(seen) == fingerprint(Recommender.from_recipe("popularity").fit(tmp_path).dataset)


def test_no_held_out_tag_is_left_in_the_demo() -> None:
    data = demo_data()
    split = make_split(data)
    seen = without_held_out_tags(data, split)
    assert data.tags is not None
    held_out = {
        (data.users.of([user])[0], data.items.ids.of([item])[0])
        for part in (split.valid, split.test)
        for user, item in zip(part.user, part.item, strict=True)
    }
    allowed = {(item, tag) for user, item, tag in data.tags.iter_rows() if (user, item) not in held_out}
    shown = {(item, tag) for item, tags in tags_of(seen.items).items() for tag in tags or []}
    assert shown <= allowed
    before = {(item, tag) for item, tags in tags_of(data.items).items() for tag in tags or []}
    assert not before <= allowed


def test_a_tags_column_of_the_items_gives_way_with_a_note(tmp_path: Path) -> None:
    folder = world(tmp_path, "a,w,early\n")
    (folder / "items.csv").write_text("item_id,title,tags\nw,W,own\nx,X,own\n")
    data = load_data(folder)
    assert tags_of(data.items)["w"] == ["early"]
    assert any("column tags is replaced" in note for note in data.notes)


def test_empty_tags_are_no_fault(tmp_path: Path) -> None:
    assert tags_of(load_data(world(tmp_path, "a,w,\n")).items)["w"] is None


def test_a_refit_has_the_held_out_tags_or_says_that_it_lacks_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = world(tmp_path / "data", "a,w,early\na,y,mine\nb,z,best\nd,z,plain\n")
    fitted = Recommender.from_recipe("popularity").fit(folder, out=tmp_path / "run")
    fitted.add_items([{"item_id": "new", "tags": ["fresh"]}])
    whole = tags_of(load_data(folder).items)
    assert tags_of(fitted.dataset.items) != whole | {"new": ["fresh"]}
    again = fitted.refit()
    assert tags_of(again.dataset.items) == whole | {"new": ["fresh"]}
    assert not any("held out" in note or "not part of the item texts" in note for note in again.dataset.notes)

    def said(data: Path | None) -> str:
        with RunLogger() as logger:
            Recommender.load(tmp_path / "run").refit(data, logger=logger)
        return "".join(capsys.readouterr()).replace("\n", " ")

    assert "2 tags written at validation or test interactions are not part of the item texts, and a run" in said(None)
    assert "item texts" not in said(folder)

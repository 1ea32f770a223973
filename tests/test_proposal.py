"""`graphllmrec init` and `propose`: the rules, their reasons, the file, and what it refuses."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

import graphllmrec
from front_door_world import write_world
from graphllmrec import load_data, proposal
from graphllmrec.cli.app import app
from graphllmrec.data import demo_data
from graphllmrec.proposal import COSTS, propose
from graphllmrec.recipe import load_recipe, recipe_names


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return write_world(tmp_path / "shop")


def without(world: Path, *, text: bool = True, order: bool = True) -> Path:
    """The world without its texts, or without its times."""
    if not text:
        (world / "items.csv").unlink()
    if not order:
        table = pl.read_csv(world / "interactions.csv")
        table.drop("timestamp").write_csv(world / "interactions.csv")
    return world


def test_few_interactions_get_the_model_that_trains_nothing(world: Path) -> None:
    found = propose(load_data(world))
    assert found.name == "z-sum"
    assert any("320 interactions are few" in reason for reason in found.reasons)
    assert any("40 test users" in hint for hint in found.hints)


@pytest.mark.parametrize(
    ("few", "many", "huge", "name"),
    [(1, 1_000, 10_000, "hybrid"), (1, 100, 10_000, "sign"), (1, 10, 100, "graphsage")],
)
def test_more_interactions_get_larger_models_until_they_cost_too_much(
    world: Path, few: int, many: int, huge: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposal, "FEW_CLICKS", few)
    monkeypatch.setattr(proposal, "MANY_CLICKS", many)
    monkeypatch.setattr(proposal, "HUGE_CLICKS", huge)
    assert propose(load_data(world)).name == name


@pytest.mark.parametrize(
    ("dense", "huge", "name"), [(48, 1_000, "ease"), (47, 1_000, "lightgcn-fast"), (47, 100, "lightgcn-sampled")]
)
def test_without_texts_the_size_decides(
    world: Path, dense: int, huge: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposal, "DENSE_ITEMS", dense)
    monkeypatch.setattr(proposal, "HUGE_CLICKS", huge)
    found = propose(load_data(without(world, text=False)))
    assert found.name == name
    assert "no item has text" in found.reasons[0]
    assert not found.recipe.build_model().abilities.needs_text


def test_texts_without_an_order_get_a_model_that_needs_none(world: Path) -> None:
    found = propose(load_data(without(world, order=False)))
    assert found.name == "textgcn"
    assert any("no order" in reason for reason in found.reasons)


def test_texts_that_the_packaged_encoder_does_not_know_get_another_one(world: Path) -> None:
    titles = [f"園芸用の小さなシャベルと球根 {number}" for number in range(48)]
    pl.DataFrame({"item_id": [f"i{n}" for n in range(48)], "title": titles}).write_csv(world / "items.csv")
    found = propose(load_data(world))
    assert found.recipe.text.encoder == "ngrams"
    assert any("knows English only" in reason for reason in found.reasons)
    assert 'encoder = "ngrams"' in found.to_toml()


@pytest.mark.parametrize(("huge", "texts"), [(1, True), (1_000, True), (1, False), (1_000, False)])
def test_the_file_is_the_proposed_recipe_with_its_reasons(
    world: Path, huge: int, texts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"HUGE_CLICKS": huge, "MANY_CLICKS": 1, "FEW_CLICKS": 1, "DENSE_ITEMS": 1}.items():
        monkeypatch.setattr(proposal, name, value)
    found = propose(load_data(without(world, text=texts)))
    text = found.to_toml()
    assert load_recipe(tomllib.loads(text)) == found.recipe
    assert all(f"# Why: {reason}\n" in text for reason in found.reasons)
    if found.name in recipe_names() and found.name != "graphsage":  # nothing but the title is another
        packaged = load_recipe(found.name)
        assert (found.recipe.model, found.recipe.unordered) == (packaged.model, packaged.unordered)


def test_the_cost_grows_with_the_data_and_has_a_range() -> None:
    small = propose(demo_data())
    assert small.name == "hybrid"
    assert 0 < small.minutes[0] < small.minutes[1] < 60
    assert 0.3 < small.gigabytes[0] < small.gigabytes[1] < 8
    assert "minutes" in small.time()
    assert any("data.min_rating = 4" in hint for hint in small.hints)
    assert COSTS.keys() >= {"hybrid", "sign", "z-sum", "ease", "textgcn", "graphsage", "lightgcn-sampled"}


def test_the_command_says_what_it_understood_and_the_next_command_works(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "recipe.toml"
    done = CliRunner().invoke(app, ["init", str(world), "--out", str(out)])
    assert done.exit_code == 0, done.output
    for part in ("interactions.csv, items.csv", "time span", "title", "why z-sum", "expected on two idle cores"):
        assert part in done.output
    assert f"graphllmrec fit {out} --data {world}" in done.output
    assert load_recipe(out).model.name == "z-sum"


def test_the_command_never_overwrites_unless_told(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "recipe.toml"
    out.write_text("mine")
    refused = CliRunner().invoke(app, ["init", str(world), "--out", str(out)])
    assert refused.exit_code == 2
    assert "there is such a file; choose another --out, or add --overwrite" in refused.output
    assert out.read_text() == "mine"
    assert CliRunner().invoke(app, ["init", str(world), "--out", str(out), "--overwrite"]).exit_code == 0
    assert load_recipe(out).model.name == "z-sum"


def test_json_is_one_object_on_the_last_line(world: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["init", str(world), "--out", str(tmp_path / "r.toml"), "--json"])
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["name"] == "z-sum"
    assert found["statistics"]["interactions"] == 320
    assert found["reasons"]
    assert len(found["minutes"]) == len(found["gigabytes"]) == 2


def test_a_folder_that_cannot_be_read_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = CliRunner().invoke(app, ["init", str(tmp_path / "empty"), "--out", str(tmp_path / "r.toml")])
    assert done.exit_code == 2
    assert not (tmp_path / "r.toml").exists()


def test_it_is_part_of_the_public_interface() -> None:
    assert graphllmrec.propose is propose

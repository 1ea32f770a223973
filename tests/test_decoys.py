"""Decoys: items that nobody clicks are candidates, the same for all models, and never targets."""

from __future__ import annotations

import json

import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from front_door_world import WORDS, encode_first_word, write_world
from graphllmrec import Recommender
from graphllmrec.cli import app
from graphllmrec.data import load_data
from graphllmrec.errors import DataError, EvaluationError, RecipeError
from graphllmrec.evaluation.compare import compare
from graphllmrec.evaluation.evaluation import Evaluation, protocol_line
from graphllmrec.protocol import TextVectors
from graphllmrec.text.decoys import decoy_vectors, make_decoys

KIND = {word: kind for kind, words in enumerate(WORDS) for word in words.split()}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("data") / "books")


@pytest.fixture(scope="module")
def popular(world):
    return Recommender.from_recipe("popularity").fit(world)


@pytest.fixture(scope="module")
def ease(world):
    return Recommender.from_recipe("ease").fit(world)


@pytest.fixture
def text(world, monkeypatch):
    monkeypatch.setattr("graphllmrec.text.prepare.encode_items", encode_first_word)
    return Recommender.from_recipe("text-knn").fit(world)


def other_shop(folder, titles, column="title"):
    folder.mkdir()
    (folder / "interactions.csv").write_text("user_id,item_id\na,x0\n")
    rows = [{"item_id": f"x{row}", column: title} for row, title in enumerate(titles)]
    pl.DataFrame(rows).write_csv(folder / "items.csv")
    return folder


# how they are made


def test_a_decoy_is_made_of_two_items_that_are_alike(world):
    items = load_data(world).items
    table = make_decoys(items, 30).table
    assert table.schema == items.table.schema
    assert not set(table["item_id"]) & set(items.ids.ids)
    titles = table["title"].to_list()
    assert len(set(titles) - set(items.titles)) >= 15  # of two items of one circle, the crossing may be one of them
    beginnings = {title.split()[0] for title in items.titles}
    for title in titles:
        words = title.split()
        assert len(words) == 4
        assert words[0] in beginnings, title  # the first half of one, the second of the other
        assert KIND[words[0]] == KIND[words[1]], title


def test_each_text_is_of_one_of_the_two_and_attributes_are_of_the_first(tmp_path):
    write_world(tmp_path / "books")
    rows = pl.read_csv(tmp_path / "books" / "items.csv")
    number = pl.col("item_id").str.slice(1).cast(int)
    rows.with_columns(about="about " + pl.col("title"), price=number * 1.0 + 0.99).write_csv(
        tmp_path / "books/items.csv"
    )
    items = load_data(tmp_path / "books").items
    assert items.attribute_columns == ["price"]
    known = dict(zip(items.table["price"], items.table["about"], strict=True))
    table = make_decoys(items, 40).table
    assert set(table["about"]) <= set(items.table["about"])
    own = [known[price] == about for price, about in zip(table["price"], table["about"], strict=True)]
    assert 8 <= sum(own) <= 32  # those of the first item, about half of them


def test_decoys_depend_on_the_seed_alone(world):
    items = load_data(world).items
    first, again, other = (make_decoys(items, 20, seed=seed) for seed in (0, 0, 1))
    assert first.table.equals(again.table)
    assert first.digest == again.digest != other.digest
    assert len(make_decoys(items, 500)) == 500  # more than there are items


def test_decoys_of_a_catalogue_without_text_have_none(tmp_path):
    (tmp_path / "interactions.csv").write_text("user_id,item_id\na,x\na,y\n")
    decoys = make_decoys(load_data(tmp_path).items, 3)
    assert decoys.table.to_dicts() == [{"item_id": f"decoy-{number}"} for number in (1, 2, 3)]


def test_decoys_of_another_folder_are_its_items_but_none_that_is_in_the_catalogue(world, tmp_path):
    items = load_data(world).items
    shop = other_shop(tmp_path / "shop", ["kettle", "teapot", items.titles[3], "saucer"])
    decoys = make_decoys(items, 3, str(shop))
    assert sorted(decoys.table["title"]) == ["kettle", "saucer", "teapot"]
    assert (decoys.source, decoys.table["item_id"].to_list()) == ("shop", ["decoy-1", "decoy-2", "decoy-3"])
    with pytest.raises(DataError, match="4 decoys wanted, 3 items there have a text that is not in this catalogue"):
        make_decoys(items, 4, str(shop))
    with pytest.raises(DataError, match="none of the text columns of this catalogue"):
        make_decoys(items, 1, str(other_shop(tmp_path / "cinema", ["a", "b"], column="plot")))


def test_decoy_vectors_are_as_far_from_their_neighbours_as_items_are():
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 24, generator=random)
    vectors = centres.repeat_interleave(40, 0) + 0.8 * torch.randn(240, 24, generator=random)
    present = torch.ones(240, dtype=torch.bool)
    present[::40] = False
    text = TextVectors(vectors * present[:, None], present, tuple(str(row) for row in range(240)))
    made = decoy_vectors(text, 200, seed=0)
    assert torch.equal(made.vectors, decoy_vectors(text, 200, seed=0).vectors)
    assert made.present.all()
    assert made.texts is not None
    assert set(made.texts) <= {str(row) for row in range(240) if row % 40}
    unit = torch.nn.functional.normalize
    items, new = unit(vectors[present]), unit(made.vectors)
    alike = items @ items.T
    usual = alike.fill_diagonal_(-1).max(1).values.median()
    assert float((new @ items.T).max(1).values.median()) == pytest.approx(float(usual), abs=0.06)
    # every decoy is of one of the six kinds
    assert float((new @ unit(centres).T).max(1).values.min()) > 0.5


def test_decoy_vectors_where_no_item_has_text():
    made = decoy_vectors(TextVectors(torch.zeros(4, 3), torch.zeros(4, dtype=torch.bool)), 2, seed=0)
    assert made.vectors.shape == (2, 3)
    assert not made.present.any()


# the evaluation


def test_decoys_are_candidates_and_nobodys_target(text):
    plain, found = text.evaluate(), text.evaluate(decoys=30)
    assert found.protocol.keys() == plain.protocol.keys()
    assert (plain.protocol["decoys"], plain.protocol["decoys_from"]) == (0, None)
    assert (found.protocol["decoys"], found.protocol["decoys_from"], found.protocol["items"]) == (30, "auto", 78)
    assert found.targets.drop("rank").equals(plain.targets.drop("rank"))
    assert found.strata.keys() == plain.strata.keys()
    assert (found.lists >= 48).any()  # they take places in the lists
    assert found.overall["ndcg@20"] < plain.overall["ndcg@20"]
    assert text.dataset.num_items == 48  # its own catalogue stays
    assert "all 78 items ranked, with 30 unclicked decoys, train and validation items masked" in protocol_line(
        found.protocol
    )
    assert "decoys" not in protocol_line(plain.protocol)
    assert text.evaluate("valid", decoys=30).protocol["decoys"] == 30


def test_decoys_change_nothing_where_a_model_gives_them_no_score(ease):
    assert ease.evaluate(decoys=30).overall["ndcg@20"] == pytest.approx(ease.evaluate().overall["ndcg@20"], abs=0.02)


def test_the_recipe_says_how_many(world):
    recommender = Recommender.from_recipe("popularity", evaluate={"decoys": 12}).fit(world)
    assert recommender.evaluate().protocol["decoys"] == 12
    assert recommender.evaluate(decoys=0).protocol["decoys"] == 0
    with pytest.raises(RecipeError, match="decoys_from has no effect: it needs decoys above 0"):
        Recommender.from_recipe("popularity", evaluate={"decoys_from": "somewhere"})


def test_other_decoys_are_another_question(popular, ease, tmp_path):
    with_decoys = popular.evaluate(decoys=5)
    assert compare(with_decoys, ease.evaluate(decoys=5)).users == with_decoys.protocol["users"]
    with pytest.raises(
        EvaluationError, match="measured with 5 unclicked decoys, the other without decoys; evaluate both"
    ):
        compare(with_decoys, ease.evaluate())
    shop = other_shop(tmp_path / "shop", ["kettle", "teapot", "saucer", "spoon", "fork"])
    with pytest.raises(EvaluationError, match="with 5 unclicked decoys, the other with 5 unclicked decoys of shop"):
        compare(with_decoys, ease.evaluate(decoys=5, decoys_from=shop))


def test_decoys_on_the_command_line(popular, tmp_path):
    popular.save(tmp_path / "run")

    def evaluate(*options):
        return CliRunner().invoke(app, ["evaluate", str(tmp_path / "run"), *options, "--json"])

    found = json.loads(evaluate("--decoys", "7").stdout.splitlines()[-1])
    assert found["protocol"]["decoys"] == 7
    assert found["strata"]["item_degree"].keys() == {"0", "1-3", "4-10", "11-50", ">50"}
    assert Evaluation.read(tmp_path / "run").protocol["decoys"] == 7
    shop = other_shop(tmp_path / "shop", ["kettle", "teapot"])
    found = json.loads(evaluate("--decoys", "2", "--decoys-from", str(shop)).stdout.splitlines()[-1])
    assert (found["protocol"]["decoys"], found["protocol"]["decoys_from"]) == (2, "shop")
    refused = evaluate("--decoys-from", str(shop))
    assert refused.exit_code != 0
    assert "it needs decoys above 0" in refused.output


def test_added_items_and_decoys_are_apart(text):
    text.add_items([{"item_id": "new", "title": "gears and a pump"}])
    assert text.evaluate(decoys=3).protocol["items"] == 52
    assert text.dataset.num_items == 49

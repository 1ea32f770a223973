"""Placebos: vectors without the texts' meaning, exact on save, load and resume, and never mistaken for the text."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console

from front_door_world import encode_first_word, write_world
from graphllmrec.data.tables import Histories, IdMap, Interactions, Items
from graphllmrec.errors import Interrupted, RecipeError
from graphllmrec.evaluation.evaluation import protocol_line, shared_protocol_line
from graphllmrec.models.baselines.text_knn import TextKNN
from graphllmrec.protocol import TextVectors
from graphllmrec.recommender import Recommender
from graphllmrec.report.console import models_table
from graphllmrec.report.run_report import ReportEntry, write_report
from graphllmrec.rng import rng
from graphllmrec.text import placebo as placebos
from graphllmrec.text.config import TextConfig
from graphllmrec.text.placebo import TextPlacebo, cooccurrence, item2vec, random_vectors, shifted_pmi, shuffled
from tiny import ITEMS, SPLIT, TEXT, TRAIN

KINDS = ("shuffled", "random", "item2vec")
IDS = IdMap([f"i{row}" for row in range(ITEMS)])
HISTORIES = SPLIT.train.histories(SPLIT.num_users)


def rows_of(vectors):
    return {tuple(row) for row in vectors.tolist()}


def near(walks, window, weigh):
    """Both directions of every pair of different items at most `window` places apart, entry by entry."""
    out = np.zeros((ITEMS, ITEMS))
    for walk in walks:
        for place, item in enumerate(walk):
            for other_place, other in enumerate(walk):
                distance = abs(place - other_place)
                if item != other and distance <= window:
                    out[item, other] += weigh(distance)
    return out


def pointwise(counts, negatives, smoothing):
    """log(1 + C_ij / (k r_i P_j)), entry by entry."""
    out, row = np.zeros((ITEMS, ITEMS)), [sum(counts[item]) for item in range(ITEMS)]
    norm = sum(value**smoothing for value in row)
    for item in range(ITEMS):
        for other in range(ITEMS):
            share = row[other] ** smoothing / norm
            out[item, other] = math.log(1 + counts[item, other] / (negatives * row[item] * share))
    return out


# the equations


def test_pairs_of_an_ordered_history_weigh_less_with_distance(monkeypatch):
    monkeypatch.setattr(placebos, "WINDOW", 3)
    found = cooccurrence(HISTORIES, ITEMS, ordered=True, seed=0).toarray()
    np.testing.assert_allclose(found, near(TRAIN, 3, lambda d: 1 - (d - 1) / 3), rtol=1e-12)


def test_pairs_of_an_unordered_history_weigh_alike():
    found = cooccurrence(HISTORIES, ITEMS, ordered=False, seed=0).toarray()
    np.testing.assert_allclose(found, near(TRAIN, 1000, lambda d: 1.0), rtol=1e-12)


def test_an_item_is_not_near_itself():
    twice = Histories.from_lists([[1, 1, 2]])
    assert cooccurrence(twice, 3, ordered=True, seed=0).diagonal().tolist() == [0, 0, 0]


@pytest.mark.parametrize(("negatives", "smoothing"), [(1, 1.0), (2, 0.75)])
def test_shifted_pmi_is_that_of_the_paper(negatives, smoothing):
    counts = cooccurrence(HISTORIES, ITEMS, ordered=True, seed=0)
    expected = pointwise(counts.toarray(), negatives, smoothing)
    assert expected.any()
    np.testing.assert_allclose(shifted_pmi(counts, negatives, smoothing).toarray(), expected, rtol=1e-9)


def test_item2vec_is_the_root_of_the_spectrum():
    vectors = item2vec(HISTORIES, ITEMS, ordered=True, seed=0)
    assert vectors.shape == (ITEMS, 384)
    u, s, _ = np.linalg.svd(pointwise(near(TRAIN, 5, lambda d: 1 - (d - 1) / 5), 20, 0.75))
    expected = u * np.sqrt(s)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    # products do not depend on the signs that singular vectors are free to have
    np.testing.assert_allclose((vectors @ vectors.T).numpy(), expected @ expected.T, atol=1e-5)


def test_item2vec_knows_nothing_of_clicks_without_company():
    assert not item2vec(Histories.from_lists([[0], [1], []]), 3, ordered=True, seed=0).any()


# what takes the place of the text


@pytest.mark.parametrize("count", [2, 3, 50])
def test_no_item_keeps_its_own_text_when_shuffled(count):
    text = TextVectors(torch.eye(count), torch.ones(count, dtype=torch.bool), tuple(map(str, range(count))))
    for seed in range(10):
        found = shuffled(text, rng(seed, "test"))
        assert rows_of(found.vectors) == rows_of(text.vectors)
        assert not found.vectors.diagonal().any()
        assert found.texts == tuple(str(row) for row in found.vectors.argmax(1).tolist())


def test_a_lone_text_has_nobody_to_exchange_with():
    text = TextVectors(torch.tensor([[0.0], [1.0]]), torch.tensor([False, True]), (None, "a"))
    found = shuffled(text, rng(0, "test"))
    assert torch.equal(found.vectors, text.vectors)
    assert found.texts == (None, "a")


@pytest.mark.parametrize("kind", KINDS)
def test_who_has_text_stays_as_it_is(kind):
    found = TextPlacebo(kind, 0, SPLIT).items(TEXT, IDS)
    assert torch.equal(found.present, TEXT.present)  # every item has clicks here
    assert not found.vectors[~found.present].any()
    assert found.vectors[found.present].any(1).all()
    assert not torch.equal(found.vectors[:, :5], TEXT.vectors)


def test_random_vectors_have_length_1_and_hang_on_seed_and_id_alone():
    found = random_vectors(TEXT.present, IDS, 3, "items").vectors
    torch.testing.assert_close(found.norm(dim=1), TEXT.present.float())
    assert (found @ found.T - torch.diag(TEXT.present.float())).abs().max() < 0.25
    other_way = IdMap(IDS.ids.reverse())
    assert torch.equal(random_vectors(TEXT.present.flip(0), other_way, 3, "items").vectors.flip(0), found)
    assert not torch.equal(random_vectors(TEXT.present, IDS, 4, "items").vectors, found)


def test_item2vec_has_no_vector_for_items_without_clicks():
    kept = SPLIT.train.item != 3
    split = replace(SPLIT, train=SPLIT.train.where(kept))
    found = TextPlacebo("item2vec", 0, split).items(TEXT, IDS)
    assert found.present.tolist() == [row not in (3, 6) for row in range(ITEMS)]  # 6 has no text


def test_users_are_the_mean_of_their_items_under_item2vec():
    placebo = TextPlacebo("item2vec", 0, SPLIT)
    wrote = torch.arange(SPLIT.num_users) != 2
    found = placebo.users(TextVectors(torch.zeros(SPLIT.num_users, 0), wrote), IDS)
    vectors = item2vec(HISTORIES, ITEMS, ordered=True, seed=0).numpy()
    for user, walk in enumerate(TRAIN):
        mean = np.sum([vectors[item] for item in walk], axis=0)
        expected = np.zeros(384) if user == 2 else mean / np.linalg.norm(mean)
        np.testing.assert_allclose(found.vectors[user].numpy(), expected, atol=1e-6)
    assert torch.equal(found.present, wrote)


def test_nothing_of_validation_or_test_reaches_a_control():
    other = Interactions(SPLIT.test.user, (SPLIT.test.item + 1) % ITEMS, SPLIT.test.order)
    for kind in KINDS:
        first = TextPlacebo(kind, 0, SPLIT).items(TEXT, IDS)
        second = TextPlacebo(kind, 0, replace(SPLIT, valid=other, test=other)).items(TEXT, IDS)
        assert torch.equal(first.vectors, second.vectors)


def test_new_items_borrow_the_text_of_others_when_shuffled():
    catalogue = Items(IDS, pl.DataFrame({"item_id": IDS.ids, "title": [None, *"abcdefgh"], "tags": [["x"]] * ITEMS}))
    new = pl.DataFrame(
        {"item_id": ["n1", "n2"], "title": ["z", None], "tags": [None, None]}, schema=catalogue.table.schema
    )
    placebo = TextPlacebo("shuffled", 0, SPLIT)
    found = placebo.donors(Items(IdMap(["n1", "n2"]), new), catalogue, TextConfig()).table
    assert found["item_id"].to_list() == ["n1", "n2"]
    assert found["tags"].to_list() == [["x"], None]  # the second one has no text to begin with
    assert found["title"].to_list()[0] != "z"
    alone = placebo.donors(Items(IdMap(["n1"]), new[:1]), catalogue, TextConfig()).table
    assert alone.equals(found[:1])


# through the front door


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("data") / "books")


@pytest.fixture
def seen(monkeypatch):
    """The tasks that text-knn was given; the language model is a stand-in."""
    tasks = []
    fit = TextKNN.fit

    def keep(self, task):
        tasks.append(task)
        fit(self, task)

    monkeypatch.setattr("graphllmrec.text.prepare.encode_items", encode_first_word)
    monkeypatch.setattr(TextKNN, "fit", keep)
    return tasks


def recommender(kind, **settings):
    return Recommender.from_recipe("text-knn", model={"text_dim": 3, "decay": 1.0}, text={"placebo": kind}, **settings)


def test_the_text_itself_is_no_control(world, seen):
    found = recommender("none").fit(world)
    assert torch.equal(seen[0].text.vectors, encode_first_word(found.dataset.items, None).vectors)
    evaluation = found.evaluate()
    assert evaluation.protocol["placebo"] == "none"
    assert "placebo" not in protocol_line(evaluation.protocol)
    assert evaluation.name == "text-knn"


@pytest.mark.parametrize("kind", KINDS)
def test_a_control_is_named_wherever_its_figures_are(world, seen, tmp_path, kind):
    found = recommender(kind).fit(world, out=tmp_path / "run")
    assert f'placebo = "{kind}"' in (tmp_path / "run" / "recipe.toml").read_text()
    evaluation = Recommender.load(tmp_path / "run").evaluate()
    assert evaluation.protocol["placebo"] == kind
    assert protocol_line(evaluation.protocol).endswith(f"placebo: {kind} instead of text")
    assert evaluation.name == f"text-knn ({kind} text)"
    assert evaluation.protocol["fingerprint"] == found.evaluate().protocol["fingerprint"]  # can be compared


def test_controls_among_several_are_told_by_name(world, seen, tmp_path):
    runs = {kind: recommender(kind).fit(world).evaluate() for kind in ("random", "none")}
    line = shared_protocol_line(runs)
    assert line.endswith("masked · placebos instead of text: random: random")
    printed = io.StringIO()
    Console(file=printed, width=300).print(models_table(runs))
    assert line in printed.getvalue()
    write_report(tmp_path / "report.html", "Two", [ReportEntry(name, row) for name, row in runs.items()])
    assert line in (tmp_path / "report.html").read_text()
    assert "placebo" not in shared_protocol_line({"none": runs["none"]})


def test_a_model_that_reads_no_text_has_no_control(world):
    assert Recommender.from_recipe("ease").fit(world).evaluate().protocol["placebo"] == "none"
    with pytest.raises(RecipeError, match=r"text\.placebo has no effect"):
        Recommender.from_recipe("ease", text={"placebo": "shuffled"})


def test_an_unknown_control_is_refused():
    with pytest.raises(RecipeError, match=r"text\.placebo.*'shuffled'"):
        recommender("shuffle")


def test_meaning_is_lost_to_shuffled_and_random_vectors_alone(world, seen):
    found = {kind: recommender(kind).fit(world).evaluate().overall["ndcg@10"] for kind in ("none", *KINDS)}
    assert found["none"] > 0.3
    assert found["shuffled"] < 0.6 * found["none"]
    assert found["random"] < 0.6 * found["none"]
    assert found["item2vec"] > 0.8 * found["none"]  # blocks are in the clicks too


@pytest.mark.parametrize("kind", ["random", "item2vec"])
def test_the_encoder_is_left_alone_where_it_says_nothing(world, monkeypatch, kind):
    def refuse(*_, **__):
        raise AssertionError("encoded")

    monkeypatch.setattr("graphllmrec.text.prepare.encode_items", refuse)
    found = recommender(kind).fit(world)
    found.add_items([{"item_id": "fresh", "title": "poems for winter"}])
    assert found.dataset.num_items == 49


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_control_is_the_same(world, seen, tmp_path, monkeypatch, kind):
    def stop(self, task):
        raise Interrupted("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(TextKNN, "fit", stop)
        with pytest.raises(Interrupted):
            recommender(kind, seed=5).fit(world, out=tmp_path / "run")
    resumed = Recommender.resume(tmp_path / "run")
    whole = recommender(kind, seed=5).fit(world)
    assert torch.equal(seen[0].text.vectors, seen[1].text.vectors)
    assert resumed.recommend(users=["u3"]) == whole.recommend(users=["u3"])
    recommender(kind, seed=6).fit(world)
    assert kind == "item2vec" or not torch.equal(seen[2].text.vectors, seen[1].text.vectors)


@pytest.mark.parametrize("kind", KINDS)
def test_new_items_under_a_control(world, seen, tmp_path, kind):
    found = recommender(kind).fit(world, out=tmp_path / "run")
    again = Recommender.load(tmp_path / "run")
    for each in (found, again):
        each.add_items([{"item_id": "fresh", "title": "poems for winter"}])
    new = found.model.item_vectors()[48]
    assert torch.equal(again.model.item_vectors()[48], new)
    assert bool(new.any()) == (kind != "item2vec")  # clicks say nothing of it
    assert again.similar("fresh", k=3) == found.similar("fresh", k=3)
    assert again.recommend(users=["u1"], k=3) == found.recommend(users=["u1"], k=3)
    # another id, another draw, whatever the text says
    found.add_items([{"item_id": "fresh2", "title": "poems for winter"}])
    assert kind == "item2vec" or not torch.equal(found.model.item_vectors()[49], new)

"""The Python front door: external ids in and out, run folders that survive interruption and refuse damage."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import polars as pl
import pytest
import torch

from front_door_world import encode_first_word, write_world
from graphllmrec import run_folder as run
from graphllmrec.data.read import load_data
from graphllmrec.data.tables import Histories
from graphllmrec.errors import (
    CheckpointError,
    DataError,
    EvaluationError,
    GraphLLMRecError,
    Interrupted,
    RecipeError,
    UnknownIdError,
)
from graphllmrec.manifest import Manifest
from graphllmrec.models.baselines.ease import EASE
from graphllmrec.models.explain import explain_item
from graphllmrec.protocol import Abilities, Queries
from graphllmrec.recommender import Recommender


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("data") / "books")


@pytest.fixture(scope="module")
def ease(world):
    return Recommender.from_recipe("ease", model={"l2": 1.0, "decay": 1.0}).fit(world)


@pytest.fixture
def text(world, monkeypatch):
    monkeypatch.setattr("graphllmrec.text.prepare.encode_items", encode_first_word)
    return Recommender.from_recipe("text-knn", model={"text_dim": 3, "decay": 1.0}).fit(world)


def block(entry):
    return int(entry.item_id[1:]) // 12


# recommend


def test_users_get_unseen_items_of_their_own_circle_with_titles(ease):
    lists = ease.recommend(users=["u0", "u1"], k=2)
    assert [[block(entry) for entry in entries] for entries in lists] == [[0, 0], [1, 1]]
    assert lists[0][0].title == f"gears pump valve {lists[0][0].item_id[1:]}"
    seen = set(ease.dataset.items.ids.of(ease.split.interactions().histories(40)[0]))
    assert len(seen) == 8
    assert not seen & {entry.item_id for entry in lists[0]}


def test_a_batch_gives_what_single_requests_give(ease):
    users = [f"u{n}" for n in range(40)]
    assert ease.recommend(users=users, k=5) == [ease.recommend(users=[user], k=5)[0] for user in users]


def test_k_beyond_the_catalogue_gives_every_unseen_item_once(ease):
    [entries] = ease.recommend(users=["u0"], k=1000)
    assert len({entry.item_id for entry in entries}) == len(entries) == 40


def test_a_history_speaks_for_somebody_unknown(ease):
    [entries] = ease.recommend(history=["i13", "i15"], k=6)
    assert [block(entry) for entry in entries] == [1] * 6
    assert not {"i13", "i15"} & {entry.item_id for entry in entries}


def test_unknown_history_items_are_named_and_ignored(ease):
    with pytest.warns(UserWarning, match="unknown items of the history are ignored: nope"):
        found = ease.recommend(history=["i13", "nope"], k=3)
    assert found == ease.recommend(history=["i13"], k=3)


@pytest.mark.parametrize("history", [["nope"], []])
def test_a_history_without_a_known_item_is_refused(ease, history):
    with pytest.raises(UnknownIdError, match="no item of the history is known"):
        ease.recommend(history=history)


def test_an_unknown_user_is_pointed_to_history(ease):
    with pytest.raises(UnknownIdError, match=r"unknown user 'u400'; did you mean .*give a history of item ids"):
        ease.recommend(users=["u400"])


def test_users_or_history_but_not_both_and_no_bare_string(ease):
    with pytest.raises(ValueError, match="either users"):
        ease.recommend(users=["u0"], history=["i1"])
    with pytest.raises(TypeError, match="is a list of ids, not"):
        ease.recommend(users="u0")


def test_an_unfitted_recommender_says_so():
    with pytest.raises(CheckpointError, match="not fitted yet"):
        Recommender.from_recipe("ease").recommend(users=["u0"])


# similar, explain


def test_similar_items_are_of_the_same_circle_and_not_the_item(ease):
    found = ease.similar("i3", k=5)
    assert [block(entry) for entry in found] == [0] * 5
    assert "i3" not in [entry.item_id for entry in found]
    with pytest.raises(UnknownIdError, match="unknown item 'i999'"):
        ease.similar("i999")


def test_reasons_name_the_nearest_history_items(ease):
    [[first, *_]] = ease.recommend(users=["u2"], k=1)
    reason = ease.explain("u2", first.item_id)
    assert reason.score == pytest.approx(first.score, rel=1e-5)
    assert sum(reason.shares.values()) == pytest.approx(reason.score)
    assert reason.shares.keys() == {"clicks"}
    assert len(reason.history) == 8
    assert [entry.score for entry in reason.history] == sorted((e.score for e in reason.history), reverse=True)
    # EASE without decay is the sum over the history of its own item similarities, so these add up to the score
    assert sum(entry.score for entry in reason.history) == pytest.approx(reason.score, rel=1e-4)


def test_an_item_of_the_history_is_not_explained_by_itself(ease):
    known = ease.dataset.items.ids.of(ease.split.interactions().histories(40)[0])[0]
    reason = ease.explain("u0", known)
    assert known not in [entry.item_id for entry in reason.history]
    assert len(reason.history) == 7


def test_a_history_that_plays_no_part_is_not_named(world):
    reason = Recommender.from_recipe("popularity").fit(world).explain("u0", "i3")
    assert reason.history == []


# new items


def test_a_new_item_is_found_by_its_text_at_once(text):
    text.add_items([{"item_id": "fresh", "title": "poems for winter"}])
    assert "fresh" in [entry.item_id for entry in text.recommend(users=["u1"], k=5)[0]]
    assert {block(entry) for entry in text.similar("fresh", k=5)} == {1}
    assert text.explain("u1", "fresh").shares.keys() == {"text"}
    assert text.evaluate().overall["recall@10"] > 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no items to add"),
        ([{"title": "poems"}], "new item 1 has no item_id"),
        ([{"item_id": "a", "title": "x"}, {"item_id": "a", "title": "y"}], "new item 2: this id is already"),
        ([{"item_id": "i3", "title": "x"}], "already in the catalogue"),
        ([{"item_id": "a", "titls": "x"}], "column .titls.: new item 1: the catalogue has no such column"),
        ([{"item_id": "a", "title": ""}], "new item 1 has no text"),
        ([{"item_id": "a", "title": ["x"]}], "column .title.: new item 1 does not fit the catalogue"),
    ],
)
def test_bad_new_items_are_refused_and_nothing_is_added(text, rows, message):
    with pytest.raises(DataError, match=message):
        text.add_items(rows)
    assert text.dataset.num_items == 48
    assert text.model.item_vectors().shape[0] == 48


@pytest.mark.parametrize("recipe", ["item-knn", "ease"])
def test_nothing_is_answered_for_an_item_of_which_the_model_knows_nothing(world, recipe):
    """And not the first items of the catalogue at score 0."""
    found = Recommender.from_recipe(recipe).fit(world)
    found.add_items([{"item_id": "fresh", "title": "poems for winter"}])
    with pytest.warns(UserWarning, match=f"no items similar to 'fresh': {recipe} compares items by clicks"):
        assert found.similar("fresh") == []
    with pytest.raises(UnknownIdError, match=rf"no item .* has clicks in the training data .*'fresh'.*, and {recipe} "):
        found.recommend(history=["fresh"])
    with pytest.raises(UnknownIdError, match="knows items by their clicks only"):
        found.explain(history=["fresh"], item="i1")


def test_items_without_text_are_nobodys_neighbours(world):
    data = load_data(world)
    titles = data.items.table["title"].to_list()
    some = pl.Series("title", [None if row % 4 == 0 else title for row, title in enumerate(titles)])
    table = data.items.table.with_columns(some)
    data = replace(data, items=replace(data.items, table=table))
    found = Recommender.from_recipe("text-knn", text={"encoder": "ngrams"}).fit(data)
    silent = set(table.filter(some.is_null())["item_id"])
    assert not silent & {entry.item_id for entry in found.similar(table["item_id"][1], k=48)}
    with pytest.warns(UserWarning, match="text-knn compares items by .*text, and this has none"):
        assert found.similar(table["item_id"][0]) == []


def test_added_items_survive_saving(text, tmp_path):
    text.add_items([{"item_id": "fresh", "title": "poems for winter"}])
    text.save(tmp_path / "run")
    again = Recommender.load(tmp_path / "run")
    assert again.recommend(users=["u1"], k=9) == text.recommend(users=["u1"], k=9)
    assert again.dataset.items.ids.row("fresh") == 48


# evaluate


def test_evaluate_on_the_same_data_is_evaluate(ease, world):
    assert ease.evaluate(data=world).overall == ease.evaluate().overall
    assert ease.evaluate("valid").protocol["part"] == "valid"


def test_the_public_names_work_in_any_order_of_import(ease):
    import graphllmrec
    from graphllmrec import Recommender, compare, evaluate, load_data

    assert evaluate(ease).overall == ease.evaluate().overall
    assert evaluate(ease, split="valid").overall == ease.evaluate("valid").overall
    assert compare(evaluate(ease), evaluate(ease)).difference == 0
    assert Recommender is type(ease)
    assert callable(load_data)
    assert all(hasattr(graphllmrec, name) for name in graphllmrec.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'recommender_of_dreams'"):
        _ = graphllmrec.recommender_of_dreams


def test_evaluate_refuses_data_with_unknown_users(ease, tmp_path):
    other = write_world(tmp_path / "other", users=44)
    with pytest.raises(DataError, match="4 users are not in the data this recommender was fitted on"):
        ease.evaluate(data=other)


def test_a_model_without_branches_cannot_be_ranked_by_one(ease):
    with pytest.raises(EvaluationError, match="no branch 'text'"):
        ease.evaluate(branch="text")


# run folders


@pytest.mark.parametrize("name", ["popularity", "item-knn", "ease", "transitions"])
def test_a_run_folder_gives_back_the_same_recommender(world, tmp_path, name):
    fitted = Recommender.from_recipe(name).fit(world, out=tmp_path / name)
    again = Recommender.load(tmp_path / name)
    users = [f"u{n}" for n in range(40)]
    assert again.recommend(users=users, k=7) == fitted.recommend(users=users, k=7)
    assert again.recommend(history=["i13"], k=7) == fitted.recommend(history=["i13"], k=7)
    assert again.evaluate().overall == fitted.evaluate().overall
    assert again.recipe == fitted.recipe
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(
        ["recipe.toml", "data.json", "users.parquet", "items.parquet", "interactions.parquet", "log.jsonl",
         "timings.jsonl", "findings.safetensors", "model.safetensors", "model.json", "manifest.json"]
    )  # fmt: skip


def test_the_log_holds_one_object_per_line(world, tmp_path):
    Recommender.from_recipe("ease").fit(world, out=tmp_path / "run")
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all("event" in event and "time" not in event for event in events)  # times are in timings.jsonl
    assert "decay-tuned" in [event["event"] for event in events]


def test_a_finished_run_is_not_overwritten_unasked(ease, world, tmp_path):
    ease.save(tmp_path / "run")
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=r"already holds a run \(finished\); replace it with --overwrite"):
        Recommender.from_recipe("popularity").fit(world, out=tmp_path / "run")
    with pytest.raises(CheckpointError, match="already holds a run"):
        ease.save(tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    Recommender.from_recipe("popularity").fit(world, out=tmp_path / "run", overwrite=True)
    assert Recommender.load(tmp_path / "run").model.name == "popularity"


def test_a_folder_that_is_not_a_run_is_never_replaced(world, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="not empty and not a run folder"):
        Recommender.from_recipe("ease").fit(world, out=tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_bad_input_leaves_no_folder(world, tmp_path):
    for recommender, data, error in [
        (Recommender.from_recipe("ease"), tmp_path / "absent", DataError),
        (Recommender.from_recipe("ease", data={"split": "ready-made"}), world, DataError),
        (Recommender.from_recipe("popularity", data={"k_core": 100}), world, GraphLLMRecError),
    ]:
        with pytest.raises(error):
            recommender.fit(data, out=tmp_path / "run")
        assert list(tmp_path.iterdir()) == []


def test_a_fit_that_is_refused_leaves_no_folder(world, tmp_path, monkeypatch):
    def refuse(self, task):
        raise RecipeError(["model.l2: too small for this data"])

    monkeypatch.setattr(EASE, "fit", refuse)
    with pytest.raises(RecipeError, match="too small"):
        Recommender.from_recipe("ease").fit(world, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def interrupted(world, tmp_path, monkeypatch):
    """A run folder whose fit was stopped by Ctrl-C."""

    def stop(self, task):
        raise Interrupted("stopped in epoch 3")

    with monkeypatch.context() as patch:
        patch.setattr(EASE, "fit", stop)
        with pytest.raises(Interrupted, match="epoch 3"):
            Recommender.from_recipe("ease", seed=5).fit(world, out=tmp_path / "run")
    return tmp_path / "run"


def test_an_interrupted_run_is_not_read_as_a_finished_one(interrupted, world):
    with pytest.raises(CheckpointError, match=r"interrupted run \(model.json is missing\); finish it with"):
        Recommender.load(interrupted)
    with pytest.raises(CheckpointError, match=r"\(interrupted\); continue it with --resume, or"):
        Recommender.from_recipe("ease").fit(world, out=interrupted)


def test_an_interrupted_run_resumes_from_its_folder_alone(interrupted, world):
    resumed = Recommender.resume(interrupted)
    assert resumed.recipe.seed == 5
    fresh = Recommender.from_recipe("ease", seed=5).fit(world)
    assert resumed.recommend(users=["u3"]) == fresh.recommend(users=["u3"])
    assert Recommender.load(interrupted).recommend(users=["u3"]) == fresh.recommend(users=["u3"])
    with pytest.raises(CheckpointError, match="finished, there is nothing to resume"):
        Recommender.resume(interrupted)


def test_resume_refuses_another_recipe_and_changed_data(interrupted, world, tmp_path):
    recipe = Recommender.from_recipe("ease", seed=6).recipe
    with pytest.raises(CheckpointError, match=r"recipe differs .*seed: 6, not 5"):
        Recommender.resume(interrupted, recipe=recipe)
    changed = shutil.copytree(world, tmp_path / "changed")
    text = (changed / "interactions.csv").read_text().replace("u7,i", "u8,i", 1)
    (changed / "interactions.csv").write_text(text)
    with pytest.raises(CheckpointError, match="data changed since"):
        Recommender.resume(interrupted, data=changed)
    Recommender.resume(interrupted, recipe=Recommender.from_recipe("ease", seed=5).recipe, data=world)


@pytest.mark.parametrize("name", ["recipe.toml", "users.parquet", "interactions.parquet", "model.safetensors"])
def test_what_is_missing_is_named(ease, tmp_path, name):
    ease.save(tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    with pytest.raises(CheckpointError, match=f"missing: {name}"):
        Recommender.load(tmp_path / "run")


@pytest.mark.parametrize("name", ["recipe.toml", "data.json", "items.parquet", "interactions.parquet", "model.json"])
def test_a_damaged_file_is_named(ease, tmp_path, name):
    ease.save(tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(b"\x00garbage")
    with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
        Recommender.load(tmp_path / "run")


def test_damaged_tensors_are_noticed(ease, tmp_path):
    ease.save(tmp_path / "run")
    path = tmp_path / "run" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        Recommender.load(tmp_path / "run")


def test_a_run_of_another_format_is_refused(ease, tmp_path):
    ease.save(tmp_path / "run")
    Manifest.read(tmp_path / "run").model_copy(update={"format": 99}).write(tmp_path / "run")
    with pytest.raises(CheckpointError, match=rf"has format 99, this version reads {run.FORMAT}"):
        Recommender.load(tmp_path / "run")


def test_no_run_folder_at_all(tmp_path):
    with pytest.raises(CheckpointError, match=r"no run folder at .*graphllmrec fit RECIPE"):
        Recommender.load(tmp_path / "nothing")


# the generic explanation of a model made of branches


class TwoBranches:
    """Scores by position in the catalogue; `scale` says how the whole relates to its branches."""

    branches = ("graph", "text")
    name, config_class, config = "toy", None, None
    abilities = Abilities(needs_text=True, ranks_cold_items=True)

    def __init__(self, parts, whole):
        self.parts, self.whole = parts, whole

    def scores(self, queries):
        return torch.full((len(queries), 3), self.whole)

    def branch_scores(self, queries, branch):
        return torch.full((len(queries), 3), self.parts[branch])

    def fit(self, task): ...
    def state(self): ...
    def restore(self, state): ...
    def with_items(self, text): ...


@pytest.mark.parametrize(
    ("whole", "shares"), [(5.0, {"clicks": 2.0, "text": 3.0}), (10.0, {"clicks": 4.0, "text": 6.0})]
)
def test_branch_shares_add_up_to_the_score(whole, shares):
    found = explain_item(TwoBranches({"graph": 2.0, "text": 3.0}, whole), Queries.anonymous(history([0, 1])), 2)
    assert found.shares == pytest.approx(shares)
    assert found.history == []  # every history item gives the same score: none is a reason


def history(rows):
    return Histories.from_lists([rows])

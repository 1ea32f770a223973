"""What every model of the registry must do, on the block world. A model added to the registry is found by itself."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load, save

from graphllmrec.data.tables import Dataset, Histories, IdMap, Items
from graphllmrec.errors import GraphLLMRecError, UnknownIdError
from graphllmrec.fitted import Fitted, Limits
from graphllmrec.models.explain import explain_item, similarities
from graphllmrec.models.registry import MODELS, build, model_class
from graphllmrec.protocol import BranchModel, Earlier, Findings, Model, Queries, TextVectors, VectorModel
from world import World, block_world

WORLD = block_world()
EVERYBODY = Queries.of(WORLD.split.known("test"), np.arange(WORLD.split.num_users))
QUICK = {"lightgcn": {"learning_rate": 0.02, "epochs": 40}}  # its defaults are the paper's 1,000 epochs of small steps


@pytest.fixture(params=list(MODELS))
def name(request: pytest.FixtureRequest) -> str:
    module = MODELS[request.param].split(":")[0]
    if find_spec(f"graphllmrec.models.{module}") is None:
        pytest.skip(f"models/{module}.py is not there")
    return request.param


def unfitted(name: str) -> Model:
    """A model with its default settings; one that learns in batches gets small ones, for there are only 600 clicks."""
    small = {"batch_size": 64} if "batch_size" in model_class(name).config_class.model_fields else {}
    return build(name, small | QUICK.get(name, {}))


@cache
def original(name: str, round_: int = 0) -> tuple[Model, World, Findings]:
    """A model, the world it was fitted on, and what it found on validation. Tests share it: look, do not touch."""
    model, world = unfitted(name), block_world()
    task = world.task(seed=7)
    model.fit(task)
    return model, world, task.findings


def fitted(name: str) -> Model:
    """A fitted model of its own, by way of the bytes that go to disk."""
    model = unfitted(name)
    model.restore(load(save(original(name)[0].state())))
    return model


def is_personal(scores: torch.Tensor) -> bool:
    return not bool((scores == scores[0]).all())


def test_the_registry_and_the_class_agree(name: str) -> None:
    kind = model_class(name)
    assert kind.name == name
    assert isinstance(build(name), Model)


def test_scores_are_finite_float32_rows_over_all_items(name: str) -> None:
    scores = fitted(name).scores(EVERYBODY)
    assert scores.shape == (WORLD.split.num_users, WORLD.split.num_items)
    assert scores.dtype == torch.float32
    assert torch.isfinite(scores).all()


def test_restored_model_gives_identical_scores(name: str) -> None:
    model, restored = original(name)[0], fitted(name)
    assert torch.equal(restored.scores(EVERYBODY), model.scores(EVERYBODY))
    assert save(restored.state()) == save(model.state())


def test_same_seed_same_bytes(name: str) -> None:
    assert save(original(name, 0)[0].state()) == save(original(name, 1)[0].state())


def test_a_refit_without_a_validation_part_takes_over_what_was_found(name: str) -> None:
    """On the same training part it gives the same model: epochs, tuned settings, weights of a fusion and its gate."""
    model, split, findings = unfitted(name), WORLD.split, original(name)[2]
    settings = json.loads(json.dumps(findings.settings))  # as from a run folder
    findings = Findings(settings, findings.weights, split.num_users, split.num_items)
    nothing = split.valid.where(np.zeros(len(split.valid), dtype=bool))
    earlier = Earlier(findings, np.arange(split.num_users), np.arange(split.num_items))
    task = replace(WORLD.task(seed=7), split=replace(split, valid=nothing), earlier=earlier)
    model.fit(task)
    assert save(model.state()) == save(original(name)[0].state())
    assert json.loads(json.dumps(task.findings.settings)) == findings.settings  # and hands them on


def test_fitting_leaves_the_data_alone(name: str) -> None:
    world = original(name)[1]
    for part in ("train", "valid", "test"):
        assert np.array_equal(getattr(world.split, part).item, getattr(WORLD.split, part).item)
    assert torch.equal(world.text.vectors, WORLD.text.vectors)


def test_a_batch_scores_like_its_members_alone(name: str) -> None:
    model = fitted(name)
    together = model.scores(EVERYBODY)
    for row in (0, 57, 119):
        alone = model.scores(Queries(EVERYBODY.users[[row]], EVERYBODY.histories.take(np.array([row]))))
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)


def test_the_best_items_are_those_of_the_users_block(name: str) -> None:
    scores = fitted(name).scores(EVERYBODY)
    if not is_personal(scores):
        pytest.skip("not personal")
    known = EVERYBODY.histories
    scores[torch.from_numpy(known.row_of_entry), torch.from_numpy(known.items)] = -torch.inf
    blocks = WORLD.item_block[scores.topk(3).indices.numpy()]  # (num_users, 3)
    assert (blocks == WORLD.user_block[:, None]).mean() > 0.95


def test_an_unknown_user_with_a_history_gets_the_block_of_that_history(name: str) -> None:
    model = fitted(name)
    stranger = Queries.anonymous(Histories.from_lists([[12, 13, 14], [31, 32]]))  # blocks 1 and 3
    scores = model.scores(stranger)
    assert torch.isfinite(scores).all()
    if not is_personal(scores):
        pytest.skip("not personal")
    scores[0, [12, 13, 14]] = scores[1, [31, 32]] = -torch.inf
    assert WORLD.item_block[scores.argmax(1).numpy()].tolist() == [1, 3]


@pytest.mark.parametrize("user", [-1, 5])
def test_an_empty_history_gets_finite_scores(name: str, user: int) -> None:
    query = Queries(np.array([user]), Histories.from_lists([[]]))
    scores = fitted(name).scores(query)
    assert scores.shape == (1, WORLD.split.num_items)
    assert torch.isfinite(scores).all()


def test_no_queries_no_rows(name: str) -> None:
    nobody = Queries(np.empty(0, dtype=np.int64), Histories.from_lists([]))
    assert fitted(name).scores(nobody).shape == (0, WORLD.split.num_items)


def test_cold_items_are_placed_by_their_text(name: str) -> None:
    model = fitted(name)
    if not model.abilities.ranks_cold_items:
        pytest.skip("cannot place items without clicks")
    best = model.scores(EVERYBODY)[:, WORLD.cold].argmax(1).numpy()  # among cold items only
    assert (WORLD.item_block[WORLD.cold[best]] == WORLD.user_block).mean() > 0.95


def test_a_new_item_is_an_ordinary_item(name: str) -> None:
    model = fitted(name)
    before = model.scores(EVERYBODY)
    model = model.with_items(WORLD.new_text(block=2))
    scores = model.scores(EVERYBODY)
    assert scores.shape == (len(before), before.shape[1] + 1)
    assert torch.isfinite(scores).all()
    new, own = scores[:, -1], torch.from_numpy(WORLD.user_block == 2)
    if model.abilities.ranks_cold_items:  # liked by its block, more than the cold items of other blocks
        others = torch.from_numpy(WORLD.cold[WORLD.item_block[WORLD.cold] != 2])
        assert (new[own] > scores[own][:, others].max(1).values).float().mean() > 0.95
    else:  # no better than a catalogue item that nobody has clicked
        assert (new <= scores[:, WORLD.cold].max(1).values).all()
    clicked = Queries.anonymous(Histories.from_lists([[20, WORLD.split.num_items], [WORLD.split.num_items]]))
    assert torch.isfinite(model.scores(clicked)).all()


def test_a_new_item_has_the_neighbours_of_its_text_or_none(name: str) -> None:
    model, row = fitted(name).with_items(WORLD.new_text(block=2)), WORLD.split.num_items
    alike = similarities(model, row, np.append(WORLD.split.item_degree(), 0))
    alike[row] = -torch.inf
    if not model.abilities.ranks_cold_items:
        assert not alike.isfinite().any()  # and no first rows of the catalogue at score 0
        return
    best = alike.topk(3)
    assert (WORLD.item_block[best.indices.numpy()] == 2).all()
    assert best.values.isfinite().all()
    assert len(best.values.unique()) == 3
    scores = model.scores(Queries.anonymous(Histories.from_lists([[row]])))[0]
    assert len(scores.unique()) > row / 2


def test_an_item_of_which_nothing_is_known_has_no_neighbours_by_chance(name: str) -> None:
    nothing = TextVectors(torch.zeros(1, WORLD.text.vectors.shape[1]), torch.zeros(1, dtype=torch.bool))
    model, row = fitted(name).with_items(nothing), WORLD.split.num_items
    alike = similarities(model, row, np.append(WORLD.split.item_degree(), 0))[:row]
    assert not alike.isfinite().any() or len(alike.unique()) > row / 2  # RecMind has a vector that it learned for these


def test_a_history_of_which_nothing_is_known_is_never_answered_with_ties(name: str) -> None:
    """By no model: an item of which it knows nothing is an unknown item, also where it is in the catalogue."""
    model, split = fitted(name), WORLD.split
    nothing = TextVectors(torch.zeros(1, WORLD.text.vectors.shape[1]), torch.zeros(1, dtype=torch.bool))
    ids = [f"i{row}" for row in range(split.num_items)]
    items = Items(IdMap(ids), pl.DataFrame({"item_id": ids, "title": ids}))
    users = IdMap([f"u{row}" for row in range(split.num_users)])
    now = Fitted.of(model, Dataset("world", users, items, split.interactions()), split)
    grown = now.with_items(
        pl.DataFrame({"item_id": ["fresh"], "title": [None]}, schema_overrides={"title": pl.String}), nothing
    )
    limits = Limits()
    if name in ("alphafuse", "recmind"):  # they have a vector that they learned for items without text
        answer = grown.for_history(["fresh"], 5, limits).lists()[0]
        assert len({entry.score for entry in answer}) > 1
        return
    with pytest.raises(UnknownIdError, match=rf"{name} knows"):
        grown.for_history(["fresh"], 5, limits)
    with pytest.warns(UserWarning, match=f"without any item that {name} knows gets an empty list"):
        assert grown.for_history(["fresh"], 5, limits, "skip").lists() == [[]]
    with pytest.warns(UserWarning, match="gets the most popular items"):
        popular = grown.for_history(["fresh"], 5, limits, "popular").lists()[0]
    assert [entry.score for entry in popular] == sorted(split.item_degree(), reverse=True)[:5]
    assert all(grown.for_users(["u0"], np.array([0]), 5, limits, "error").lists())  # who has clicks gets a list


def test_a_model_that_is_asked_or_grows_stays_as_it_is(name: str) -> None:
    """Several threads read one model, and one makes a larger one of it: nothing of the first may change."""
    model = fitted(name)
    state, scores = save(model.state()), model.scores(EVERYBODY)
    larger = model.with_items(WORLD.new_text(block=2))
    larger_state = save(larger.state())
    for each in (larger, model):
        query = Queries(EVERYBODY.users[[3]], EVERYBODY.histories.take(np.array([3])))
        explain_item(each, query, 1)
        similarities(each, 1)
        each.with_items(WORLD.new_text(block=1)).scores(query)
        each.scores(EVERYBODY).fill_(-1.0)  # scores belong to the caller
    assert torch.equal(model.scores(EVERYBODY), scores)
    assert save(model.state()) == state
    assert save(larger.state()) == larger_state


def test_added_items_survive_saving(name: str) -> None:
    model = fitted(name).with_items(WORLD.new_text(block=4))
    restored = unfitted(name)
    restored.restore(load(save(model.state())))
    assert torch.equal(restored.scores(EVERYBODY), model.scores(EVERYBODY))


def test_vector_models_score_by_dot_product(name: str) -> None:
    model = fitted(name)
    if not isinstance(model, VectorModel):
        pytest.skip("not a vector model")
    product = model.query_vectors(EVERYBODY) @ model.item_vectors().T
    torch.testing.assert_close(model.scores(EVERYBODY), product, rtol=1e-5, atol=1e-5)


def test_branches_can_be_scored_alone(name: str) -> None:
    model = fitted(name)
    if not isinstance(model, BranchModel):
        pytest.skip("has no branches")
    assert len(model.branches) > 1
    for branch in model.branches:
        scores = model.branch_scores(EVERYBODY, branch)
        assert scores.shape == (WORLD.split.num_users, WORLD.split.num_items)
        assert torch.isfinite(scores).all()


def test_text_is_asked_for_by_name(name: str) -> None:
    model = unfitted(name)
    if not model.abilities.needs_text:
        pytest.skip("does without text")
    with pytest.raises(GraphLLMRecError, match=f"{name}.*text"):
        model.fit(WORLD.task(with_text=False))


def out_of_range(schema: dict[str, Any]) -> list[float]:
    """A number beyond every bound of a property's JSON schema; [] where it takes no number."""
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") in ("number", "integer")]
    below = [kind["minimum"] - 1 for kind in kinds if "minimum" in kind]
    below += [kind["exclusiveMinimum"] for kind in kinds if "exclusiveMinimum" in kind]
    above = [kind["maximum"] + 1 for kind in kinds if "maximum" in kind]
    above += [kind["exclusiveMaximum"] for kind in kinds if "exclusiveMaximum" in kind]
    assert not kinds or below, f"a number without a lower bound: {schema}"
    assert not kinds or above, f"a number without an upper bound: {schema}"
    return below + above


def test_settings_are_described_and_those_out_of_range_refused(name: str) -> None:
    kind = model_class(name).config_class
    for key, schema in kind.model_json_schema()["properties"].items():
        assert schema.get("description"), f"{name}.{key} has no description"
        for value in out_of_range(schema):
            with pytest.raises(ValidationError, match=key):
                kind(**{key: value})


def test_unknown_settings_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="layer_count"):
        build(name, {"layer_count": 3})

"""z-sum and the search of its weights, against loops over a tiny world; what it leaves out and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from graphllmrec.data.tables import Histories, Interactions
from graphllmrec.errors import RecipeError
from graphllmrec.models.fusion import score_fusion as blend
from graphllmrec.models.fusion import z_sum
from graphllmrec.models.fusion.score_fusion import Variant, build_score_table, search, zscores
from graphllmrec.models.fusion.z_sum import TEXT_FLOOR, ZSum, ZSumConfig
from graphllmrec.models.registry import build
from graphllmrec.protocol import Queries, Task, TextVectors
from graphllmrec.train.validation import tuning_users
from tiny import DECAY, ITEMS, QUERIES, QUERY, SPLIT, TEXT, TRAIN, Notes, assert_scores, fitted
from world import block_world


def z(scores: np.ndarray) -> np.ndarray:
    out = np.zeros_like(scores)
    for row, values in enumerate(scores):
        if values.std() > 0:
            out[row] = (values - values.mean()) / values.std()
    return out


def test_z_scores_have_mean_0_and_deviation_1_and_a_constant_row_is_0() -> None:
    rows = torch.tensor([[1.0, 2.0, 6.0], [0.1, 0.1, 0.1], [1e6, 1e6, 1e6 + 8]])
    np.testing.assert_allclose(zscores(rows)[:2].numpy(), z(rows[:2].double().numpy()) * [[1], [0]], atol=1e-6)
    assert zscores(rows)[2].std(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_z_sum_is_the_weighted_sum_of_its_experts() -> None:
    model = fitted("z-sum")
    assert model.branches == ("ease", "text-knn", "transitions")
    assert float(model.weights.sum()) == pytest.approx(1)
    assert (model.weights >= 0).all()
    expected = np.zeros((len(QUERY), ITEMS))
    for name, weight in zip(model.branches, model.weights, strict=True):
        alone = fitted(name, decay=model.experts[name].decay).scores(QUERIES).double().numpy()
        expected += float(weight) * z(alone)
        np.testing.assert_allclose(model.branch_scores(QUERIES, name).numpy(), z(alone), atol=1e-6)
    assert_scores(model, expected)


def test_the_board_ranks_like_a_loop_over_all_items() -> None:
    variants = [Variant(fitted(name, decay=DECAY), decay) for name in ("ease", "text-knn") for decay in (1.0, 0.5)]
    users = np.array([0, 2, 3, 7, 11])
    two_targets = Interactions(
        np.concatenate([SPLIT.valid.user, SPLIT.test.user]), np.concatenate([SPLIT.valid.item, SPLIT.test.item])
    ).sorted()
    split = replace(SPLIT, valid=two_targets)
    weights = torch.tensor([0.3, 0.7])
    gains = []
    for user in users:
        queries = Queries.of(SPLIT.known("valid"), np.array([user]))
        scores = 0.3 * variants[1].zscores(queries)[0] + 0.7 * variants[2].zscores(queries)[0]
        gain, targets = 0.0, split.targets("valid")[user]
        for target in targets:
            rank = sum(
                1 for item in range(ITEMS)
                if item != target and item not in TRAIN[user] and scores[item] >= scores[target]
            )  # fmt: skip
            gain += 1 / math.log2(rank + 2)
        gains.append(gain / sum(1 / math.log2(place + 2) for place in range(len(targets))))
    table = build_score_table(variants, [[0, 1], [2, 3]], split, users)
    assert table.ndcg([1, 2], weights) == pytest.approx(np.mean(gains), abs=1e-6)


class Constant:
    """Gives every item the same score."""

    def scores(self, queries: Queries) -> torch.Tensor:
        return torch.ones(len(queries), ITEMS)


def test_a_model_that_scores_all_items_alike_earns_nothing_in_the_tuning() -> None:
    """Equal scores count against the target: it is behind every item that its user has not clicked."""
    users = tuning_users(SPLIT, 0)
    table = build_score_table([Variant(Constant(), None)], [[0]], SPLIT, users)
    expected = np.mean([1 / math.log2(ITEMS - len(TRAIN[user]) + 1) for user in users])
    assert table.ndcg([0], torch.ones(1)) == pytest.approx(expected, abs=1e-6)
    half = [Variant(Constant(), None), Variant(fitted("transitions", decay=DECAY), None)]
    table = build_score_table(half, [[0], [1]], SPLIT, users)
    assert table.ndcg([0, 1], torch.tensor([0.5, 0.5])) == pytest.approx(table.ndcg([0, 1], torch.tensor([0.0, 1.0])))


def test_a_model_with_huge_scores_does_not_crowd_out_the_candidates_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blend, "KEPT", 2)
    spiky, flat = torch.tensor([90.0, 80, 70, 60, 50, 0, 0, 0, 0]), torch.tensor([0.0, 0, 0, 0, 0, 1, 2, 3, 4])
    items = blend._candidates(torch.stack([spiky, flat])[:, None], [[0], [1]])  # (1, 6)
    assert {0, 1, 7, 8} <= set(items[0].tolist())
    assert len(set(items[0].tolist())) == items.shape[1]


def test_the_search_never_ends_below_equal_weights_or_a_single_model() -> None:
    variants = [Variant(fitted(name, decay=DECAY), decay) for name in ("ease", "transitions") for decay in (1.0, 0.5)]
    groups = [[0, 1], [2, 3]]
    table = build_score_table(variants, groups, SPLIT, tuning_users(SPLIT, 0))
    found = search(table, groups)
    assert found.ndcg == pytest.approx(table.ndcg(found.chosen, found.weights))
    assert found.ndcg >= max(found.alone)
    assert found.ndcg >= table.ndcg(found.chosen, torch.tensor([0.5, 0.5]))


def test_the_grid_alone_has_every_single_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blend, "_STEPS", ())  # no climbing after it
    for useless_first in (True, False):
        pair = [Variant(Constant(), None), Variant(fitted("ease", decay=DECAY), None)]
        table = build_score_table(pair[:: 1 if useless_first else -1], [[0], [1]], SPLIT, tuning_users(SPLIT, 0))
        found = search(table, [[0], [1]])
        assert found.ndcg >= max(found.alone)
        assert found.trials == 1 + blend._GRID + 1


def test_the_search_gives_a_useless_model_no_weight() -> None:
    world = block_world()
    good, useless = fitted("transitions", world.task()), fitted("popularity", world.task())
    groups = [[0], [1]]
    table = build_score_table(
        [Variant(useless, None), Variant(good, 0.5)], groups, world.split, tuning_users(world.split, 0)
    )
    found = search(table, groups)
    assert found.ndcg == pytest.approx(1)
    assert found.weights[1] > 0.49


def test_z_sum_leaves_out_experts_that_the_data_cannot_feed() -> None:
    notes = Notes()
    model = fitted("z-sum", Task(SPLIT, logger=notes))
    assert model.branches == ("ease", "transitions")
    assert notes.events["expert-left-out"] == {"expert": "text-knn", "reason": "the items have no text"}
    model = fitted("z-sum", Task(replace(SPLIT, ordered=False), TEXT, logger=notes))
    assert model.branches == ("ease", "text-knn")
    assert notes.events["expert-left-out"] == {"expert": "transitions", "reason": "the interactions have no order"}
    restored = build("z-sum")
    restored.restore(model.state())
    assert restored.branches == ("ease", "text-knn")


def test_item_knn_takes_the_place_of_dense_experts_in_large_catalogues() -> None:
    notes, names = Notes(), ["transitions", "text-ease", "text-knn"]
    model = fitted("z-sum", Task(SPLIT, TEXT, logger=notes), experts=names, dense_items=ITEMS - 1)
    assert model.branches == ("transitions", "item-knn", "text-knn")
    assert notes.events["expert-replaced"]["expert"] == "text-ease"
    restored = build("z-sum", {"experts": names})
    restored.restore(model.state())
    assert restored.branches == model.branches
    everyone = Queries.of(SPLIT.known("test"), np.arange(SPLIT.num_users))
    assert torch.equal(restored.scores(everyone), model.scores(everyone))
    both = fitted("z-sum", Task(SPLIT, TEXT), experts=["ease", "transitions", "item-knn"], dense_items=0)
    assert both.branches == ("item-knn", "transitions")


def test_dense_experts_that_memory_has_no_room_for_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(z_sum, "free_memory", lambda: 4 * ITEMS**2 - 1)
    assert fitted("z-sum", Task(SPLIT, TEXT)).branches == ("item-knn", "text-knn", "transitions")


def test_z_sum_refuses_when_no_expert_is_left() -> None:
    with pytest.raises(RecipeError, match="none of text-knn can use this data"):
        fitted("z-sum", Task(SPLIT), experts=["text-knn"])


def test_z_sum_without_validation_part_weighs_equally() -> None:
    empty = SPLIT.valid.where(np.zeros(len(SPLIT.valid), dtype=bool))
    model = fitted("z-sum", Task(replace(SPLIT, valid=empty), TEXT))
    assert model.weights.tolist() == pytest.approx([1 / 3] * 3)
    assert {expert.decay for expert in model.experts.values()} == {0.7}


def test_z_sum_keeps_settings_of_an_expert_and_any_untrained_model_can_be_one() -> None:
    model = fitted("z-sum", experts=["popularity", "item-knn", "ease"], settings={"ease": {"l2": 5.0, "decay": 0.9}})
    assert model.experts["ease"].config.l2 == 5.0
    assert model.experts["ease"].decay == 0.9
    assert set(model.readable()) == {"popularity", "item-knn", "ease"}
    assert torch.isfinite(model.scores(QUERIES)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experts": ["ease", "neural"]}, "unknown expert 'neural'; known: popularity, item-knn"),
        ({"experts": ["z-sum"]}, "unknown expert 'z-sum'"),
        ({"experts": ["ease", "ease"]}, "expert 'ease' is given twice"),
        ({"experts": []}, "at least 1 item"),
        ({"settings": {"item-knn": {}}}, "settings.item-knn: not one of the experts"),
        ({"settings": {"ease": {"l2": -1}}}, "settings.ease.l2: Input should be greater than 0"),
        ({"settings": {"ease": {"l3": 1}}}, "settings.ease.l3: Extra inputs are not permitted"),
    ],
)
def test_z_sum_refuses_impossible_experts(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build("z-sum", settings)


def test_z_sum_explains_a_score_by_its_experts() -> None:
    model = fitted("z-sum")
    first = Queries(QUERIES.users[:1], QUERIES.histories.take(np.array([0])))
    found = model.explain(first, 4)
    assert found.score == pytest.approx(float(model.scores(first)[0, 4]), abs=1e-5)
    assert sum(found.shares.values()) == pytest.approx(found.score)
    assert found.gate == pytest.approx(model.readable()["text-knn"]["weight"], abs=1e-4)


# Tuning may leave no weight for the text. What only the text can place is no tie all the same.


def without_text_weight() -> tuple[ZSum, int]:
    """A fitted z-sum of ease and text-kNN whose whole weight is on ease, with two new items of known blocks."""
    world = block_world()
    model = ZSum(ZSumConfig(experts=("ease", "text-knn")))
    model.fit(world.task())
    model.weights = torch.tensor([1.0, 0.0])
    new = torch.cat([world.new_text(block).vectors for block in (2, 4)])
    return model.with_items(TextVectors(new, torch.ones(2, dtype=torch.bool))), world.split.num_items


def test_new_items_are_ranked_by_text_though_it_has_no_weight() -> None:
    model, first = without_text_weight()
    world = block_world()
    queries = Queries.of(world.split.known("test"), np.arange(world.split.num_users))
    scores, alone = model.scores(queries), [model.branch_scores(queries, name) for name in ("ease", "text-knn")]
    torch.testing.assert_close(scores[:, :60], alone[0][:, :60])  # items with clicks: the tuned weights
    torch.testing.assert_close(scores[:, 60:], (1 - TEXT_FLOOR) * alone[0][:, 60:] + TEXT_FLOOR * alone[1][:, 60:])
    second, fourth = (torch.from_numpy(world.user_block == block) for block in (2, 4))
    assert (scores[second, first] > scores[second, first + 1]).all()
    assert (scores[fourth, first] < scores[fourth, first + 1]).all()


def test_a_history_of_new_items_is_answered_by_text() -> None:
    model, first = without_text_weight()
    queries = Queries.anonymous(Histories.from_lists([[first], [0, 1], [first + 1]]))
    scores = model.scores(queries)
    text, clicks = model.branch_scores(queries, "text-knn"), model.branch_scores(queries, "ease")
    torch.testing.assert_close(scores[[0, 2]], text[[0, 2]])
    torch.testing.assert_close(scores[1, :60], clicks[1, :60])
    assert (block_world().item_block[scores[0, :first].topk(3).indices.numpy()] == 2).all()
    for row, item in ((0, 25), (1, 2), (1, first), (2, first)):
        query = Queries(queries.users[[row]], queries.histories.take(np.array([row])))
        explained = model.explain(query, item)
        assert explained.score == pytest.approx(float(scores[row, item]), abs=1e-5)
        assert sum(explained.shares.values()) == pytest.approx(explained.score)


def test_new_items_of_a_loaded_sum_are_still_new() -> None:
    model, _ = without_text_weight()
    other = ZSum(model.config)
    other.restore(model.state())
    queries = Queries.anonymous(Histories.from_lists([[3], [72]]))
    assert torch.equal(other.scores(queries), model.scores(queries))

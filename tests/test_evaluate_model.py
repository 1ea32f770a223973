"""Evaluation of a whole model: protocol, masking, strata, per-user values, and files."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from evaluation_toys import Oracle, random_split, table
from graphllmrec.data.split import Split
from graphllmrec.errors import EvaluationError
from graphllmrec.evaluation.evaluation import Evaluation, evaluate_model, protocol_line, validation_metric
from graphllmrec.evaluation.strata import activity_strata, degree_strata, popularity_strata

SPLIT = random_split()
MANY = random_split(num_targets=4, kind="user-ratio")


def looped_ndcg(evaluation: Evaluation, split: Split, k: int, relevant: set[int] | None = None) -> list[float]:
    """NDCG@k of every user who has a target in `relevant`, from the recommended lists, with loops."""
    targets, out = split.targets("test"), []
    for row, user in enumerate(evaluation.per_user["user"]):
        wanted = [item for item in targets[user].tolist() if relevant is None or item in relevant]
        if wanted:
            places = [place for place, item in enumerate(evaluation.lists[row, :k].tolist()) if item in wanted]
            ideal = sum(1 / np.log2(place + 2) for place in range(min(k, len(wanted))))
            out.append(sum(1 / np.log2(place + 2) for place in places) / ideal)
    return out


@pytest.mark.parametrize("split", [SPLIT, MANY], ids=["one target", "four targets"])
def test_overall_and_item_strata_equal_loops(split):
    evaluation = evaluate_model(Oracle(split, 1.0), split, ks=(5, 10))
    assert evaluation.overall["ndcg@10"] == pytest.approx(np.mean(looped_ndcg(evaluation, split, 10)))
    degree = split.item_degree()
    for label, low, high in (("0", 0, 0), ("1-3", 1, 3), ("4-10", 4, 10), ("11-50", 11, 50)):
        items = set(np.flatnonzero((degree >= low) & (degree <= high)).tolist())
        values = looped_ndcg(evaluation, split, 5, items)
        row = evaluation.strata["item_degree"][label]
        assert row["users"] == len(values)
        if values:
            assert row["ndcg@5"] == pytest.approx(np.mean(values))
            np.testing.assert_allclose(evaluation.within("item_degree", label)["ndcg@5"], values)
    assert evaluation.strata["item_degree"][">50"] == {"users": 0}


def test_known_items_are_masked_and_validation_items_only_at_test_time():
    evaluation = evaluate_model(Oracle(SPLIT, 1.0), SPLIT)
    known = SPLIT.known("test")
    for row, user in enumerate(evaluation.per_user["user"]):
        assert not np.intersect1d(evaluation.lists[row], known[user]).size
    assert evaluation.protocol["masked"] == "train and validation items"
    valid = evaluate_model(Oracle(SPLIT, 1.0), SPLIT, "valid")
    assert valid.protocol["masked"] == "train items"
    assert np.isin(SPLIT.targets("valid").items, valid.lists).any()
    ready_made = replace(SPLIT, kind="ready-made", valid_in_history=False)
    assert evaluate_model(Oracle(ready_made, 1.0), ready_made).protocol["masked"] == "train items"


def test_a_perfect_model_scores_one_and_hr_equals_recall_with_one_target():
    evaluation = evaluate_model(Oracle(SPLIT, 0.0), SPLIT)
    for metric in ("hr", "recall", "ndcg", "mrr", "map"):
        assert evaluation.overall[f"{metric}@10"] == 1.0
    noisy = evaluate_model(Oracle(SPLIT, 1.0), SPLIT)
    assert noisy.overall["hr@20"] == noisy.overall["recall@20"] < 1.0
    assert noisy.overall_ci["hr@20"][0] < noisy.overall["hr@20"] < noisy.overall_ci["hr@20"][1]


def test_users_without_a_target_are_left_out_and_repeated_targets_count_once():
    split = Split("user-ratio", 3, 6, table([0], [1], [2]), table([], [], []), table([3, 3, 4], [], [5]), True, False)
    evaluation = evaluate_model(Oracle(split, 0.0), split, ks=(2,))
    assert evaluation.per_user["user"].to_list() == [0, 2]
    assert evaluation.per_user["n_targets"].to_list() == [2, 1]
    assert evaluation.overall["recall@2"] == 1.0
    assert evaluation.protocol["masked"] == "train items"


def test_degree_strata_edges():
    degree = np.array([0, 1, 3, 4, 10, 11, 50, 51, 9_999])
    assert degree_strata(degree).to_list() == ["0", "1-3", "1-3", "4-10", "4-10", "11-50", "11-50", ">50", ">50"]


def test_head_items_hold_half_of_the_clicks():
    assert popularity_strata(np.array([1, 5, 2, 2])).to_list() == ["tail", "head", "tail", "tail"]
    assert popularity_strata(np.array([3, 3, 3, 3, 0])).to_list() == ["head"] * 4 + ["tail"]  # equals stay together
    assert popularity_strata(np.array([0, 0])).to_list() == ["tail", "tail"]


@pytest.mark.parametrize("degree", [[9, 7, 5, 4, 3, 2, 2, 1, 1, 0], [3, 3, 2, 2, 2], [1, 1, 1, 1, 0], [1]])
def test_head_items_hold_half_of_the_clicks_and_no_fewer_do(degree):
    """The border by a loop: the most clicked items one after the other, until they hold half."""
    held, border = 0, 0
    for clicks in sorted(degree, reverse=True):
        if held < sum(degree) / 2:
            held, border = held + clicks, clicks
    expected = ["head" if clicks >= border else "tail" for clicks in degree]
    assert popularity_strata(np.array(degree)).to_list() == expected
    shuffled = np.random.default_rng(0).permutation(len(degree))
    assert popularity_strata(np.array(degree)[shuffled]).to_list() == [expected[item] for item in shuffled]


def test_activity_strata_are_quantiles_without_gaps():
    labels, names = activity_strata(np.array([1, 2, 3, 4, 5, 6, 7, 80]))
    assert names == ["1-2", "3-4", "5-6", ">6"]
    assert labels.to_list() == ["1-2", "1-2", "3-4", "3-4", "5-6", "5-6", ">6", ">6"]
    assert activity_strata(np.array([4, 4, 4]))[1] == ["4"]
    assert activity_strata(np.array([2, 2, 2, 2, 9]))[1] == ["2", ">2"]


def test_activity_strata_partition_the_users():
    evaluation = evaluate_model(Oracle(SPLIT, 1.0), SPLIT)
    rows = evaluation.strata["user_activity"]
    assert sum(row["users"] for row in rows.values()) == SPLIT.num_users
    whole = sum(row["users"] * row["ndcg@20"] for row in rows.values()) / SPLIT.num_users
    assert whole == pytest.approx(evaluation.overall["ndcg@20"])
    with pytest.raises(EvaluationError, match="unknown kind of stratum 'genre'; known: item_degree"):
        evaluation.within("genre", "drama")


def test_validation_metric_equals_the_full_evaluation():
    model = Oracle(SPLIT, 1.0)
    valid = evaluate_model(model, SPLIT, "valid")
    assert validation_metric(model, SPLIT) == pytest.approx(valid.overall["ndcg@20"])
    assert validation_metric(model, SPLIT, "hr@10") == pytest.approx(valid.overall["hr@10"])
    some = np.array([7, 3, 3])
    expected = valid.per_user.filter(pl.col("user").is_in([3, 7]))["ndcg@20"].mean()
    assert validation_metric(model, SPLIT, users=some) == pytest.approx(expected)


def test_errors_say_what_is_wrong():
    with pytest.raises(EvaluationError, match="unknown metric 'auc@20'"):
        validation_metric(Oracle(SPLIT, 1.0), SPLIT, "auc@20")
    empty = replace(SPLIT, valid=table(*[[]] * SPLIT.num_users))
    with pytest.raises(EvaluationError, match="no user has a target in the valid part of this leave-last-out split"):
        validation_metric(Oracle(SPLIT, 1.0), empty)
    broken = Oracle(SPLIT, 1.0, name="broken")
    broken.matrix[5] = torch.nan
    with pytest.raises(EvaluationError, match="broken returned NaN scores for user row 5"):
        evaluate_model(broken, SPLIT)
    for wrong in ((), (0, 10)):
        with pytest.raises(EvaluationError, match="cut-offs must be at least 1; got ks ="):
            evaluate_model(Oracle(SPLIT, 1.0), SPLIT, ks=wrong)
    with pytest.raises(EvaluationError, match="oracle scored 40 items; the catalogue has 41"):
        evaluate_model(Oracle(SPLIT, 1.0), replace(SPLIT, num_items=41))


def test_written_and_read_back(tmp_path):
    evaluation = evaluate_model(Oracle(MANY, 1.0), MANY, ks=(5, 50))  # 50 places, 40 items: lists with empty places
    evaluation.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "metrics-test.json",
        "per-user-test.parquet",
        "targets-test.parquet",
    }
    read = Evaluation.read(tmp_path)
    assert read.to_json() == evaluation.to_json() == json.loads((tmp_path / "metrics-test.json").read_text())
    assert read.per_user.equals(evaluation.per_user)
    assert read.targets.equals(evaluation.targets)
    np.testing.assert_array_equal(read.lists, evaluation.lists)
    with pytest.raises(EvaluationError, match="no such evaluation"):
        Evaluation.read(tmp_path, "valid")


def test_protocol_is_printed_in_one_line():
    line = protocol_line(evaluate_model(Oracle(SPLIT, 1.0), SPLIT).protocol)
    assert line == (
        "leave-last-out split, test part · 60 users, 60 targets · "
        "all 40 items ranked, train and validation items masked"
    )

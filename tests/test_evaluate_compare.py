"""Paired comparisons: right when there is a difference, silent when there is none, corrected when there are many."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from evaluation_toys import Oracle, random_split
from graphllmrec.errors import EvaluationError
from graphllmrec.evaluation.compare import bootstrap_means, compare, compare_many, compare_values, flipped_means, holm
from graphllmrec.evaluation.evaluation import evaluate_model
from graphllmrec.rng import rng

SPLIT = random_split(num_users=150)
GOOD, BAD = (
    evaluate_model(Oracle(SPLIT, noise, seed, name), SPLIT) for name, noise, seed in (("good", 0.3, 1), ("bad", 1.0, 2))
)


def test_a_better_model_is_found_better():
    found = compare(GOOD, BAD, "ndcg@10", rounds=2_000)
    assert (found.a, found.b, found.users) == ("good", "bad", 150)
    assert found.difference == pytest.approx(GOOD.overall["ndcg@10"] - BAD.overall["ndcg@10"])
    assert found.relative == pytest.approx(found.difference / BAD.overall["ndcg@10"])
    assert 0 < found.ci[0] < found.difference < found.ci[1]
    assert found.p == 1 / 2_001  # the smallest p that 2,000 rounds can show
    swapped = compare(BAD, GOOD, "ndcg@10", rounds=2_000)
    assert swapped.difference == -found.difference
    assert swapped.p == found.p


@pytest.mark.parametrize("sign", [1, -1], ids=["better", "worse"])
def test_the_bootstrap_p_value_counts_resamples_on_the_other_side_of_zero(sign):
    assert compare(GOOD, BAD, rounds=500).p_bootstrap == 2 / 501
    random = np.random.default_rng(3)
    a, b = sign * random.normal(0.1, 1, 60), np.zeros(60)
    found = compare_values(a, b, metric="ndcg@20", names=("a", "b"), rounds=400, seed=5)
    means = bootstrap_means(a - b, 400, rng(5, "bootstrap"))
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    assert found.p_bootstrap == pytest.approx(2 * (beyond + 1) / 401)
    assert 2 / 401 < found.p_bootstrap < 1


def test_a_model_does_not_differ_from_itself():
    found = compare(GOOD, GOOD, rounds=100)
    assert (found.difference, found.ci, found.p, found.p_bootstrap) == (0.0, (0.0, 0.0), 1.0, 1.0)


def test_strata_are_compared_on_their_own_users():
    found = compare(GOOD, BAD, rounds=200)
    for kind, rows in found.strata.items():
        for name, row in rows.items():
            assert row.users == GOOD.strata[kind][name]["users"] > 0
            assert row.mean_a == pytest.approx(GOOD.strata[kind][name]["ndcg@20"])
            assert row.mean_b == pytest.approx(BAD.strata[kind][name]["ndcg@20"])
    empty = {name for name, row in GOOD.strata["item_degree"].items() if not row["users"]}
    assert set(found.strata["item_degree"]) == set(GOOD.strata["item_degree"]) - empty
    assert json.loads(json.dumps(found.to_json()))["strata"]["item_popularity"]["tail"]["metric"] == "ndcg@20"


def test_same_seed_same_answer():
    assert compare(GOOD, BAD, rounds=300, seed=4) == compare(GOOD, BAD, rounds=300, seed=4)


@pytest.mark.parametrize("discrete", [True, False], ids=["few distinct values", "all distinct"])
@pytest.mark.parametrize("resample", [bootstrap_means, flipped_means])
def test_resampled_means_have_the_spread_that_theory_gives(resample, discrete):
    random = np.random.default_rng(0)
    values = random.choice([-0.5, 0.0, 0.3, 1.0], 400) if discrete else random.standard_normal(400) + 0.2
    means = resample(values, 4_000, random)
    centre, spread = (
        (values.mean(), values.std()) if resample is bootstrap_means else (0.0, np.sqrt((values**2).mean()))
    )
    assert means.shape == (4_000,)
    assert means.mean() == pytest.approx(centre, abs=5 * spread / np.sqrt(400 * 4_000))
    assert means.std() == pytest.approx(spread / np.sqrt(400), rel=0.05)


@pytest.mark.parametrize("numbers", [1, 15, 1_000_000], ids=["row by row", "many blocks", "one block"])
@pytest.mark.parametrize(
    ("resample", "shares"),
    [(bootstrap_means, {1.0: 0.25, 2.0: 0.5, 3.0: 0.25}), (flipped_means, dict.fromkeys((-2.0, -1.0, 1.0, 2.0), 0.25))],
)
def test_all_resamples_of_two_users_come_as_often_as_they_should(resample, shares, numbers, monkeypatch):
    monkeypatch.setitem(resample.__globals__, "CHUNK", numbers)
    means = resample(np.array([1.0, 3.0]), 4_000, np.random.default_rng(2))
    values, counts = np.unique(means, return_counts=True)
    assert dict(zip(values.tolist(), (counts / 4_000).tolist(), strict=True)) == pytest.approx(shares, abs=0.03)
    assert len(means) == 4_000


@pytest.mark.parametrize("discrete", [True, False], ids=["few distinct values", "all distinct"])
def test_p_values_are_uniform_when_there_is_no_difference(discrete):
    random = np.random.default_rng(1)
    p_values = []
    for trial in range(300):
        gain = random.choice([0.0, 0.25, 0.5, 1.0], 120) if discrete else random.random(120)
        sign = random.choice([-1.0, 1.0], 120)
        differences = gain * sign
        a, b = (
            replace(GOOD, per_user=pl.DataFrame({"ndcg@20": values}))
            for values in (np.maximum(differences, 0), np.maximum(-differences, 0))
        )
        p_values.append(compare(a, b, rounds=400, seed=trial, strata=False).p)
    ordered = np.sort(p_values)
    distance = np.abs(ordered - np.arange(1, 301) / 300).max()  # Kolmogorov-Smirnov; 1.63 / sqrt(n) is the 1 % point
    assert distance < 1.63 / np.sqrt(300)
    assert 0.02 <= np.mean(ordered < 0.05) <= 0.09


def test_holm_against_a_computation_by_hand():
    # sorted .01 .02 .03 .04: x4 = .04, x3 = .06, x2 = .06, x1 = .04 -> at least the one before: .06
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.9, 0.8]) == [1.0, 1.0]  # 1.6 is no probability
    assert holm([]) == []


def test_many_models_are_held_against_one_baseline():
    twin = evaluate_model(Oracle(SPLIT, 1.0, 3, "twin"), SPLIT)
    found = compare_many({"good": GOOD, "bad": BAD, "twin": twin}, "bad", rounds=500, strata=True)
    assert list(found) == ["good", "twin"]
    assert [found[name].p_holm for name in found] == holm([found[name].p for name in found])
    assert found["good"].p_holm == 2 * found["good"].p
    assert found["twin"].p_holm > 0.05
    tails = [found[name].strata["item_popularity"]["tail"] for name in found]
    assert [row.p_holm for row in tails] == holm([row.p for row in tails])
    assert compare_many({"good": GOOD, "bad": BAD}, "bad", rounds=100)["good"].strata == {}  # only where asked for
    assert compare_many({"bad": BAD}, "bad") == {}
    with pytest.raises(EvaluationError, match="no evaluation named 'ease' to compare with; there are: good, bad"):
        compare_many({"good": GOOD, "bad": BAD}, "ease")


def test_evaluations_of_different_things_are_not_compared():
    valid = evaluate_model(Oracle(SPLIT, 1.0), SPLIT, "valid")
    with pytest.raises(
        EvaluationError, match=r"cannot be compared: users, targets, masked items or decoys differ(.|\n)*valid part"
    ):
        compare(GOOD, valid)
    other = random_split(num_users=150, seed=9)
    with pytest.raises(EvaluationError, match="cannot be compared"):
        compare(GOOD, evaluate_model(Oracle(other, 1.0), other))
    with pytest.raises(EvaluationError, match=r"good was not evaluated with 'ndcg@50' per user; it has: hr@10"):
        compare(GOOD, BAD, "ndcg@50")
    with pytest.raises(EvaluationError, match="coverage@10"):
        compare(GOOD, BAD, "coverage@10")


@pytest.mark.parametrize(
    ("mine", "yours", "hint"),
    [
        (
            {"kind": "user-ratio", "seed": 1},
            {"kind": "user-ratio", "seed": 2},
            r"drawn with seeds 1 and 2; use one seed",
        ),
        (
            {"kind": "x", "share": 0.1},
            {"kind": "x", "share": 0.2},
            r"split differ \(share: 0\.1 and 0\.2\); use the same",
        ),
        ({"kind": "x"}, {"kind": "x", "share": 0.2}, r"split differ \(share: None and 0\.2\); use the same"),
        ({"kind": "x"}, {"kind": "x"}, r"hint: evaluate both on the same data folder, split and part"),
    ],
)
def test_the_hint_names_the_settings_in_which_two_splits_differ(mine, yours, hint):
    a, b = (
        replace(GOOD, protocol=GOOD.protocol | {"fingerprint": str(place), "split_settings": settings})
        for place, settings in enumerate((mine, yours))
    )
    with pytest.raises(EvaluationError, match=hint):
        compare(a, b)

"""Tables for a terminal: complete, within 80 columns, protocol underneath."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console, RenderableType

from evaluation_toys import Oracle, Silent, random_split
from graphllmrec.evaluation.compare import compare, compare_many
from graphllmrec.evaluation.evaluation import evaluate_model
from graphllmrec.report.console import comparison_table, evaluation_table, models_table
from graphllmrec.report.format import p_text

SPLIT = random_split(num_users=150)
MODELS = {
    name: evaluate_model(Oracle(SPLIT, noise, seed, name), SPLIT)
    for name, noise, seed in (("hybrid-static", 0.3, 1), ("popularity", 1.0, 2))
}


def printed(table: RenderableType) -> str:
    screen = io.StringIO()
    Console(width=80, file=screen).print(table)
    return screen.getvalue()


def test_one_evaluation_shows_values_intervals_strata_and_protocol():
    evaluation = MODELS["popularity"]
    text = printed(evaluation_table(evaluation))
    low, high = evaluation.overall_ci["ndcg@10"]
    assert f"{evaluation.overall['ndcg@10']:.4f}  {low:.4f}-{high:.4f}" in text
    assert "hr = recall" in text  # one target per user
    assert "4-10" in text
    assert f"{evaluation.strata['item_popularity']['tail']['recall@20']:.4f}" in text
    assert "leave-last-out split, test part · 150 users" in text


def test_metrics_with_several_targets_are_not_merged():
    split = random_split(num_targets=3, kind="user-ratio")
    text = printed(evaluation_table(evaluate_model(Oracle(split, 1.0), split)))
    assert "hr = recall" not in text
    assert "\nmap " in text


def test_many_models_with_significance_fit_a_terminal():
    text = printed(models_table(MODELS, compare_many(MODELS, "popularity", rounds=2_000)))
    assert "…" not in text  # nothing cut off
    assert "baseline" in text
    assert "p<.001" in text
    assert f"{MODELS['hybrid-static'].overall['ndcg@20']:.4f}".removeprefix("0") in text


def test_a_comparison_shows_every_stratum_and_fits_a_terminal():
    text = printed(comparison_table(compare(*MODELS.values(), rounds=500)))
    assert "ndcg@20: hybrid-static against popularity" in text
    assert "clicks 4-10" in text
    assert "items tail" in text
    assert all(line.count("…") <= 1 for line in text.splitlines())  # one … separates the ends of the interval


def test_where_every_model_has_0_nothing_is_bold():
    evaluations = {name: evaluate_model(Oracle(SPLIT, 1.0, 2, name), SPLIT) for name in ("a", "b")}
    screen = io.StringIO()
    Console(width=80, file=screen, force_terminal=True, color_system="standard").print(models_table(evaluations))
    rows = [line for line in screen.getvalue().splitlines() if line.startswith(("a ", "b "))]
    assert len(rows) == 2
    assert not any("\x1b[1m" in row for row in rows)


@pytest.fixture(scope="module")
def silent():
    """Two models that find nothing, and one that does."""
    split = random_split(num_users=80, num_items=200)
    models = (Silent(split, "popularity"), Silent(split, "ease"), Oracle(split, 0.3, name="text-knn"))
    return {model.name: evaluate_model(model, split) for model in models}


def test_between_models_without_a_hit_there_is_nothing_to_test(silent):
    popularity, ease, _ = silent.values()
    text = printed(comparison_table(compare(ease, popularity, rounds=2_000)))
    assert "both 0" in text
    assert not re.search(r"[+-]\.0000|1\.000", text)  # no difference, no interval, no p
    text = printed(models_table(silent, compare_many(silent, "popularity", rounds=2_000)))
    assert re.search(r"both 0$", text, flags=re.MULTILINE)
    assert re.search(r"from 0 p<\.001$", text, flags=re.MULTILINE)
    assert "0.0000-0.0000" not in printed(evaluation_table(popularity))


def test_equal_models_are_called_equal():
    text = printed(comparison_table(compare(MODELS["popularity"], MODELS["popularity"], rounds=200)))
    assert "equal" in text
    assert not re.search(r"[+-]\.0000|0\.0%|1\.000", text)


def test_the_note_names_the_only_stratum():
    targets = random_split(num_users=40)
    only = {"a": evaluate_model(Oracle(targets, 1.0), targets)}
    rows = only["a"].strata["item_degree"]
    for name, row in rows.items():
        row["users"] = row["users"] if name == "1-3" else 0
    assert "column 1-3: ndcg@20" in printed(models_table(only))


def test_a_long_name_takes_two_lines_before_a_figure_is_cut():
    name = "amazon-industrial-lightgcn-softmax-with-a-long-name"
    text = printed(models_table({name: MODELS["popularity"], "b": MODELS["hybrid-static"]}))
    assert "…" not in text
    assert f"{MODELS['popularity'].overall['ndcg@20']:.4f}".removeprefix("0") in text


@pytest.mark.parametrize(("p", "text"), [(0.0002, "p<.001"), (0.0342, "p .034"), (1.0, "p 1.000")])
def test_p_values_as_text(p, text):
    assert p_text(p) == text

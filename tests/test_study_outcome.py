"""The figures of a study against sums written out by hand, and what the tables say about them."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from front_door_world import encode_first_word, write_world
from graphllmrec.evaluation.compare import compare, compare_values, holm
from graphllmrec.evaluation.evaluation import Evaluation
from graphllmrec.report.plots.evaluation import Difference, forest_figure
from graphllmrec.report.study_report import study_markdown, verdict, write_study
from graphllmrec.study import run_study
from graphllmrec.study.display import remaining
from graphllmrec.study.outcome import _mean_by_user

LIGHT = {"model.epochs": 3, "model.embedding_dim": 8, "model.batch_size": 64}
STUDY = {
    "title": "Books <&>",
    "seeds": [0, 1],
    "metric": "ndcg@10",
    "metrics": ["recall@20"],
    "baseline": "ease",
    "models": [
        {"recipe": "ease", "seeds": [0]},
        {"recipe": "lightgcn-fast", "name": "graph", "set": LIGHT},
        {"recipe": "popularity"},
    ],
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A finished study on two data sets: its folder and its outcome."""
    folder = tmp_path_factory.mktemp("study")
    data = [write_world(folder / "books"), write_world(folder / "films", users=24, seed=3)]
    return folder / "out", run_study(STUDY, data, folder / "out")


def evaluation(out, data, model, seed):
    return Evaluation.read(out / "fits" / data / model / "none" / f"seed-{seed}" / "run")


def test_a_mean_over_users_of_means_over_seeds_with_its_interval(found):
    out, outcome = found
    for data in ("books", "films"):
        tables = [evaluation(out, data, "graph", seed).per_user for seed in (0, 1)]
        values = []
        for user in tables[0]["user"]:
            values.append(sum(table.filter(pl.col("user") == user)["ndcg@10"][0] for table in tables) / 2)
        mean = sum(values) / len(values)
        half = 1.959964 * (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5 / len(values) ** 0.5
        [entry] = [e for e in outcome["entries"] if (e["data"], e["label"]) == (data, "graph")]
        row = entry["test"]["ndcg@10"]
        assert row["mean"] == pytest.approx(mean, abs=1e-12)
        assert row["ci"] == pytest.approx([max(mean - half, 0), min(mean + half, 1)], abs=1e-12)
        by_seed = [float(table["ndcg@10"].mean()) for table in tables]
        assert list(row["by_seed"].values()) == pytest.approx(by_seed)
        assert row["std"] == pytest.approx(abs(by_seed[0] - by_seed[1]) / 2**0.5)
        assert entry["users"] == len(values)


def test_strata_are_averaged_over_seeds_as_well(found):
    out, outcome = found
    tables = [evaluation(out, "books", "graph", seed).within("item_degree", "4-10") for seed in (0, 1)]
    expected = np.mean([table["ndcg@10"].mean() for table in tables])
    [entry] = [e for e in outcome["entries"] if (e["data"], e["label"]) == ("books", "graph")]
    assert entry["strata"]["item_degree"]["4-10"]["ndcg@10"]["mean"] == pytest.approx(expected)
    assert entry["strata"]["item_degree"]["4-10"]["users"] == len(tables[0])


def test_comparisons_are_paired_over_users_and_corrected_over_the_whole_study(found):
    out, outcome = found
    rows = [row for row in outcome["comparisons"] if row["metric"] == "ndcg@10"]
    assert [(row["data"], row["a"], row["b"]) for row in rows] == [
        (data, name, "ease") for data in ("books", "films") for name in ("graph", "popularity")
    ]
    assert [row["p_holm"] for row in rows] == holm([row["p"] for row in rows])
    for data, row in (("books", rows[0]), ("films", rows[2])):
        graph = [evaluation(out, data, "graph", seed).per_user["ndcg@10"].to_numpy() for seed in (0, 1)]
        ease = evaluation(out, data, "ease", 0).per_user["ndcg@10"].to_numpy()  # one seed stands for all
        expected = compare_values((graph[0] + graph[1]) / 2, ease, metric="ndcg@10", names=("graph", "ease"))
        assert row["difference"] == pytest.approx(expected.difference)
        assert (row["p"], tuple(row["ci"])) == (expected.p, pytest.approx(expected.ci))
        assert row["relative_ci"] == pytest.approx([end / ease.mean() for end in expected.ci])
    inside = [row["strata"]["item_degree"]["4-10"] for row in rows]
    assert [row["p_holm"] for row in inside] == holm([row["p"] for row in inside])
    assert all(row["strata"] == {} for row in outcome["comparisons"] if row["metric"] == "recall@20")


def test_comparing_values_is_comparing_evaluations(found):
    out, _ = found
    a, b = (evaluation(out, "books", name, 0) for name in ("graph", "ease"))
    values = [entry.per_user["ndcg@10"].to_numpy() for entry in (a, b)]
    assert compare_values(*values, metric="ndcg@10", names=(a.name, b.name)) == compare(a, b, "ndcg@10", strata=False)


def test_where_the_split_follows_the_seed_models_are_compared_on_the_seeds_they_share(tmp_path):
    data = write_world(tmp_path / "books")
    models = [{"recipe": "ease", "seeds": [0]}, {"recipe": "popularity"}, {"recipe": "item-knn", "seeds": [7]}]
    study = STUDY | {"set": {"data.split": "user-ratio"}, "models": models}
    found = run_study(study, [data], tmp_path / "out")
    assert len(found["data"]["books"]["questions"]) == 3
    [row] = [row for row in found["comparisons"] if row["metric"] == "ndcg@10"]
    a, b = (evaluation(tmp_path / "out", "books", name, 0).overall["ndcg@10"] for name in ("popularity", "ease"))
    assert (row["a"], row["difference"]) == ("popularity", pytest.approx(a - b))
    assert found["missing"] == [{"data": "books", "a": "item-knn", "b": "ease"}]
    assert "| item-knn | ease | missing |" in study_markdown(found)


def test_means_by_user_where_tables_hold_different_users():
    tables = [pl.DataFrame({"user": [4, 1], "m": [1.0, 0.0]}), pl.DataFrame({"user": [2, 4], "m": [0.25, 0.5]})]
    assert _mean_by_user(tables).rows() == [(1, 0.0), (2, 0.25), (4, 0.75)]
    assert _mean_by_user(tables[:1]).rows() == [(1, 0.0), (4, 1.0)]


# tables


def test_markdown_has_a_table_per_data_set_with_figures_intervals_and_p(found):
    text = study_markdown(found[1])
    assert text.startswith("# Books <&>\n")
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## books", "## films"]
    assert "| model | ndcg@10 | 95 % interval | ± seeds | recall@20 | validation | vs ease | p | fit, s |" in text
    assert len(re.findall(r"^\| graph \| 0\.\d{4} \| 0\.\d{4}–[01]\.\d{4} \| ±0\.\d{4} \| ", text, re.MULTILINE)) == 2
    assert "all 48 items ranked" in text
    assert "Holm-corrected over all 4 comparisons" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_page_is_self_contained_and_escaped(found):
    page = (found[0] / "index.html").read_text()
    assert "<title>Books &lt;&amp;&gt;</title>" in page
    assert page.count("<svg") == 4  # a forest plot and bars for each data set
    for forbidden in ("<script", "http://", "https://", "src=", "NaN", "None"):
        assert forbidden not in page
    assert json.loads((found[0] / "study.json").read_text()) == json.loads(json.dumps(found[1]))


def test_the_tables_stand_with_nothing_in_them(found, tmp_path):
    outcome = copy.deepcopy(found[1])
    for entry in outcome["entries"]:
        for key in ("test", "valid", "strata", "fit_seconds", "users"):
            del entry[key]
        entry["fits"] = [{"seed": 0, "state": "failed", "error": "no <luck>\nat all"}]
    outcome |= {"comparisons": [], "missing": [{"data": "books", "a": "graph", "b": "ease"}]}
    outcome["data"]["films"]["protocol"] = {}
    assert "books · graph · seed 0: no <luck>\n" in study_markdown(outcome)
    write_study(tmp_path, outcome)
    page = (tmp_path / "index.html").read_text()
    assert "no &lt;luck&gt;" in page
    assert "films: no model has figures." in page


def test_a_forest_plot_has_a_line_per_comparison_and_says_when_the_second_model_has_nothing():
    rows = [
        Difference("a vs b", 0.1, (0.02, 0.18), 0.1, 0.01),
        Difference("c vs b", -0.1, (-0.3, 0.1), -0.1, 0.4),
        Difference("d vs e", None, None, 0.1, 0.001),
        Difference("f vs e", None, None, 0.0, 1.0),
    ]
    drawn = forest_figure(rows, "title")
    assert [drawn.count(f">{row.name}</text>") for row in rows] == [1, 1, 1, 1]
    assert len(set(re.findall(r"<use [^>]*y=\"([\d.]+)\"[^>]*style=\"fill: var\(--(?:good|muted)\)", drawn))) >= 2
    assert ">+10.0 %  p .010<" in drawn
    assert "var(--bad)" not in drawn
    assert ">from 0  p .001<" in drawn
    assert "both 0" in drawn
    assert "p 1.000" not in drawn


def test_a_seed_that_changes_nothing_is_told_from_one_that_hardly_does(found, tmp_path):
    rows = re.findall(r"^\| popularity \| .* \| (±\S+) \|", study_markdown(found[1]), re.MULTILINE)
    assert rows == ["±0", "±0"]


def with_trials(outcome, **trials):
    """The outcome as if these models had been tuned, and `graph` were first."""
    outcome = copy.deepcopy(outcome)
    for entry in outcome["entries"]:
        entry["trials"] = trials.get(entry["label"], 0)
        entry["test"]["ndcg@10"]["mean"] = 0.9 if entry["label"] == "graph" else 0.5
    return outcome


def test_a_difference_of_models_tuned_unequally_is_marked_and_never_headlined(found, tmp_path):
    outcome = with_trials(found[1], graph=5)
    said = verdict(outcome, "books")
    assert said.startswith("books: graph has the highest ndcg@10, 0.9000 (")
    assert "tuned with 5 trials; ease, the baseline, with no trials." in said
    assert not re.search(r"first|[+−]\d|%|Holm|significant", said.replace("95 % interval", ""))
    text = study_markdown(outcome)
    assert "† The two models were tuned with unequal numbers of trials" in text
    assert re.search(r"^\| graph \| .*? % † \| ", text, re.MULTILINE)
    assert not re.search(r"^\| popularity \| .*†", text, re.MULTILINE)  # tuned alike: with no trial
    assert "| vs ease | p | trials | fit, s |" in text
    write_study(tmp_path, outcome)
    page = (tmp_path / "index.html").read_text()
    assert page.index('class="verdict"') < page.index('class="protocol"')
    assert "† and grey: tuned with unequal numbers of trials." in page
    for cell in re.findall(r'<span class="(\w+)">[^<]*†</span>', page):
        assert cell == "same"


def test_models_tuned_alike_are_headlined_and_not_marked(found):
    for outcome in (with_trials(found[1]), with_trials(found[1], graph=5, ease=5, popularity=5)):
        assert verdict(outcome, "books").startswith("books: graph is first with ndcg@10 0.9000 (")
        assert "against ease (" in verdict(outcome, "books")
        assert "†" not in study_markdown(outcome)


def test_a_study_in_which_nothing_is_found_names_no_winner(found):
    outcome = copy.deepcopy(found[1])
    for entry in outcome["entries"]:
        entry["test"]["ndcg@10"]["mean"] = 0.0
    assert verdict(outcome, "books") == "books: ndcg@10 is 0 for every model."


def test_unequal_differences_are_drawn_grey():
    row = Difference("a vs b", 0.1, (0.02, 0.18), 0.1, 0.01)
    assert "var(--good)" in forest_figure([row], "t")
    drawn = forest_figure([replace(row, unequal=True)], "t")
    assert "var(--good)" not in drawn
    assert ">+10.0 % †  p .010<" in drawn


def test_a_script_in_any_text_of_a_study_is_escaped(found, tmp_path):
    bad = "<script>alert(1)</script>"
    text = json.dumps(found[1]).replace('"graph"', json.dumps(bad)).replace('"ease"', json.dumps(bad + " 2"))
    outcome = json.loads(text.replace('"books"', json.dumps(bad + " 3"))) | {"title": bad, "notes": bad}
    write_study(tmp_path, outcome)
    page = (tmp_path / "index.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 20


def test_the_time_left_is_estimated_from_fits_of_the_same_kind_then_model_then_any():
    times = {("books", "ease"): [1.0, 3.0], ("books", "graph"): [10.0]}
    assert remaining([("books", "ease")], times) == 2.0
    assert remaining([("films", "graph"), ("books", "graph")], times) == 20.0
    assert remaining([("books", "new")], times) == pytest.approx(14 / 3)
    assert remaining([("books", "ease")], {}) is None


@pytest.fixture(autouse=True)
def no_language_model(monkeypatch):
    monkeypatch.setattr("graphllmrec.text.prepare.encode_items", encode_first_word)


def test_a_stratum_that_one_model_lacks_is_an_empty_cell(found, tmp_path):
    outcome = copy.deepcopy(found[1])
    [entry] = [e for e in outcome["entries"] if (e["data"], e["label"]) == ("books", "graph")]
    first = next(iter(outcome["entries"][0]["strata"]["item_degree"]))
    del entry["strata"]["item_degree"][first]
    assert re.search(r"^\| graph \|  \| 0\.\d{4}", study_markdown(outcome), re.MULTILINE)
    write_study(tmp_path, outcome)
    assert "NaN" not in (tmp_path / "index.html").read_text()

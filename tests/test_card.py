"""The model card: complete, escaped, honest about what it does not know."""

from __future__ import annotations

import json
import re
import shutil
import tomllib

import polars as pl
import pytest
from typer.testing import CliRunner

from front_door_world import write_world
from graphllmrec import Recommender, compare, evaluate, load_data
from graphllmrec.cli import app
from graphllmrec.data import demo_data
from graphllmrec.errors import EvaluationError
from graphllmrec.recipe import load_recipe
from graphllmrec.report.card import stated_licence
from graphllmrec.report.format import markdown_text


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with data and two finished runs on it."""
    folder = tmp_path_factory.mktemp("card")
    data = write_world(folder / "books")
    (data / "LICENSE").write_text("\nCC BY 4.0\n\nCreative Commons …\n", encoding="utf-8")
    for name in ("popularity", "item-knn"):
        Recommender.from_recipe(name, evaluate={"ks": [5, 20]}).fit(load_data(data), out=folder / name)
    return folder


def call(*arguments, code=0):
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert found.exit_code == code, found.output
    return found.stdout


def section(text, heading):
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]


def test_a_card_has_data_protocol_figures_strata_limits_recipe_and_versions(runs):
    recommender = Recommender.load(runs / "item-knn")
    text, found = recommender.card(), evaluate(recommender)
    assert text.startswith("# Model card: item-knn on books\n")
    data = section(text, "Data")
    for row in (
        "| users | 40 |",
        "| items | 48, of which ",
        "| interactions | 320 (",
        "| licence | LICENSE: CC BY 4.0 |",
    ):
        assert row in data
    assert "timestamp, 2020-09-13 to 2020-09-20" in data
    assert "leave-last-out: 240 train, 40 validation, 40 test" in data
    assert "all 48 items ranked, train and validation items masked" in section(text, "How it was measured")
    assert found.protocol["fingerprint"] in text
    figures = section(text, "Figures")
    low, high = found.overall_ci["ndcg@20"]
    assert f"{found.overall['ndcg@20']:.4f} ({low:.4f}–{high:.4f})" in figures
    assert "| metric | @5 | @20 |" in figures
    for kind in found.strata.values():
        for row in kind.values():
            assert not row["users"] or f"| {row['users']} | {row['ndcg@20']:.4f} |" in figures
    [recipe] = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert load_recipe(tomllib.loads(recipe)) == recommender.recipe
    assert re.search(r"Versions: .*graphllmrec \d.*torch \d", text)
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_the_card_of_a_run_tests_it_against_baselines(runs):
    text = call("card", runs / "item-knn", "--baseline", runs / "popularity")
    a, b = (evaluate(Recommender.load(runs / name)) for name in ("item-knn", "popularity"))
    row = compare(a, b, "ndcg@20")
    assert f"| popularity | {row.mean_b:.4f} | +{row.difference:.4f} |" in section(text, "Against baselines")
    assert "Holm-corrected over 1 comparison;" in text
    assert "No baseline is given" not in text
    assert "The fit took" in text
    assert "Against baselines" not in call("card", runs / "item-knn")
    assert "No baseline is given" in call("card", runs / "item-knn")


def test_the_card_as_json_and_as_a_file(runs, tmp_path):
    out = tmp_path / "cards" / "card.md"
    printed = call("card", runs / "item-knn", "--baseline", runs / "popularity", "--out", out, "--json")
    values = json.loads(printed.splitlines()[-1])
    assert values["card"] == str(out)
    assert values["data"]["licence"] == "LICENSE: CC BY 4.0"
    assert values["comparisons"][0]["b"] == "popularity"
    assert values["overall"]["ndcg@20"] == pytest.approx(
        evaluate(Recommender.load(runs / "item-knn")).overall["ndcg@20"]
    )
    assert set(values["versions"]) >= {"graphllmrec", "torch"}
    assert out.read_text(encoding="utf-8").startswith("# Model card: item-knn on books")
    assert "Wrote the card of" in call("card", runs / "item-knn", "--out", out)


def test_a_run_that_was_not_evaluated_is_evaluated(runs, tmp_path):
    shutil.copytree(runs / "popularity", tmp_path / "run")
    for path in (tmp_path / "run").glob("*-test*"):
        path.unlink()
    assert "**ndcg@20 0." in call("card", tmp_path / "run")
    assert (tmp_path / "run" / "metrics-test.json").is_file()


def test_baselines_on_other_users_are_refused(runs, tmp_path):
    other = Recommender.from_recipe("popularity").fit(write_world(tmp_path / "films", users=24))
    with pytest.raises(EvaluationError, match="cannot be compared"):
        Recommender.load(runs / "item-knn").card(baselines={"other": evaluate(other)})


def test_nothing_of_the_data_is_markup(tmp_path):
    folder = write_world(tmp_path / "books")
    bad = "<script>alert(1)</script> [x](javascript:0) | `y` *z* \x1b[31m"
    items = pl.read_csv(folder / "items.csv").with_columns(pl.lit("x").alias("<b>a|b"))
    items.write_csv(folder / "items.csv")
    recommender = Recommender.from_recipe("popularity").fit(load_data(folder, name=bad))
    text = recommender.card(data_licence=bad, baselines={bad: evaluate(recommender)})
    prose = text.split("## How to reproduce it")[0]
    assert "\x1b" not in text
    assert not re.search(
        r"(?<!\\)[<\[`]",
        prose.replace("`" + evaluate(recommender).protocol["fingerprint"] + "`", "").replace("<.001", ""),
    )
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_a_text_of_the_data_cannot_begin_a_heading_or_a_list():
    assert markdown_text("# a\n- b") == r"\# a - b"
    assert markdown_text("- b & <c>") == r"\- b \& \<c\>"


def test_notes_and_repeats_of_the_reading_are_told(tmp_path):
    folder = write_world(tmp_path / "books")
    table = pl.read_csv(folder / "interactions.csv")
    pl.concat([table, table.head(3)]).with_columns(position=pl.lit(1), timestamp=pl.lit(1_700_000_000)).write_csv(
        folder / "interactions.csv"
    )
    data = load_data(folder)
    Recommender.from_recipe("popularity").fit(data, out=tmp_path / "run")
    text = section(call("card", tmp_path / "run"), "Data")  # also of a run that was saved
    assert "| repeated pairs left out | 3 |" in text
    assert "| users with their newest two at one time | 100.0%, sorted by a hash of the ids |" in text
    assert data.notes
    assert all(f"- {markdown_text(note)}" in text for note in data.notes)


# limits


def test_the_limits_follow_from_the_split_the_strata_and_the_model(runs):
    said = section(Recommender.load(runs / "popularity").card(), "What the figures do not say")
    assert "one data set and one seed (0)" in said
    assert "later than a user's test item" in said
    assert "no score of its own for an item without training clicks" in said
    ratio = Recommender.from_recipe("popularity", data={"split": "user-ratio"}).fit(runs / "books")
    said = section(ratio.card(), "What the figures do not say")
    assert "later than a user's test item" not in said


def test_data_without_order_says_so(tmp_path):
    folder = write_world(tmp_path / "books")
    table = pl.read_csv(folder / "interactions.csv").drop("timestamp")
    table.write_csv(folder / "interactions.csv")
    text = Recommender.from_recipe("popularity").fit(folder).card()
    assert "| order | none |" in text
    assert "nothing about predicting what comes next" in text
    assert "newest two" not in text


# licence


@pytest.mark.parametrize(
    ("files", "stated"),
    [
        ({}, "not stated"),
        ({"README.md": "A shop.\n\nNothing else."}, "not stated"),
        ({"README.md": "# Shop\n\nLicense: CC0\n\nMore."}, "README.md: License: CC0"),
        ({"readme.txt": "Usage Licence\n=====\n\nResearch only:\n\n* no sale"}, "readme.txt: Research only: * no sale"),
        ({"README.md": "## Licence\nOur own.\n"}, "README.md: Our own."),
        ({"LICENCE.txt": "# MIT License\n\nPermission …", "README": "licensed as GPL"}, "LICENCE.txt: MIT License"),
        ({"COPYING": "\n\n"}, "not stated"),
    ],
)  # fmt: skip
def test_the_licence_is_what_the_files_of_the_folder_say(tmp_path, files, stated):
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert stated_licence(tmp_path) == stated


def test_a_long_or_binary_licence_is_cut_and_a_missing_folder_states_none(tmp_path):
    (tmp_path / "LICENSE").write_bytes(b"\xff" + b"word " * 1_000)
    assert len(stated_licence(tmp_path)) < 700
    assert stated_licence(tmp_path).endswith(" …")
    assert stated_licence(tmp_path / "absent") == "not stated"


def test_the_licence_of_the_packaged_data_is_quoted_and_the_option_comes_first(runs):
    demo = demo_data()
    recommender = Recommender.from_recipe("popularity").fit(demo)
    assert "README.txt: Neither the University of Minnesota" in recommender.card()
    assert "commercial" in recommender.card(evaluation=evaluate(recommender), data_licence="no commercial use")
    assert "| licence | my own |" in call("card", runs / "popularity", "--data-licence", "my own")

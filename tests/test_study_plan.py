"""STUDY.toml: what is accepted, and every problem at once."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from graphllmrec.errors import RecipeError
from graphllmrec.recipe import load_recipe
from graphllmrec.study import load_study
from graphllmrec.study.config import Range

ROOT = Path(__file__).parent.parent


def study(**values):
    return load_study({"models": [{"recipe": "ease"}, {"recipe": "popularity"}], **values})


def problems(**values):
    with pytest.raises(RecipeError) as caught:
        study(**values)
    return caught.value.problems


def test_a_model_is_called_by_its_recipe_or_by_a_name_of_its_own():
    found = study(models=[{"recipe": "ease"}, {"recipe": "ease", "name": "ease 50", "set": {"model.l2": 50.0}}])
    assert [variant.label for variant in found.variants] == ["ease", "ease 50"]
    assert [variant.recipe(3).model.config.l2 for variant in found.variants] == [100.0, 50.0]
    assert [variant.recipe(3).seed for variant in found.variants] == [3, 3]


def test_dotted_and_nested_keys_mean_the_same():
    nested = study(
        models=[{"recipe": "ease", "set": {"model": {"decay": 0.5}}, "tune": {"model": {"l2": {"low": 1, "high": 9}}}}]
    )
    dotted = study(
        models=[{"recipe": "ease", "set": {"model.decay": 0.5}, "tune": {"model.l2": {"low": 1, "high": 9}}}]
    )
    assert nested == dotted
    assert nested.models[0].tune == {"model.l2": Range(low=1, high=9)}


def test_the_cut_offs_of_all_metrics_are_evaluated_and_the_headline_metric_is_first():
    found = study(metric="hr@5", metrics=["ndcg@50", "hr@5"])
    recipe = found.variants[0].recipe(0)
    assert (recipe.evaluate.ks, recipe.evaluate.metric) == ((5, 50), "hr@5")
    assert found.all_metrics == ("hr@5", "ndcg@50")


def test_decoys_are_the_same_for_all_models_and_seeds(tmp_path):
    found = study(decoys=50, models=[{"recipe": "popularity"}, {"recipe": "z-sum"}])
    sections = [variant.recipe(seed).evaluate for variant in found.variants for seed in (0, 1)]
    assert {(each.decoys, each.decoys_from, each.decoys_seed) for each in sections} == {(50, "auto", 0)}
    with pytest.raises(RecipeError, match="decoys_from has no effect: it needs decoys above 0"):
        study(decoys_from="somewhere")
    with pytest.raises(RecipeError, match=r"evaluate\.decoys: cannot be set here"):
        study(set={"evaluate.decoys": 3})
    (tmp_path / "shop").mkdir()
    (tmp_path / "study.toml").write_text('decoys = 2\ndecoys_from = "shop"\n[[models]]\nrecipe = "ease"\n')
    assert load_study(tmp_path / "study.toml").decoys_from == str(tmp_path / "shop")


def test_settings_of_the_study_hold_for_all_models_and_those_of_a_model_come_after():
    found = study(
        set={"data.k_core": 2, "text.max_tokens": 12},
        models=[{"recipe": "popularity"}, {"recipe": "z-sum"}, {"recipe": "text-knn", "set": {"text.max_tokens": 9}}],
    )
    recipes = [variant.recipe(0) for variant in found.variants]
    assert [recipe.data.k_core for recipe in recipes] == [2, 2, 2]
    assert [recipe.text.max_tokens for recipe in recipes] == [96, 12, 9]  # popularity reads no text


def test_what_is_set_or_tuned_holds_for_clicks_without_order_too():
    """[unordered] of a recipe replaces only what is not set explicitly."""
    found = study(
        models=[
            {"recipe": "lightgcn-fast", "set": {"model.embedding_dim": 24}, "tune": {"model.embedding_dim": [24, 48]}}
        ]
    )
    recipe = found.variants[0].recipe(0, {"model.embedding_dim": 48})
    assert load_recipe("lightgcn-fast").for_data(False).model.config.embedding_dim != 48
    assert recipe.for_data(False).model.config.embedding_dim == recipe.for_data(True).model.config.embedding_dim == 48


def test_pairs_are_the_baseline_those_of_compare_and_each_placebo(monkeypatch):
    monkeypatch.setattr("graphllmrec.study.config.PLACEBO_KEY", "text.prompt")
    found = study(
        models=[{"recipe": "ease"}, {"recipe": "text-knn"}, {"recipe": "z-sum", "placebos": []}],
        placebos=["none", "shuffled"],
        baseline="ease",
        compare=[["z-sum", "text-knn"], ["text-knn", "ease"]],
    )
    assert [variant.label for variant in found.variants] == ["ease", "text-knn", "text-knn [shuffled]", "z-sum"]
    assert found.pairs() == [
        ("text-knn", "ease"),
        ("z-sum", "ease"),
        ("z-sum", "text-knn"),
        ("text-knn", "text-knn [shuffled]"),
    ]
    assert found.variants[1].recipe(0).text.prompt == ""
    assert found.variants[2].recipe(0).text.prompt == "shuffled"


def test_a_recipe_beside_the_study_file_is_found(tmp_path, monkeypatch):
    (tmp_path / "own.toml").write_text('title = "mine"\n[model]\nname = "ease"\nl2 = 7.0\n')
    (tmp_path / "study.toml").write_text('[[models]]\nrecipe = "own.toml"\n')
    monkeypatch.chdir("/")
    [variant] = load_study(tmp_path / "study.toml").variants
    assert (variant.label, variant.recipe(0).model.config.l2) == ("own", 7.0)


def test_every_problem_is_reported_at_once():
    found = problems(
        sedes=[1],
        metric="ndcg",
        models=[
            {"recipe": "eas"},
            {"recipe": "ease", "name": "b", "set": {"model.l3": 1}},
            {"recipe": "ease", "name": "c", "tune": {"model.l2": [], "model.decay": {"low": 2, "high": 1}}},
            {"recipe": "ease", "name": "d", "tune": {"model.l2": [10.0, -1.0], "model.decay": {"low": 0, "high": 1.5}}},
            {"name": "e"},
        ],
    )
    text = "\n".join(found)
    for pattern in (
        r"sedes: unknown; did you mean 'seeds'\?",
        r"metric: unknown metric 'ndcg'",
        r"models\[0\] \(eas\): no such file.* did you mean 'ease'\?",
        r"models\[1\] \(ease\): model\.l3: unknown setting",
        r"models\[2\]\.tune\.model\.decay: low must be below high \(found 2 and 1\)",
        r"models\[3\]\.tune\.model\.l2: model\.l2: .*greater than 0",
        r"models\[3\]\.tune\.model\.decay: model\.decay: .*1\.5",
        r"models\[4\]\.recipe: missing",
    ):
        assert re.search(pattern, text), f"{pattern}\nnot in\n{text}"


def test_what_the_study_itself_decides_cannot_be_set_or_tuned():
    found = problems(
        models=[
            {"recipe": "ease", "set": {"seed": 3, "data.k_core": 5}, "tune": {"evaluate.ks": [[10]]}},
            {"recipe": "text-knn", "set": {"text.placebo": "random"}},
        ]
    )
    assert any("models[0].set.seed: cannot be set here: the study sets it (seeds)" in each for each in found)
    assert any("models[0].set.data.k_core: cannot be set here: it must be the same for all" in each for each in found)
    assert any("models[0].tune.evaluate.ks: cannot be set here" in each for each in found)
    assert any("models[1].set.text.placebo: cannot be set here: it is set by placebos" in each for each in found)


def test_names_that_do_not_fit_together_are_found():
    found = problems(models=[{"recipe": "ease"}, {"recipe": "ease"}], baseline="eas", compare=[["ease", "ease"]])
    assert found == [
        "models: 'ease' is given twice; give them a name each",
        "baseline: no model is called 'eas'; did you mean 'ease'? known: ease",
        "compare[0]: 'ease' with itself",
    ]


def test_recipes_of_different_data_sections_are_refused(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text('[model]\nname = "ease"\n[data]\nk_core = 5\n')
    found = problems(models=[{"recipe": "popularity"}, {"recipe": str(own)}])
    assert found == ["models: popularity and own have different [data] sections; set them in the study's own [set]"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": []}, "models: .*at least 1"),
        ({"seeds": [0, 0]}, r"seeds: a seed is given twice \(found \[0, 0\]\)"),
        ({"trials": 0}, r"trials: .*greater than or equal to 1 \(found 0\)"),
        ({"models": [{"recipe": "ease", "name": "../x"}]}, r"models\[0\]\.name: .*'\.\./x'"),
        ({"placebos": ["a/b"]}, r"placebos\[0\]: .*'a/b'"),
        ({"models": [{"recipe": "ease", "tune": {"model.l2": 5}}]}, r"models\[0\]\.tune\.model\.l2: .*tuple.*found 5"),
        (
            {"models": [{"recipe": "ease", "tune": {"model.l2": {"low": 0, "high": 1, "log": True}}}]},
            r"a logarithmic range must begin above 0",
        ),
        (
            {"models": [{"recipe": "ease", "tune": {"model.l2": {"low": 1, "high": 2, "logs": True}}}]},
            r"logs: unknown; did you mean 'log'\?",
        ),
        (
            {"placebos": ["nonsense"], "models": [{"recipe": "text-knn"}]},
            r"models\[0\], placebo 'nonsense': text\.placebo",
        ),
    ],
)
def test_single_problems(values, message):
    assert re.search(message, "\n".join(problems(**values)))


def test_keys_of_version_0_1_work_with_a_warning_that_names_the_new_key():
    models = [{"recipe": "text-knn", "controls": ["random"]}, {"recipe": "z-sum"}]
    with pytest.warns(FutureWarning) as caught:
        old = study(models=models, controls=["shuffled"], tune_controls=False)
    assert [str(warning.message).split(";")[0] for warning in caught] == [
        "study: 'controls' is now called 'placebos'",
        "study: 'controls' is now called 'placebos'",
        "study: 'tune_controls' is now called 'tune_placebos'",
    ]
    models = [{"recipe": "text-knn", "placebos": ["random"]}, {"recipe": "z-sum"}]
    assert old == study(models=models, placebos=["shuffled"], tune_placebos=False)
    with (
        pytest.warns(FutureWarning),
        pytest.raises(RecipeError, match="controls: placebos is given as well, which is the new name of this key"),
    ):
        study(controls=["shuffled"], placebos=["random"])


def test_a_file_that_is_absent_or_no_toml(tmp_path):
    with pytest.raises(RecipeError, match=r"no such file; see docs/guides/study\.md"):
        load_study(tmp_path / "study.toml")
    (tmp_path / "study.toml").write_text("seeds = [")
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_study(tmp_path / "study.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "studies").glob("*.toml")), ids=lambda path: path.stem)
def test_study_files_of_the_package_are_valid_and_begin_with_their_command(path):
    assert load_study(path).title
    assert path.read_text().startswith(f"# graphllmrec study {path.relative_to(ROOT)} --data ")


def test_study_files_in_the_documents_are_valid():
    blocks = re.findall(
        r"^```toml study\n(.*?)^```", (ROOT / "docs" / "guides" / "study.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert blocks
    for block in blocks:
        load_study(tomllib.loads(block))

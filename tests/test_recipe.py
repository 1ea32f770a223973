"""Recipes: every problem at once, defaults written out, TOML in and out."""

from __future__ import annotations

import tomllib

import pytest

from graphllmrec.errors import RecipeError
from graphllmrec.models.registry import MODELS
from graphllmrec.recipe import load_recipe, parse_setting, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_packaged_recipes_are_valid_and_say_how_to_reproduce_them(name):
    from importlib.resources import files

    recipe = load_recipe(name)
    first = (files("graphllmrec") / "recipes" / f"{name}.toml").read_text().splitlines()[0]
    assert recipe.model.name in MODELS
    assert recipe.title
    assert load_recipe(tomllib.loads(recipe.to_toml())) == recipe
    assert first.startswith(f"# graphllmrec fit {name} --data ")


def test_toml_round_trip_writes_defaults_out():
    recipe = load_recipe("ease", {"model.l2": 50, "seed": 7})
    values = tomllib.loads(recipe.to_toml())
    assert values["model"]["l2"] == 50.0
    assert values["seed"] == 7
    assert values["data"]["split"] == "auto"
    assert load_recipe(values) == recipe


def test_a_section_override_keeps_the_other_settings():
    recipe = load_recipe("item-knn", {"model": {"shrink": 5.0}, "data.k_core": 3})
    assert recipe.model.config.shrink == 5.0
    assert recipe.model.config.neighbours == 200
    assert recipe.data.k_core == 3


def test_every_problem_is_reported_at_once():
    bad = {
        "titls": "x",
        "seed": -1,
        "model": {"name": "ease", "l2": "much", "dekay": 0.5},
        "data": {"splt": "auto", "k_core": 1.5},
        "evaluate": {"ks": [10], "metric": "ndcg@20"},
    }
    with pytest.raises(RecipeError) as caught:
        load_recipe(bad)
    problems = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 7
    assert "titls: unknown setting; did you mean 'title'?" in problems
    assert "seed: Input should be greater than or equal to 0 (found -1)" in problems
    assert "model.dekay: unknown setting; did you mean 'decay'?" in problems
    assert "model.l2: " in problems
    assert "(found 'much')" in problems
    assert "data.splt: unknown setting; did you mean 'split'?" in problems
    assert "data.k_core: " in problems
    assert "evaluate: metric 'ndcg@20' is not among those of ks: hr@10" in problems


def test_an_unknown_model_is_one_problem_with_the_closest_name():
    with pytest.raises(RecipeError, match=r"1 problem.*\n.*unknown model 'eas'; did you mean 'ease'\?"):
        load_recipe({"model": {"name": "eas", "l2": 1}})


@pytest.mark.parametrize(("values", "message"), [({}, "model: missing"), ({"model": {}}, "model.name: ")])
def test_the_model_is_needed(values, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(values)


def test_a_name_that_is_neither_file_nor_recipe_lists_the_recipes():
    with pytest.raises(RecipeError, match=r"no such file.*did you mean 'popularity'\?.*ease"):
        load_recipe("popularty")


def test_broken_toml_names_the_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("seed = = 3\n")
    with pytest.raises(RecipeError, match=r"mine.toml has 1 problem.*\n.*not valid TOML: .*line 1"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.l2=50.0", ("model.l2", 50.0)),
        ("evaluate.ks=[5, 10]", ("evaluate.ks", [5, 10])),
        ("data.split=cold-item", ("data.split", "cold-item")),
        ('title="a = b"', ("title", "a = b")),
    ],
)
def test_settings_of_the_command_line_are_toml(text, expected):
    assert parse_setting(text) == expected


def test_a_setting_without_equals_sign_is_refused():
    with pytest.raises(RecipeError, match=r"not of the form section\.key=value"):
        parse_setting("model.l2")


def test_a_key_below_a_value_is_refused():
    with pytest.raises(RecipeError, match="'seed' is a value, not a section"):
        load_recipe("ease", {"seed": 1, "seed.deep": 2})


def test_a_value_of_several_types_is_one_problem():
    with pytest.raises(RecipeError, match="1 problem") as caught:
        load_recipe({"model": {"name": "ease", "decay": "much"}})
    assert caught.value.problems[0].startswith("model.decay: ")
    assert "'tune'" in caught.value.problems[0]


UNORDERED = {"model": {"name": "recmind", "embedding_dim": 8}, "unordered": {"embedding_dim": 16, "query": "user"}}
TWO_MODELS = {
    "model": {"name": "lightgcn-history", "embedding_dim": 8, "decay": 0.4},
    "unordered": {"name": "lightgcn-softmax", "embedding_dim": 16, "user_weight": 0.5},
}


def test_unordered_settings_take_the_place_of_the_models_where_clicks_have_no_order():
    recipe = load_recipe(UNORDERED)
    ordered, unordered = recipe.for_data(ordered=True), recipe.for_data(ordered=False)
    assert (ordered.model.config.embedding_dim, ordered.model.config.query) == (8, "history")
    assert (unordered.model.config.embedding_dim, unordered.model.config.query) == (16, "user")
    assert not ordered.unordered
    assert "unordered" not in unordered.values()
    assert load_recipe(tomllib.loads(recipe.to_toml())) == recipe


@pytest.mark.parametrize("override", [{"model.embedding_dim": 4}, {"model": {"embedding_dim": 4}}])
def test_a_setting_asked_for_outright_holds_with_and_without_an_order(override):
    recipe = load_recipe(UNORDERED, override)
    assert (
        recipe.for_data(ordered=True).model.config.embedding_dim
        == recipe.for_data(ordered=False).model.config.embedding_dim
        == 4
    )
    assert recipe.for_data(ordered=False).model.config.query == "user"


def test_unordered_settings_are_checked_when_the_recipe_is_read():
    with pytest.raises(
        RecipeError, match=r"\[unordered\] in its place, model\.text_dimm: unknown setting; did you mean 'text_dim'"
    ):
        load_recipe(UNORDERED, {"unordered.text_dimm": 3})


def test_an_unordered_section_with_a_name_replaces_the_model():
    recipe = load_recipe(TWO_MODELS)
    ordered, unordered = recipe.for_data(ordered=True), recipe.for_data(ordered=False)
    assert (ordered.model.name, ordered.model.config.embedding_dim, ordered.model.config.decay) == (
        "lightgcn-history", 8, 0.4,
    )  # fmt: skip
    assert (unordered.model.name, unordered.model.config.embedding_dim) == ("lightgcn-softmax", 16)
    assert unordered.model.config.num_layers == type(unordered.model.config)().num_layers  # nothing of [model] is left
    assert not unordered.unordered
    assert load_recipe(tomllib.loads(recipe.to_toml())) == recipe


@pytest.mark.parametrize("override", [{"model.epochs": 3}, {"model": {"epochs": 3}}])
def test_an_override_goes_to_both_models_where_both_have_the_setting(override):
    recipe = load_recipe(TWO_MODELS, override)
    assert [recipe.for_data(ordered).model.config.epochs for ordered in (True, False)] == [3, 3]
    fast = load_recipe("lightgcn-fast", override)
    assert [fast.for_data(ordered).model.config.epochs for ordered in (True, False)] == [3, 3]


def test_an_override_goes_to_the_one_model_that_has_the_setting():
    recipe = load_recipe(TWO_MODELS, {"model.decay": 0.9, "model": {"user_weight": 0.1, "l2": 0.2}})
    assert recipe.for_data(ordered=True).model.config.decay == 0.9
    assert recipe.for_data(ordered=False).model.config.user_weight == 0.1
    assert recipe.for_data(ordered=False).model.config.l2 == 0.2
    assert load_recipe(TWO_MODELS, {"unordered.epochs": 3}).for_data(ordered=True).model.config.epochs != 3


def test_a_setting_that_neither_model_has_is_unknown():
    with pytest.raises(RecipeError, match=r"model\.userweight: unknown setting"):
        load_recipe(TWO_MODELS, {"model.userweight": 0.1})


@pytest.mark.parametrize(
    "override", [{"model.l2": 0.5, "model.name": "lightgcn"}, {"model": {"l2": 0.5, "name": "lightgcn"}}]
)
def test_a_model_asked_for_by_name_holds_for_any_data(override):
    recipe = load_recipe({**TWO_MODELS, "model": {"name": "lightgcn-history", "embedding_dim": 8}}, override)
    assert recipe.for_data(ordered=False) == recipe.for_data(ordered=True)
    assert (recipe.model.name, recipe.model.config.l2, recipe.model.config.embedding_dim) == ("lightgcn", 0.5, 8)


def test_problems_of_the_other_model_are_told_with_its_own_settings():
    with pytest.raises(
        RecipeError,
        match=r"\[unordered\] in its place, model\.user_weigth: unknown setting; did you mean 'user_weight'",
    ):
        load_recipe(TWO_MODELS, {"unordered.user_weigth": 0.1})


@pytest.mark.parametrize("value", ["[" * 5000 + "]" * 5000, "1" * 5000, "{a=" * 3000 + "1" + "}" * 3000])
def test_values_beyond_any_setting_are_one_sentence(value, tmp_path):
    with pytest.raises(RecipeError, match=r"model\.l2") as caught:
        load_recipe("ease", dict([parse_setting(f"model.l2={value}")]))
    assert len(str(caught.value)) < 1000
    path = tmp_path / "deep.toml"
    path.write_text(f"[model]\nname = 'ease'\nl2 = {value}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("source", [5, None, 1.5, ["ease"], b"ease"])
def test_what_is_no_recipe_is_refused(source):
    with pytest.raises(RecipeError, match="a recipe is a name, a TOML file or a mapping of sections, not"):
        load_recipe(source)


def test_long_values_are_cut_in_messages():
    with pytest.raises(RecipeError) as caught:
        load_recipe("ease", {"model.l2": "x" * 10_000, "data.split": "y" * 10_000, "model.name": "z" * 10_000})
    assert len(str(caught.value)) < 2000

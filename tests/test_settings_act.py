"""Every setting of every packaged recipe changes something, or is refused: a search over it is no search over noise."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import save

from graphllmrec.data.config import DataConfig
from graphllmrec.data.prepare import split_dataset
from graphllmrec.data.read import load_data
from graphllmrec.data.split import Split
from graphllmrec.data.tables import Dataset, Interactions
from graphllmrec.errors import GraphLLMRecError, RecipeError
from graphllmrec.evaluation.evaluation import evaluate_model
from graphllmrec.models.registry import build, model_class
from graphllmrec.protocol import SilentLogger, Task, TextVectors
from graphllmrec.recipe import EvaluateConfig, Recipe, flatten, load_recipe, recipe_names
from graphllmrec.text.config import TextConfig
from graphllmrec.text.encoder import encode_items

QUICK = {  # of every model that has them: small, and trained for a few epochs
    "epochs": 4, "min_steps": 0, "validate_every": 1, "patience": 100, "warmup": 0,
    "batch_size": 16, "embedding_dim": 6, "text_dim": 4,
    "hidden": 5, "id_dim": 4, "negatives": 9, "rank": 4, "sweeps": 2, "learning_rate": 0.2, "warmup_epochs": 1,
    "align_size": 6, "monitor_users": 6,
}  # fmt: skip
SMALL_EXPERTS = {"sign": {"epochs": 2, "text_dim": 4, "hidden": 5, "min_steps": 0, "warmup": 0}}
OTHER: dict[str, Any] = {  # values where the schema has none to choose from
    "decay": 0.35, "l2": 0.7, "text_weight": 4.0, "directed": 0.9,
    "sharpen_time": 0.6, "popularity": 0.3, "half_life_days": 3.0, "experts": ["ease", "transitions"],
    "graph": ["item-knn"], "text": ["text-knn", "textgcn"], "fanouts": [2, 2], "num_layers": 1, "clip_norm": 1e-4,
    "device": "cuda:7", "min_steps": 60,
}  # fmt: skip
NOT_RESULTS = {
    "gate_schedule_half_life", "gate_schedule_strength",  # after an event: tests/test_control.py
    "patience",  # after a validation that is no better, which four epochs need not have: tests/test_train.py
}  # fmt: skip
VARIANTS = [  # combinations of settings that no packaged recipe has
    {"name": "recmind", "fusion": "text"}, {"name": "recmind", "fusion": "graph"},
    {"name": "recmind", "fusion": "late"}, {"name": "recmind", "query": "user", "loss": "bpr"},
    {"name": "recmind", "query": "user", "loss": "slk"}, {"name": "recmind", "hidden": 6, "cosine": False},
    {"name": "alpharec", "query": "user"}, {"name": "graphsage", "loss": "in-batch", "aggregator": "max"},
    {"name": "alphafuse", "encoder": "mean"}, {"name": "bspm", "ideal": 0.0}, {"name": "bspm", "sharpen_time": 0.0},
    {"name": "graph-filter", "ideal": 0.0}, {"name": "lightgcn-history", "cosine": True, "negatives": 5},
    {"name": "lightgcn-sampled"}, {"name": "lightgcn-sampled", "loss": "softmax", "negatives": 5},
    {"name": "lightgcn-sampled", "loss": "in-batch"}, {"name": "lightgcn-sampled", "loss": "directau"},
    {"name": "lightgcn-softmax", "contrast": 0.1}, {"name": "hybrid", "fusion": "static"},
]  # fmt: skip


class Log(SilentLogger):
    """Keeps all that is logged."""

    def __init__(self) -> None:
        self.lines: list[Any] = []

    def log(self, event: str, **values: Any) -> None:
        self.lines.append((event, values))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Clicks with time, rating and review of 24 users on 15 items with two text columns; some users have few."""
    path, random = tmp_path_factory.mktemp("data"), np.random.default_rng(3)
    rows = [
        (f"u{user}", f"i{item}", 1_600_000_000 + 86_400 * (step + user), float(random.integers(1, 6)), f"fine {item}")
        for user in range(24)
        for step, item in enumerate(random.permutation(14)[: 3 + user % 6])
    ]
    columns = ["user_id", "item_id", "timestamp", "rating", "review"]
    pl.DataFrame(rows, schema=columns, orient="row").write_csv(path / "interactions.csv")
    items = [(f"i{item}", f"title {item} of a thing", f"brand {item % 3}") for item in range(15)]
    pl.DataFrame(items, schema=["item_id", "title", "brand"], orient="row").write_csv(path / "items.csv")
    return str(path)


@cache
def dataset(folder: str, ordered: bool, min_rating: float | None = None, k_core: int = 0) -> Dataset:
    """The data, with an order or without one."""
    data = load_data(folder, min_rating=min_rating, k_core=k_core)
    if ordered:
        return data
    known = data.interactions
    return replace(
        data, interactions=Interactions(known.user, known.item, None, known.rating, known.review), order=None
    )


def made_split(folder: str, ordered: bool, settings: DataConfig, seed: int) -> tuple[Dataset, Split]:
    """Data and split."""
    data = dataset(folder, ordered, settings.min_rating, settings.k_core)
    return data, split_dataset(data, settings, seed)


def outcome(recipe: Recipe, folder: str, ordered: bool) -> tuple[Any, ...]:
    """Tensors and log of a fit."""
    data, split = made_split(folder, ordered, recipe.data, recipe.seed)
    model, log = recipe.for_data(ordered).build_model(), Log()
    adapted = recipe.values()["model"].get("lora", {}).get("epochs")  # these read the texts themselves
    text = vectors(len(data.items), recipe.text) if model.abilities.reads_text else None
    if adapted:
        text = encode_items(data.items, recipe.text)
    users = None
    if model.abilities.uses_user_text and not adapted:
        users = vectors(data.num_users, recipe.text, shift=100)
    model.fit(Task(split, text, recipe.seed, log, user_text=users, encoder=recipe.text))
    return save({name: tensor.clone() for name, tensor in model.state().items()}), repr(log.lines)


def vectors(count: int, config: TextConfig, shift: int = 0) -> TextVectors:
    """Random vectors that depend on the settings of the text, in place of a language model."""
    seed = int.from_bytes(hashlib.sha256(config.model_dump_json().encode()).digest()[:4]) + shift
    random = torch.Generator().manual_seed(seed)
    found = torch.nn.functional.normalize(torch.randn(count, 8, generator=random), dim=1)
    return TextVectors(found, torch.ones(count, dtype=torch.bool), tuple(f"title {n} of a thing" for n in range(count)))


def quick(recipe: Recipe) -> Recipe:
    """The recipe, small; settings without effect in it stay away."""
    values = recipe.values()
    for section in ("model", "unordered"):
        if "name" in values.get(section, {}):
            values[section] = small(values[section])
    return load_recipe(values)


def small(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section [model] with the values of QUICK, where they have an effect and 0 was not asked for."""
    config = model_class(section["name"]).config_class
    own = {key: value for key, value in section.items() if key != "name"}
    for key, value in QUICK.items():
        if key in config.model_fields and own.get(key, 1) not in (0, 0.0):
            trial = config.model_validate({**own, key: value}, context={"saved": True})
            own |= {key: value} if key not in trial.idle() else {}
    fused = section["name"] in ("hybrid", "stack", "graphllmrec")
    if fused or section["name"] == "z-sum":
        experts = own.get("graph", ["sign"]) if fused else own.get("experts", [])
        own["settings"] = {name: value for name, value in SMALL_EXPERTS.items() if name in experts}
    if fused and own.get("fusion", "gate") == "gate":
        own["gate"] = {"epochs": 2, "min_steps": 0, "batch_size": 4}
    if own.get("lora", {}).get("epochs"):
        own |= {"epochs": 1, "lora": {**own["lora"], "epochs": 1, "texts_per_step": 4}}
    return {"name": section["name"], **own}


def candidates(kind: type[BaseModel], name: str, current: Any) -> Iterator[Any]:
    """Other values of a setting, from its type."""
    field = kind.model_fields[name]
    options = [field.annotation, *get_args(field.annotation)]
    if name in OTHER and current != OTHER[name]:
        yield OTHER[name]
    if isinstance(current, bool):
        yield not current
    elif isinstance(current, str):
        yield from (value for option in options for value in literal(option) if value != current)
    elif isinstance(current, int):
        yield from (value for value in (1, 2, current * 3 + 1) if value != current)
    elif isinstance(current, float):
        yield from (value for value in (0.25, current * 2, 3.0) if value != current)


def literal(option: Any) -> list[str]:
    """Strings of a Literal, also of an alias of one."""
    option = getattr(option, "__value__", option)
    return [value for value in get_args(option) if isinstance(value, str)]


def kind_of(recipe: Recipe, path: list[str]) -> type[BaseModel]:
    """The settings class that holds the last part of a dotted key."""
    kind: Any = type(recipe.model.config) if path[0] == "model" else Recipe
    for part in path[1:-1] if path[0] == "model" else path[:-1]:
        annotation = kind.model_fields[part].annotation
        kind = next(o for o in (annotation, *get_args(annotation)) if isinstance(o, type) and issubclass(o, BaseModel))
    return kind


def without_effect(recipe: Recipe, folder: str, ordered: bool = True, only: str = "") -> list[str]:
    """Keys of [model], and the seed, whose other values neither change a fit nor are refused."""
    before, values, idle = outcome(recipe, folder, ordered), recipe.values(), []
    names = [*dict(flatten(values["model"])), *type(recipe.model.config).model_fields]
    for name in dict.fromkeys(names):
        path = ["model", *name.split(".")]
        section = isinstance(recipe.model.config.model_dump().get(name), dict)  # its keys are walked
        if (
            name != "name"
            and name not in NOT_RESULTS
            and "settings" not in path
            and not section
            and name.startswith(only)
        ):
            others = candidates(kind_of(recipe, path), path[-1], at(values, path))
            if not any(acts(recipe, ".".join(path), value, before, folder, ordered) for value in others):
                idle.append(name)
    if "epochs" in names and not only and not acts(recipe, "seed", 5, before, folder, ordered):
        idle.append("seed")
    return idle


def acts(recipe: Recipe, key: str, value: Any, before: Any, folder: str, ordered: bool) -> bool:
    """Does another value change the fit, or is it refused, as late as by the fit (a device that is not there)?"""
    try:
        return outcome(load_recipe(recipe, {key: value}), folder, ordered) != before
    except GraphLLMRecError:
        return True


def at(values: Any, path: list[str]) -> Any:
    """The value at a dotted key; None where there is none."""
    for part in path:
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_every_setting_of_a_packaged_recipe_acts_or_is_refused(name: str, folder: str) -> None:
    recipe = quick(load_recipe(name))
    adapters = "lora." if name == "recmind-lora" else ""  # a fit takes seconds; all the rest is that of recmind
    assert not without_effect(recipe, folder, only=adapters)
    if adapters:
        return
    if recipe.unordered:  # histories without an order do not fade, and are whole in training
        without_order = set(without_effect(recipe.for_data(False), folder, ordered=False))
        assert without_order <= {"decay", "max_history"}


@pytest.mark.slow
@pytest.mark.parametrize("section", VARIANTS, ids=lambda section: "-".join(map(str, section.values())))
def test_every_setting_of_other_combinations_acts_or_is_refused(section: dict[str, Any], folder: str) -> None:
    assert not without_effect(quick(load_recipe({"model": section})), folder)


@pytest.mark.parametrize("name", recipe_names())
def test_settings_of_text_are_refused_where_no_model_reads_text(name: str) -> None:
    recipe, reads = load_recipe(name), []
    for ordered in (True, False):
        reads.append(recipe.for_data(ordered).build_model().abilities.reads_text)
    settings = {"max_tokens": 9, "columns": ["title"], "placebo": "random", "reviews": True, "prompt": "query: "}
    for key, value in settings.items():
        if any(reads):
            assert getattr(load_recipe(recipe, {f"text.{key}": value}).text, key) == value
        else:
            with pytest.raises(RecipeError, match=rf"text\.{key} has no effect: it needs a model that reads text \("):
                load_recipe(recipe, {f"text.{key}": value})


TEXT = {"max_tokens": 4, "columns": ["brand"], "pooling": "cls", "prompt": "query: ", "suffix": "!",
        "encoder": "./no-such-folder", "revision": "other", "device": "cuda:7"}  # fmt: skip
SPEED = {"batch_tokens", "dtype"}  # how fast, and rounding: tests/test_text_encoder.py
ELSEWHERE = {"reviews", "placebo"}  # not of the encoder: tests/test_user_text.py, tests/test_text_placebo.py


def test_every_setting_of_the_text_acts_or_is_refused(folder: str, tmp_path: Path) -> None:
    items = dataset(folder, True).items
    before = encode_items(items, TextConfig(), cache=tmp_path).vectors
    assert TEXT.keys() | SPEED | ELSEWHERE == TextConfig.model_fields.keys()
    for name, value in TEXT.items():
        with suppress(GraphLLMRecError):
            changed = load_recipe("text-knn", {f"text.{name}": value}).text
            assert not torch.equal(encode_items(items, changed, cache=tmp_path).vectors, before), name


DATA = {
    "split": "user-ratio", "min_rating": 3.0, "k_core": 4, "valid_ratio": 0.3, "test_ratio": 0.4, "cold_ratio": 0.3,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["auto", "user-ratio", "global-time", "cold-item", "leave-last-out"])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("name", DATA)
def test_every_setting_of_the_data_acts_or_is_refused(name: str, kind: str, ordered: bool, folder: str) -> None:
    if not ordered and kind in ("global-time", "leave-last-out"):
        pytest.skip("needs an order")
    if name == "split" and kind == "user-ratio":
        pytest.skip("the same")
    base = {"model": {"name": "ease"}, "data": {"split": kind}}
    before = made_split(folder, ordered, load_recipe(base).data, 0)[1]
    with suppress(RecipeError):
        changed = load_recipe(base, {f"data.{name}": DATA[name]})
        after = made_split(folder, ordered, changed.data, 0)[1]
        same = after.test.item.tolist() == before.test.item.tolist() and len(after.train) == len(before.train)
        assert not same or (name == "split" and kind == "auto" and not ordered)  # what "auto" means there


def test_shares_without_effect_on_the_split_of_these_data_are_refused(folder: str) -> None:
    changed = load_recipe("ease", {"data.test_ratio": 0.3}).data
    with pytest.raises(RecipeError, match=r"data\.test_ratio has no effect: these data are split by leave-last-out"):
        made_split(folder, True, changed, 0)
    larger, usual = (made_split(folder, False, config, 0)[1] for config in (changed, DataConfig()))
    assert len(larger.test) > len(usual.test)


def test_every_setting_of_the_evaluation_acts(folder: str) -> None:
    model = build("popularity")
    split = made_split(folder, True, DataConfig(), 0)[1]
    model.fit(Task(split, None, 0))
    one, other = (evaluate_model(model, split, "test", ks=ks).overall for ks in ((10, 20), (5,)))
    assert set(one) != set(other)
    decoys = {"decoys", "decoys_from", "decoys_seed"}  # tests/test_decoys.py
    assert EvaluateConfig.model_fields.keys() == {"ks", "metric"} | decoys  # metric: tests/test_cli.py

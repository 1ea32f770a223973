"""One validated description of a run: TOML in, TOML out, every problem reported at once.

    title = "EASE on clicks alone"
    seed = 0
    [model]          # name, and the settings of that model's own Config
    name = "ease"
    l2 = 100.0
    [data]           # how interactions are filtered and split
    [text]           # how item text becomes vectors (text.encoder.TextConfig)
    [evaluate]       # cut-offs, the headline metric, decoys
    [unordered]      # replaces settings of [model] where the clicks have no order; with a name, all of [model]

A section or key that is left out takes its default; `to_toml` writes the defaults out, so run folders are complete.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Set
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import tomli_w
from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import ErrorDetails

from graphllmrec.data.config import DataConfig
from graphllmrec.errors import RecipeError
from graphllmrec.evaluation.metrics import METRICS
from graphllmrec.legacy import current_recipe
from graphllmrec.models.registry import MODELS, model_class
from graphllmrec.protocol import Model
from graphllmrec.settings import SAVED, Condition, Config
from graphllmrec.text.config import TextConfig
from graphllmrec.text.decoys import AUTO
from graphllmrec.toml import MAX_DEPTH, check_values, parse_toml, read_toml

_LARGEST_K = 1_000_000
_LONGEST = 400  # characters of a problem: some of them repeat the value


class ModelConfig(Config):
    """Which model, and its settings as validated by the model's own `config_class`."""

    name: str
    config: SerializeAsAny[Config]

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {"name": values.get("name", ""), "config": {k: v for k, v in values.items() if k != "name"}}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in MODELS:
            close = difflib.get_close_matches(name, MODELS, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"unknown model {name!r}; {hint}known: {', '.join(MODELS)}")
        return name

    @field_validator("config", mode="wrap")
    @classmethod
    def _of_the_model(cls, value: Any, _handler: Any, info: ValidationInfo) -> Any:
        # Without a valid name there is nothing to check the settings against; the name is the problem reported.
        if "name" not in info.data:
            return Config()
        return model_class(info.data["name"]).config_class.model_validate(value, context=info.context)


class EvaluateConfig(Config):
    """Cut-offs k of the ranking metrics, the metric that is shown first, and unclicked items."""

    ks: tuple[int, ...] = Field((10, 20), min_length=1, max_length=100, description="cut-offs of the ranking metrics")
    metric: str = Field("ndcg@20", description="the metric that is shown first")
    decoys: int = Field(
        0,
        ge=0,
        le=10_000_000,
        description="unclicked items that are added to the candidates; docs/guides/evaluation.md",
    )
    decoys_from: str = Field(
        AUTO,
        min_length=1,
        description='"auto": made of the texts of the catalogue; or a data folder, whose items they are',
    )
    decoys_seed: int = Field(
        0, ge=0, lt=2**63, description="of the draw of decoys; the recipe's seed does not change it"
    )

    def conditions(self) -> Iterator[Condition]:
        """What settings need of each other."""
        yield Condition("decoys_from decoys_seed", self.decoys > 0, "decoys above 0")

    @field_validator("ks")
    @classmethod
    def _positive(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if not 1 <= min(ks) <= max(ks) <= _LARGEST_K:
            raise ValueError(f"every k must be from 1 to {_LARGEST_K:,}")
        return tuple(sorted(set(ks)))

    @model_validator(mode="after")
    def _metric_has_a_k(self) -> EvaluateConfig:
        known = [f"{name}@{k}" for name in METRICS for k in self.ks]
        if self.metric not in known:
            raise ValueError(f"metric {self.metric!r} is not among those of ks: {', '.join(known)}")
        return self


class Recipe(Config):
    """All settings of a run: with the data, they decide its outcome."""

    title: str = Field("", description="what this run is, in a line")
    notes: str = Field("", description="anything worth knowing about it")
    seed: int = Field(
        0, ge=0, lt=2**63, description="of every draw: splits, batches, negatives, dropout, initial weights"
    )
    model: ModelConfig
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    unordered: dict[str, Any] = Field(
        {},
        description="settings that replace those of [model] where clicks have no order; with a name, all of [model]",
    )

    def for_data(self, ordered: bool) -> Recipe:
        """The recipe for data whose clicks have an order or not.

        With an order, [unordered] is dropped. Without one, it is merged into [model], and settings of [model] that have
        no effect beside it fall back to their defaults (`idle_without_order`); where it has a `name`, it is a model of
        its own, which takes the place of [model].
        """
        if not self.unordered:
            return self
        return Recipe.model_validate(_variant(self.values(), ordered))

    @property
    def idle_without_order(self) -> list[str]:
        """Settings of [model] that have no effect beside [unordered], e.g. ["negatives"]."""
        return [] if "name" in self.unordered else _idle(self.model.config, self.unordered)

    def idle(self) -> dict[str, str]:
        """Settings without effect of one section because of another: those of [text] where no model reads text."""
        names, other = [self.model.name], self.unordered.get("name")
        if isinstance(other, str) and other in MODELS:
            names.append(other)
        if self.build_model().abilities.reads_text or any(model_class(n).abilities.reads_text for n in names[1:]):
            return {}
        needed = f"a model that reads text ({' and '.join(names)} {'reads' if len(names) == 1 else 'read'} none)"
        return {f"text.{name}": needed for name in TextConfig.model_fields if self.text.changed(name)}

    def build_model(self) -> Model:
        """The unfitted model."""
        model: Model = model_class(self.model.name)(self.model.config)
        return model

    def values(self) -> dict[str, Any]:
        """Plain nested values as a recipe file holds them; settings that are None (TOML has no null) are left out."""
        values = self.model_dump(mode="json", exclude_none=True)
        values["model"] = {"name": self.model.name, **values["model"]["config"]}
        if not self.unordered:
            del values["unordered"]
        return values

    def to_toml(self) -> str:
        """The recipe as TOML, defaults written out."""
        return tomli_w.dumps(self.values())


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(Path(str(entry)).stem for entry in _packaged().iterdir() if str(entry).endswith(".toml"))


def load_recipe(
    source: str | Path | Mapping[str, Any] | Recipe, overrides: Mapping[str, Any] | None = None, *, saved: bool = False
) -> Recipe:
    """A checked recipe from a TOML file, the bare name of a packaged one ("ease"), plain values, or a Recipe.

    `overrides` maps dotted keys ("model.l2") or sections ({"model": {"l2": 50}}) to values that replace those of the
    source. Raises RecipeError listing every problem: syntax, unknown models and keys, impossible values, settings that
    have no effect beside the others. saved: the recipe of a run, where the last are no problem any more.
    """
    if isinstance(source, Recipe):
        values, label = source.values(), "recipe"
    elif isinstance(source, Mapping):
        values, label = check_values(source, "recipe"), "recipe"
    elif isinstance(source, str | Path):
        values, label = _read(source), str(source)
    else:
        raise RecipeError([f"a recipe is a name, a TOML file or a mapping of sections, not {source!r:.80}"])
    overrides = check_values(overrides or {}, label)
    if deep := [key for key in overrides if key.count(".") >= MAX_DEPTH]:
        raise RecipeError([f"{deep[0][:80]}: unknown setting, of {deep[0].count('.'):,} parts"], label)
    values, overrides = current_recipe(values), _current_overrides(overrides, values)
    for key, value in sorted(overrides.items(), key=lambda entry: entry[0] != "model.name"):
        values = _overridden(values, key.split("."), value, label)
    try:
        recipe = Recipe.model_validate(values, context=SAVED if saved else None)
    except ValidationError as error:
        raise RecipeError(_problems(error, values), label) from None
    try:
        recipe.for_data(ordered=False)
    except ValidationError as error:
        problems = _problems(error, _variant(recipe.values(), ordered=False))
        raise RecipeError([f"with [unordered] in its place, {problem}" for problem in problems], label) from None
    return recipe


def evaluate_settings(recipe: Recipe, decoys: int | None, decoys_from: str | Path | None) -> EvaluateConfig:
    """The section [evaluate] with other decoys, where these are not None. Raises RecipeError."""
    given = {"decoys": decoys, "decoys_from": None if decoys_from is None else str(decoys_from)}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return recipe.evaluate
    off = {"decoys_from", "decoys_seed"} if decoys == 0 else None
    values = recipe.evaluate.model_dump(exclude=off) | given
    return load_recipe({"model": {"name": recipe.model.name}, "evaluate": values}).evaluate


def _current_overrides(overrides: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides in today's names: those of version 0.1 are read as sections, the others stay as they are."""
    name = _model_name(overrides) or _model_name(values)
    out: dict[str, Any] = {}
    for key, value in overrides.items():
        nested = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        own = {**nested["model"], "name": name} if isinstance(nested.get("model"), Mapping) and name else None
        current = current_recipe(nested if own is None else {**nested, "model": own})
        same = current == (nested if own is None else {**nested, "model": own})
        if same:
            out[key] = value
        elif own is None:
            out |= current
        else:
            out["model"] = out.get("model", {}) | {k: v for k, v in current["model"].items() if k != "name"}
    return out


def _model_name(values: Mapping[str, Any]) -> str:
    section = values.get("model")
    return str(values.get("model.name") or (section.get("name", "") if isinstance(section, Mapping) else ""))


def parse_setting(text: str) -> tuple[str, Any]:
    """("model.l2", 50.0) from "model.l2=50.0". The value is TOML; what is not TOML is taken as a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError([f"{text!r} is not of the form section.key=value, e.g. model.l2=50.0"], "--set")
    try:
        return key.strip(), parse_toml(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()
    except (ValueError, RecursionError, OverflowError) as error:
        raise RecipeError([f"{key.strip()}: a value that is no setting ({error})"], "--set") from None


def _packaged() -> Any:
    return files("graphllmrec") / "recipes"


def _read(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    if not _is_file(path):
        names = recipe_names()
        if str(source) in names:
            path = Path(str(_packaged() / f"{source}.toml"))
        else:
            close = difflib.get_close_matches(path.stem, names, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            problem = f"no such file, and no packaged recipe of that name; {hint}packaged: {', '.join(names)}"
            raise RecipeError([problem], str(source))
    return read_toml(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no name of a file: too long, or with a NUL
        return False


def _variant(values: Mapping[str, Any], ordered: bool) -> dict[str, Any]:
    """The values of a recipe for data with an order or without one: see `Recipe.for_data`."""
    values = dict(values)
    unordered = values.pop("unordered")
    if ordered:
        return values
    if "name" in unordered:
        return {**values, "model": unordered}
    config = model_class(values["model"]["name"]).config_class.model_validate(
        {key: value for key, value in values["model"].items() if key != "name"}, context=SAVED
    )
    idle = _idle(config, unordered)
    model = {key: value for key, value in values["model"].items() if key not in idle}
    return _replaced({**values, "model": model}, ["model"], unordered, "recipe")


def _idle(config: Config, unordered: Mapping[str, Any]) -> list[str]:
    """Settings of [model] that have no effect once those of [unordered] are merged in; [] where these are invalid."""
    given = config.model_dump(mode="json", exclude_none=True)
    merged = _replaced({"model": given}, ["model"], unordered, "recipe")["model"]
    dropped: list[str] = []
    try:
        while new := type(config).model_validate(merged, context=SAVED).idle().keys() - unordered.keys():
            dropped += sorted(new)  # without them, others may have no effect
            merged = {key: value for key, value in merged.items() if key not in new}
    except ValidationError:
        return []
    return dropped


def _overridden(values: Mapping[str, Any], path: list[str], value: Any, label: str) -> dict[str, Any]:
    """`values` with an override, which holds for data with an order and without one.

    Where [unordered] is a model of its own, an override of [model] goes to those of the two that have the setting; a
    new name replaces both.
    """
    if "unordered" not in values or path[0] != "model":
        return _replaced(values, path, value, label)
    unordered = values["unordered"]
    if not isinstance(unordered, Mapping) or "name" not in unordered:
        values = {**values, "unordered": _without(unordered, path[1:], value)}
        return _replaced(values, path, value, label)
    if path == ["model"] and isinstance(value, Mapping):
        for key, entry in sorted(value.items(), key=lambda item: item[0] != "name"):
            values = _overridden(values, ["model", key], entry, label)
        return dict(values)
    if path == ["model", "name"]:
        return _replaced({key: entry for key, entry in values.items() if key != "unordered"}, path, value, label)
    sections = [section for section in ("model", "unordered") if path[1:2] and path[1] in _settings(values[section])]
    for section in sections or ["model"]:
        values = _replaced(values, [section, *path[1:]], value, label)
    return dict(values)


def _settings(section: Any) -> list[str]:
    """Names of the settings of the model that a section names; [] without a known name."""
    name = section.get("name") if isinstance(section, Mapping) else None
    return list(model_class(name).config_class.model_fields) if name in MODELS else []


def _replaced(values: Mapping[str, Any], path: list[str], value: Any, label: str) -> dict[str, Any]:
    head, rest = path[0], path[1:]
    current = values.get(head, {})
    if rest:
        if not isinstance(current, Mapping):
            raise RecipeError([f"{'.'.join(path)}: {head!r} is a value, not a section"], label)
        value = _replaced(current, rest, value, label)
    elif isinstance(value, Mapping) and isinstance(current, Mapping):
        merged = dict(current)
        for key, entry in value.items():
            merged = _replaced(merged, [key], entry, label)
        value = merged
    return {**values, head: value}


def _without(values: Any, path: list[str], value: Any) -> Any:
    """`values` without the entry at `path`; where `value` is a table, without its keys below `path`."""
    if not isinstance(values, Mapping):
        return values
    if path:
        rest = _without(values.get(path[0]), path[1:], value) if len(path) > 1 or isinstance(value, Mapping) else None
        return {key: entry for key, entry in values.items() if key != path[0]} | ({path[0]: rest} if rest else {})
    for key, entry in value.items() if isinstance(value, Mapping) else ():
        values = _without(values, [key], entry)
    return values


def _problems(error: ValidationError, values: Mapping[str, Any]) -> list[str]:
    """One line per problem, with its dotted key, what was found and, for an unknown key, the closest known one."""
    found: dict[str, list[str]] = {}
    for entry in error.errors():
        path = [str(part) for part in entry["loc"]]
        kinds = _fields(path[:-2], values) if len(path) > 1 and path[-2] in _fields(path[:-2], values) else []
        if kinds and path[-1] not in _fields(path[:-1], values) and entry["type"] != "extra_forbidden":
            path = path[:-1]  # the last part names one of several types, e.g. a number or "tune"
        key = ".".join(["model", *path[2:]] if path[:2] == ["model", "config"] else path)
        found.setdefault(key, []).append(_problem(entry, path, values))
    return [f"{key}: {' or: '.join(messages)}" if key else messages[0] for key, messages in found.items()]


def _problem(entry: ErrorDetails, path: list[str], values: Mapping[str, Any]) -> str:
    if entry["type"] == "extra_forbidden":
        known = _fields(path[:-1], values)
        close = difflib.get_close_matches(path[-1], known, n=1)
        return (
            f"unknown setting; did you mean {close[0]!r}?" if close else f"unknown setting; known: {', '.join(known)}"
        )
    if entry["type"] == "missing":
        return "missing"
    message = entry["msg"].removeprefix("Value error, ")
    shown = isinstance(entry["input"], Mapping) or repr(entry["input"]) in message
    return message[:_LONGEST] + ("" if shown else f" (found {entry['input']!r:.80})")


def _fields(path: list[str], values: Mapping[str, Any]) -> list[str]:
    """Names of the settings of the section at `path`."""
    kind: Any = Recipe
    if path[:2] == ["model", "config"]:
        kind, path = model_class(values["model"]["name"]).config_class, path[2:]
    for part in path:
        annotation = kind.model_fields[part].annotation if part in kind.model_fields else None
        options = [annotation, *get_args(annotation)]
        kind = next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), None)
        if kind is None:
            return []
    return list(kind.model_fields)


def flatten(values: Mapping[str, Any], prefix: str = "", until: Set[str] = frozenset()) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested tables; a table with a key of `until` is a value, and so is an empty one."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value and not until & value.keys():
            yield from flatten(value, f"{prefix}{key}.", until)
        else:
            yield f"{prefix}{key}", value


def differences(given: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """ "model.l2: 50.0, not 100.0" for each setting in which two nested tables differ; an empty table is no setting."""
    left, right = ({key: value for key, value in flatten(table) if value != {}} for table in (given, stored))
    keys = [key for key in sorted(left.keys() | right.keys()) if left.get(key) != right.get(key)]
    return [f"{key}: {left.get(key)!r}, not {right.get(key)!r}" for key in keys]

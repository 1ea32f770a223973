"""STUDY.toml: which models, seeds, placebos and comparisons; every problem reported at once.

    title = "Does the fusion earn its keep?"
    seeds = [0, 1, 2]
    metric = "ndcg@20"           # tuned on its validation value; tested and drawn
    metrics = ["recall@20"]      # tested as well
    placebos = ["none", "shuffled"]
    baseline = "z-sum"           # every model is tested against it
    compare = [["hybrid", "hybrid-static"]]
    trials = 20                  # settings tried per model, data set and placebo: the same number for all
    [[models]]
    recipe = "hybrid"            # a packaged recipe, or a file (beside STUDY.toml, or from the current folder)
    set = { "text.max_tokens" = 64 }
    tune = { "model.gate.learning_rate" = { low = 1e-4, high = 1e-2, log = true } }

A *case* is a model under a placebo; a *cell* is a case with a data set and a seed, and is one fit.
"""

from __future__ import annotations

import difflib
import itertools
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from graphllmrec.errors import EvaluationError, RecipeError
from graphllmrec.evaluation.metrics import parse_metric
from graphllmrec.models.registry import build
from graphllmrec.recipe import Recipe, load_recipe
from graphllmrec.settings import Config

NO_PLACEBO = "none"
PLACEBO_KEY = "text.placebo"  # the setting of a recipe that a placebo is


class Range(Config):
    """Numbers from low to high, both included."""

    low: float
    high: float
    log: bool = Field(False, description="search on a logarithmic scale")
    whole: bool = Field(False, alias="int", description="whole numbers only")

    @model_validator(mode="after")
    def _makes_sense(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low must be below high (found {self.low:g} and {self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range must begin above 0 (found {self.low:g})")
        if self.whole and (self.low % 1 or self.high % 1):
            raise ValueError(f"the ends of a range of whole numbers must be whole ({self.low:g}, {self.high:g})")
        return self

    def ends(self) -> list[float]:
        """The smallest and the largest value, as the setting would get them."""
        return [int(self.low), int(self.high)] if self.whole else [self.low, self.high]


def _kind(value: Any) -> str:
    return "range" if isinstance(value, Mapping | Range) else "list"


Values = Annotated[
    Annotated[Range, Tag("range")] | Annotated[tuple[Any, ...], Tag("list")], Discriminator(_kind)
]  # told apart by sight, so that one problem is not reported as two
Space = dict[str, Values]  # {"model.l2": what may be tried}
Placebos = tuple[Annotated[str, Field(pattern=r"^[\w-]+$")], ...]  # also names of folders
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class StudyModel(Config):
    """One model of a study."""

    recipe: str = Field(min_length=1, description="a packaged recipe, or a recipe file")
    name: str = Field("", pattern=r"^([A-Za-z0-9][\w .+-]*)?$", description="label in the tables; default: the recipe")
    overrides: dict[str, Any] = Field({}, alias="set", description="settings that replace those of the recipe")
    tune: Space = Field({}, description="settings to search on validation: a list, or {low, high, log, int}")
    placebos: Placebos | None = Field(None, description="instead of the study's placebos")
    seeds: Seeds | None = Field(None, description="instead of the study's seeds; one is enough where nothing is drawn")

    @field_validator("overrides", mode="before")
    @classmethod
    def _flat_overrides(cls, value: Any) -> Any:
        return dict(_flat(value)) if isinstance(value, Mapping) else value

    @field_validator("tune", mode="before")
    @classmethod
    def _flat_space(cls, value: Any) -> Any:
        return dict(_flat(value, until={"low", "high"})) if isinstance(value, Mapping) else value

    @field_validator("tune")
    @classmethod
    def _something_to_try(cls, value: Space) -> Space:
        for key, values in value.items():
            if not isinstance(values, Range) and not values:
                raise ValueError(f"{key}: nothing to try in an empty list")
        return value

    @property
    def label(self) -> str:
        """What the tables call the model."""
        return self.name or Path(self.recipe).stem


class Study(Config):
    """A validated study, without the data it is run on."""

    title: str = Field("", description="heading of the tables")
    notes: str = Field("", description="what a reader of the tables must know")
    seeds: Seeds = (0,)
    metric: str = Field("ndcg@20", description="tuned on its validation value; tested, with strata, and drawn")
    metrics: tuple[str, ...] = Field((), description="further metrics that are shown and tested")
    placebos: Placebos = Field((), description="values of text.placebo for models that read text")
    baseline: str | None = Field(None, description="the model that every other one is tested against")
    compare: tuple[tuple[str, str], ...] = Field((), description='further paired tests: [["hybrid", "ease"], …]')
    trials: int = Field(20, ge=1, description="settings tried per model, data set and placebo that has a search space")
    tune_seed: int = Field(0, ge=0, description="of the search, and of every fit made for it")
    tune_placebos: bool = Field(
        True, description="search anew for each placebo; false: take over what was found without"
    )
    keep_models: bool = Field(False, description="keep the fitted models, not only their figures")
    overrides: dict[str, Any] = Field({}, alias="set", description="settings for all models, e.g. data.k_core")
    models: tuple[StudyModel, ...] = Field(min_length=1)

    @field_validator("overrides", mode="before")
    @classmethod
    def _flat_overrides(cls, value: Any) -> Any:
        return dict(_flat(value)) if isinstance(value, Mapping) else value

    @field_validator("metric", "metrics")
    @classmethod
    def _known_metric(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for metric in (value,) if isinstance(value, str) else value:
            try:
                parse_metric(metric)
            except EvaluationError as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"a seed is given twice (found {list(value)})")
        return value

    def values(self) -> dict[str, Any]:
        """Plain values as a study file holds them, defaults written out; None (TOML has no null) is left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @property
    def all_metrics(self) -> tuple[str, ...]:
        """The headline metric first, each once."""
        return tuple(dict.fromkeys([self.metric, *self.metrics]))

    @property
    def cases(self) -> tuple[Case, ...]:
        """Every model under every placebo; models that read no text only without one."""
        found = []
        for model in self.models:
            case = Case(self, model)
            found.append(case)
            if case.reads_text:
                found += [Case(self, model, placebo) for placebo in case.placebos if placebo != NO_PLACEBO]
        return tuple(found)

    def pairs(self) -> list[tuple[str, str]]:
        """Labels of the cases to hold against each other: (a, b) asks whether a is better than b.

        Every model against the baseline, what `compare` names, and every model against each of its own placebos.
        """
        base = self.baseline
        found = [(model.label, base) for model in self.models if base is not None and base != model.label]
        own = [(case.model.label, case.label) for case in self.cases if case.placebo != NO_PLACEBO]
        return list(dict.fromkeys([*found, *self.compare, *own]))


@dataclass(frozen=True)
class Case:
    """A model under a placebo."""

    study: Study
    model: StudyModel
    placebo: str = NO_PLACEBO

    @property
    def label(self) -> str:
        """ "hybrid", or "hybrid [shuffled]" under a placebo."""
        return self.model.label if self.placebo == NO_PLACEBO else f"{self.model.label} [{self.placebo}]"

    @property
    def placebos(self) -> tuple[str, ...]:
        """The placebos asked for, whether or not the model reads text."""
        return tuple(dict.fromkeys(self.study.placebos if self.model.placebos is None else self.model.placebos))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the cells."""
        return self.model.seeds or self.study.seeds

    @property
    def reads_text(self) -> bool:
        """Does the model read item or user text? Only then a placebo of the text changes anything."""
        section = self.recipe(0).model
        model = build(section.name, section.config.model_dump())
        return model.abilities.reads_text

    def recipe(self, seed: int, tuned: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe of one fit. Raises RecipeError."""
        metrics = self.study.all_metrics
        own = {
            "seed": seed,
            "evaluate.metric": metrics[0],
            "evaluate.ks": sorted({parse_metric(m)[1] for m in metrics}),
        }
        placebo = {} if self.placebo == NO_PLACEBO else {PLACEBO_KEY: self.placebo}
        settings = {**self.study.overrides, **self.model.overrides, **(tuned or {}), **placebo}
        return load_recipe(self.model.recipe, {**settings, **own})


def load_study(source: str | Path | Mapping[str, Any] | Study) -> Study:
    """A checked study from a TOML file, plain values, or a Study. Raises RecipeError listing every problem.

    A recipe that is a file is looked for beside the study file first; the study then holds its whole path.
    """
    if isinstance(source, Study):
        return source
    if isinstance(source, Mapping):
        values, label = dict(source), "study"
    else:
        values, label = _read(Path(source)), str(source)
    problems, study = [], None
    try:
        study = Study.model_validate(values)
    except ValidationError as error:
        # A list of which no entry is valid is reported as too short as well, though it is not.
        problems += [_problem(e) for e in error.errors() if e["type"] != "too_short" or not e["input"]]
    problems += _model_problems(values, study)
    if study is not None and not problems:
        problems += _cross_problems(study)
    if problems or study is None:
        raise RecipeError(list(dict.fromkeys(problems)), label)
    return study


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RecipeError(["no such file; see docs/study.md for what a study file holds"], str(path))
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError([f"not valid TOML: {error}"], str(path)) from None
    for model in values.get("models", []) if isinstance(values.get("models"), list) else ():
        beside = path.parent / str(model.get("recipe", "")) if isinstance(model, dict) else path.parent
        if beside.is_file():
            model["recipe"] = str(beside)
    return values


def _flat(values: Mapping[str, Any], prefix: str = "", until: Any = frozenset()) -> Iterator[tuple[str, Any]]:
    """Dotted keys of nested tables; a table with a key of `until` is a value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value and not until & value.keys():
            yield from _flat(value, f"{prefix}{key}.", until)
        else:
            yield f"{prefix}{key}", value


def _problem(entry: ErrorDetails) -> str:
    """Dotted key and what is wrong there, for an unknown key with the closest known one."""
    path = [part for part in entry["loc"] if part not in ("range", "list")]  # which of two types it was taken for
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    if entry["type"] == "extra_forbidden":
        kind: type[BaseModel] = Range if "tune" in path else StudyModel if path[0] == "models" else Study
        known = [field.alias or name for name, field in kind.model_fields.items()]
        close = difflib.get_close_matches(str(path[-1]), known, n=1)
        return f"{key}: unknown; " + (f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}")
    message = "missing" if entry["type"] == "missing" else entry["msg"].removeprefix("Value error, ")
    said = "(found" in message or isinstance(entry["input"], Mapping) or repr(entry["input"]) in message
    return f"{key}: {message}" + ("" if said or message == "missing" else f" (found {entry['input']!r})")


def _model_problems(values: Mapping[str, Any], study: Study | None) -> Iterator[str]:
    """What is wrong with the recipes, settings and search spaces of those models that can be read at all."""
    if study is None:  # something else is wrong: the models are checked with the rest as it is by default
        try:
            study = Study.model_validate({"models": [{"recipe": "popularity"}], "set": values.get("set", {})})
        except ValidationError:
            return
        found = values.get("models")
        models = list(_readable(found)) if isinstance(found, list) else []
    else:
        models = list(enumerate(study.models))
        yield from _reserved("set", study.overrides, {"seed", "evaluate", PLACEBO_KEY})
    for number, model in models:
        where = f"models[{number}]"
        yield from _reserved(f"{where}.set", model.overrides, {"seed", "evaluate", "data", PLACEBO_KEY})
        yield from _reserved(f"{where}.tune", model.tune, {"seed", "evaluate", "data", PLACEBO_KEY})
        case = Case(study, model)
        try:
            case.recipe(0)
        except RecipeError as error:
            yield from (f"{where} ({model.recipe}): {problem}" for problem in error.problems)
            continue
        yield from _space_problems(case, where)
        for placebo in case.placebos if case.reads_text else ():
            try:
                Case(study, model, placebo).recipe(0)
            except RecipeError as error:
                yield from (f"{where}, placebo {placebo!r}: {problem}" for problem in error.problems)


def _readable(models: list[Any]) -> Iterator[tuple[int, StudyModel]]:
    for number, values in enumerate(models):
        try:
            yield number, StudyModel.model_validate(values)
        except ValidationError:
            continue  # reported already


def _reserved(where: str, settings: Mapping[str, Any], reserved: set[str]) -> Iterator[str]:
    hints = {
        "seed": "the study sets it (seeds)",
        "evaluate": "the study sets it (metric, metrics)",
        "data": "it must be the same for all models; use the study's own [set]",
        PLACEBO_KEY: "it is set by placebos",
    }
    for key in settings:
        for name in reserved & {key, key.split(".")[0]}:
            yield f"{where}.{key}: cannot be set here: {hints[name]}"


def _space_problems(case: Case, where: str) -> Iterator[str]:
    """Every value of a list and both ends of a range must be a possible value of its setting."""
    for key, values in case.model.tune.items():
        for value in values.ends() if isinstance(values, Range) else values:
            try:
                case.recipe(0, {key: value})
            except RecipeError as error:
                yield from (f"{where}.tune.{key}: {problem}" for problem in error.problems)


def _cross_problems(study: Study) -> Iterator[str]:
    """What is wrong between the parts of a study that are each in order."""
    labels = [model.label for model in study.models]
    for label in dict.fromkeys(label for label in labels if labels.count(label) > 1):
        yield f"models: {label!r} is given twice; give them a name each"
    known = {case.label: None for case in study.cases}
    named = [("baseline", study.baseline)] if study.baseline is not None else []
    named += [(f"compare[{place}]", name) for place, pair in enumerate(study.compare) for name in pair]
    for where, name in named:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            yield f"{where}: no model is called {name!r}; {hint}known: {', '.join(known)}"
    yield from (f"compare[{n}]: {a!r} with itself" for n, (a, b) in enumerate(study.compare) if a == b)
    sections = {model.label: Case(study, model).recipe(0).data for model in study.models}
    for (one, left), (other, right) in itertools.pairwise(sections.items()):
        if left != right:
            yield f"models: {one} and {other} have different [data] sections; set them in the study's own [set]"

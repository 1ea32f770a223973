"""The settings of a study, STUDY.toml: which models, seeds, placebos and comparisons.

    title = "Does the fusion earn its keep?"
    seeds = [0, 1, 2]
    metric = "ndcg@20"           # tuned on its validation value; tested and drawn
    metrics = ["recall@20"]      # tested as well
    placebos = ["none", "shuffled"]
    baseline = "z-sum"           # every model is tested against it
    compare = [["hybrid", "hybrid-static"]]
    trials = 20                  # settings tried per model, data set and placebo: the same number for all
    decoys = 1500                # unclicked items, candidates of all models (text/decoys.py)
    [[models]]
    recipe = "hybrid"            # a packaged recipe, or a file (beside STUDY.toml, or from the current folder)
    set = { "text.max_tokens" = 64 }
    tune = { "model.gate.learning_rate" = { low = 1e-4, high = 1e-2, log = true } }

A *variant* is a model with its own texts, or with a placebo in their place. A variant, a data set and a seed make one
fit (plan.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from graphllmrec.errors import EvaluationError
from graphllmrec.evaluation.metrics import parse_metric
from graphllmrec.recipe import Recipe, flatten, load_recipe
from graphllmrec.settings import Condition, Config
from graphllmrec.text.decoys import AUTO

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
        """The smallest and the largest value, with the type of the setting."""
        return [int(self.low), int(self.high)] if self.whole else [self.low, self.high]


def _of_text(key: str) -> bool:
    return key.split(".")[0] == "text"


def _flat_settings(value: Any) -> Any:
    return dict(flatten(value)) if isinstance(value, Mapping) else value


def _flat_space(value: Any) -> Any:
    return dict(flatten(value, until={"low", "high"})) if isinstance(value, Mapping) else value


def _kind(value: Any) -> str:
    return "range" if isinstance(value, Mapping | Range) else "list"


# Told apart by type before validation, so that one problem is not reported twice.
Values = Annotated[
    Annotated[Range, Tag("range")] | Annotated[tuple[Any, ...], Field(max_length=1_000), Tag("list")],
    Discriminator(_kind),
]
Settings = Annotated[dict[str, Any], BeforeValidator(_flat_settings)]  # {"text.max_tokens": 64}
Space = Annotated[dict[str, Values], BeforeValidator(_flat_space)]  # {"model.l2": the values to try}
Placebos = tuple[Annotated[str, Field(pattern=r"^[\w-]+$")], ...]  # also names of folders
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1, max_length=10_000)]


class StudyModel(Config):
    """One model of a study."""

    recipe: str = Field(min_length=1, description="a packaged recipe, or a recipe file")
    name: str = Field("", pattern=r"^([A-Za-z0-9][\w .+-]*)?$", description="label in the tables; default: the recipe")
    overrides: Settings = Field({}, alias="set", description="settings that replace those of the recipe")
    tune: Space = Field({}, description="settings to search on validation: a list, or {low, high, log, int}")
    placebos: Placebos | None = Field(None, description="instead of the study's placebos")
    seeds: Seeds | None = Field(
        None, description="instead of the study's seeds; one is enough for a model without randomness"
    )

    @field_validator("tune")
    @classmethod
    def _has_values(cls, value: Space) -> Space:
        for key, values in value.items():
            if not isinstance(values, Range) and not values:
                raise ValueError(f"{key}: nothing to try in an empty list")
        return value

    @property
    def label(self) -> str:
        """Name of the model in the tables."""
        return self.name or Path(self.recipe).stem


class Study(Config):
    """A validated study, without the data it is run on."""

    title: str = Field("", description="heading of the tables")
    notes: str = Field("", description="text that stands above the tables")
    seeds: Seeds = (0,)
    metric: str = Field("ndcg@20", description="tuned on its validation value; tested, with strata, and drawn")
    metrics: tuple[str, ...] = Field((), description="further metrics that are shown and tested")
    placebos: Placebos = Field((), description="values of text.placebo for models that read text")
    baseline: str | None = Field(None, description="the model that every other one is tested against")
    compare: tuple[tuple[str, str], ...] = Field((), description='further paired tests: [["hybrid", "ease"], …]')
    trials: int = Field(
        20, ge=1, le=1_000_000, description="settings tried per model, data set and placebo that has a search space"
    )
    tune_seed: int = Field(0, ge=0, lt=2**63, description="of the search, and of every fit made for it")
    tune_placebos: bool = Field(
        True, description="a search of its own for each placebo; false: use the settings found without a placebo"
    )
    decoys: int = Field(0, ge=0, le=10_000_000, description="unclicked items, candidates of all models")
    decoys_from: str = Field(AUTO, min_length=1, description='"auto": made of the catalogue; or a data folder')
    keep_models: bool = Field(False, description="keep the fitted models, not only their figures")
    overrides: Settings = Field({}, alias="set", description="settings for all models, e.g. data.k_core")
    models: tuple[StudyModel, ...] = Field(min_length=1, max_length=200)

    def conditions(self) -> Iterator[Condition]:
        """What settings need of each other."""
        yield Condition("decoys_from", self.decoys > 0, "decoys above 0")

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
    def variants(self) -> tuple[Variant, ...]:
        """Every model, and after it the model under each placebo; models that read no text have no placebos."""
        found = []
        for model in self.models:
            own = Variant(self, model)
            found.append(own)
            if own.reads_text:
                found += [Variant(self, model, placebo) for placebo in own.placebos if placebo != NO_PLACEBO]
        return tuple(found)

    def pairs(self) -> list[tuple[str, str]]:
        """Labels of the variants to compare: (a, b) tests whether a is better than b.

        Every model against the baseline, the pairs of `compare`, and every model against each of its own placebos.
        """
        base = self.baseline
        found = [(model.label, base) for model in self.models if base is not None and base != model.label]
        own = [(variant.model.label, variant.label) for variant in self.variants if variant.placebo != NO_PLACEBO]
        return list(dict.fromkeys([*found, *self.compare, *own]))


@dataclass(frozen=True)
class Variant:
    """A model with its own texts, or with a placebo in their place."""

    study: Study
    model: StudyModel
    placebo: str = NO_PLACEBO

    @property
    def label(self) -> str:
        """ "hybrid", or "hybrid [shuffled]" under a placebo."""
        return self.model.label if self.placebo == NO_PLACEBO else f"{self.model.label} [{self.placebo}]"

    @property
    def placebos(self) -> tuple[str, ...]:
        """The placebos given for the model, whether or not it reads text."""
        return tuple(dict.fromkeys(self.study.placebos if self.model.placebos is None else self.model.placebos))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the fits."""
        return self.model.seeds or self.study.seeds

    @property
    def reads_text(self) -> bool:
        """Does the model read item or user text? Only then a placebo of the text changes anything."""
        both = {**self.study.overrides, **self.model.overrides}
        settings = {key: value for key, value in both.items() if not _of_text(key)}
        return load_recipe(self.model.recipe, settings).build_model().abilities.reads_text

    def _shared_settings(self) -> dict[str, Any]:
        """The settings for all models, without those of [text] for a model that reads none."""
        shared = self.study.overrides
        if any(map(_of_text, shared)) and not self.reads_text:
            return {key: value for key, value in shared.items() if not _of_text(key)}
        return shared

    def recipe(self, seed: int, tuned: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe of one fit. Raises RecipeError."""
        metrics = self.study.all_metrics
        own = {
            "seed": seed,
            "evaluate.metric": metrics[0],
            "evaluate.ks": sorted({parse_metric(m)[1] for m in metrics}),
            "evaluate.decoys": self.study.decoys,
            "evaluate.decoys_from": self.study.decoys_from,
            "evaluate.decoys_seed": 0,
        }
        placebo = {} if self.placebo == NO_PLACEBO else {PLACEBO_KEY: self.placebo}
        settings = {**self._shared_settings(), **self.model.overrides, **(tuned or {}), **placebo}
        return load_recipe(self.model.recipe, {**settings, **own})

"""Read and check a study: every problem of it, of its recipes and of its search spaces is reported at once."""

from __future__ import annotations

import difflib
import itertools
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from graphllmrec.errors import RecipeError
from graphllmrec.study.config import PLACEBO_KEY, Range, Study, StudyModel, Variant
from graphllmrec.text.decoys import AUTO
from graphllmrec.toml import check_values, read_toml

RENAMED = {"controls": "placebos", "tune_controls": "tune_placebos"}  # keys of version 0.1
RESERVED = {  # settings that a study decides
    "seed": "the study sets it (seeds)",
    "evaluate": "the study sets it (metric, metrics, decoys, decoys_from)",
    "data": "it must be the same for all models; use the study's own [set]",
    PLACEBO_KEY: "it is set by placebos",
}


def load_study(source: str | Path | Mapping[str, Any] | Study) -> Study:
    """A checked study from a TOML file, plain values, or a Study. Raises RecipeError listing every problem.

    A recipe that is a file, and a folder of decoys, are looked for beside the study file first; the study then holds
    the whole path.
    """
    if isinstance(source, Study):
        return source
    if isinstance(source, Mapping):
        values, label = check_values(source, "study"), "study"
    else:
        values, label = _read(Path(source)), str(source)
    values = _with_new_keys(values, label)
    problems, study = [], None
    try:
        study = Study.model_validate(values)
    except ValidationError as error:
        # pydantic reports a list without a valid entry as too short as well, although it is not.
        problems += [_problem(e) for e in error.errors() if e["type"] != "too_short" or not e["input"]]
    problems += _model_problems(values, study)
    if study is not None and not problems:
        problems += _cross_problems(study)
    if problems or study is None:
        raise RecipeError(list(dict.fromkeys(problems)), label)
    return study


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RecipeError(["no such file; see docs/guides/study.md for what a study file holds"], str(path))
    values = read_toml(path)
    if (folder := path.parent / str(values.get("decoys_from", AUTO))).is_dir():
        values["decoys_from"] = str(folder)
    for model in values.get("models", []) if isinstance(values.get("models"), list) else ():
        beside = path.parent / str(model.get("recipe", "")) if isinstance(model, dict) else path.parent
        if beside.is_file():
            model["recipe"] = str(beside)
    return values


def _with_new_keys(values: Mapping[str, Any], label: str) -> dict[str, Any]:
    """`values` with the keys of version 0.1 under their new names, each with a FutureWarning."""
    found = {}
    for key, value in values.items():
        new = RENAMED.get(key, key)
        if new != key:
            note = (
                f"{label}: {key!r} is now called {new!r}; please rename it, a later version will not read the old name"
            )
            warnings.warn(note, FutureWarning, stacklevel=3)
            if new in values:
                raise RecipeError([f"{key}: {new} is given as well, which is the new name of this key"], label)
        if key == "models" and isinstance(value, list | tuple):
            value = [_with_new_keys(model, label) if isinstance(model, Mapping) else model for model in value]
        found[new] = value
    return found


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
    shown = "(found" in message or isinstance(entry["input"], Mapping) or repr(entry["input"]) in message
    return f"{key}: {message}" + ("" if shown or message == "missing" else f" (found {entry['input']!r})")


def _model_problems(values: Mapping[str, Any], study: Study | None) -> Iterator[str]:
    """What is wrong with the recipes, settings and search spaces of the models that are valid by themselves."""
    if study is None:  # something else is wrong: the models are checked with the defaults of the rest
        try:
            study = Study.model_validate({"models": [{"recipe": "popularity"}], "set": values.get("set", {})})
        except ValidationError:
            return
        models = list(_valid_models(values.get("models")))
    else:
        models = list(enumerate(study.models))
        yield from _reserved("set", study.overrides, {"seed", "evaluate", PLACEBO_KEY})
    for number, model in models:
        yield from _variant_problems(Variant(study, model), f"models[{number}]")


def _valid_models(models: Any) -> Iterator[tuple[int, StudyModel]]:
    for number, values in enumerate(models if isinstance(models, list) else ()):
        try:
            yield number, StudyModel.model_validate(values)
        except ValidationError:
            continue  # reported already


def _variant_problems(variant: Variant, where: str) -> Iterator[str]:
    """What is wrong with one model: its recipe, settings, search space and placebos."""
    model = variant.model
    yield from _reserved(f"{where}.set", model.overrides, set(RESERVED))
    yield from _reserved(f"{where}.tune", model.tune, set(RESERVED))
    try:
        variant.recipe(0)
    except RecipeError as error:
        yield from (f"{where} ({model.recipe}): {problem}" for problem in error.problems)
        return
    yield from _space_problems(variant, where)
    for placebo in variant.placebos if variant.reads_text else ():
        try:
            Variant(variant.study, model, placebo).recipe(0)
        except RecipeError as error:
            yield from (f"{where}, placebo {placebo!r}: {problem}" for problem in error.problems)


def _reserved(where: str, settings: Mapping[str, Any], reserved: set[str]) -> Iterator[str]:
    for key in settings:
        for name in reserved & {key, key.split(".")[0]}:
            yield f"{where}.{key}: cannot be set here: {RESERVED[name]}"


def _space_problems(variant: Variant, where: str) -> Iterator[str]:
    """Every value of a list and both ends of a range must be a possible value of its setting."""
    for key, values in variant.model.tune.items():
        for value in values.ends() if isinstance(values, Range) else values:
            try:
                variant.recipe(0, {key: value})
            except RecipeError as error:
                yield from (f"{where}.tune.{key}: {problem}" for problem in error.problems)


def _cross_problems(study: Study) -> Iterator[str]:
    """What is wrong between the parts of a study that are each in order."""
    labels = [model.label for model in study.models]
    for label in dict.fromkeys(label for label in labels if labels.count(label) > 1):
        yield f"models: {label!r} is given twice; give them a name each"
    known = {variant.label: None for variant in study.variants}
    named = [("baseline", study.baseline)] if study.baseline is not None else []
    named += [(f"compare[{place}]", name) for place, pair in enumerate(study.compare) for name in pair]
    for where, name in named:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            yield f"{where}: no model is called {name!r}; {hint}known: {', '.join(known)}"
    yield from (f"compare[{n}]: {a!r} with itself" for n, (a, b) in enumerate(study.compare) if a == b)
    sections = {model.label: Variant(study, model).recipe(0).data for model in study.models}
    for (one, left), (other, right) in itertools.pairwise(sections.items()):
        if left != right:
            yield f"models: {one} and {other} have different [data] sections; set them in the study's own [set]"

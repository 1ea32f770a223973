"""The study folder, and what in it still belongs to the study as it is now.

    study.toml                       the study as it was last run, defaults written out
    cells/DATA/MODEL/CONTROL/
        trials.jsonl                 the search: a line that says what was searched, and a line per trial
        trial-3/                     a trial's fit while it runs
        seed-0/run/                  the fit: its recipe, logs, metrics and per-user values; with keep_models all of it
        seed-0/cell.json             what was fitted, and how long it took; written last, so it marks a finished cell
        seed-0/failed.json           instead of it: the error of a cell that failed; tried again on the next run
    stages/DATA/                     what was trained and may come up again, while cells of this data are open
    study.json, study.md, index.html the tables

Figures are taken over from an earlier run where recipe, data and search are those of the study as it is now. Whatever
else differs (a title, a comparison, one more model) only changes the tables.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import tomli_w

from graphllmrec.errors import CheckpointError, RecipeError
from graphllmrec.io import write_text
from graphllmrec.recipe import Recipe, load_recipe
from graphllmrec.study.plan import Case, Range, Study
from graphllmrec.study.search import Trial, best_trial, budget

State = Literal["done", "failed", "open"]


@dataclass(frozen=True)
class Source:
    """A data folder of the study."""

    name: str  # of the folder
    path: Path
    fingerprint: str  # run.fingerprint of what was read
    stages: Path  # where fits leave trained stages for others with the same ones


@dataclass(frozen=True)
class Search:
    """The search for the settings of a case on one data set."""

    folder: Path
    source: Source
    case: Case

    @property
    def size(self) -> int:
        """How many trials it takes; 0: nothing to tune."""
        return budget(self.case.model.tune, self.case.study.trials)

    @cached_property
    def spec(self) -> dict[str, Any]:
        """What decides the outcome of a trial, and which are made."""
        study, model = self.case.study, self.case.model
        space = {key: v.model_dump(by_alias=True) if isinstance(v, Range) else list(v) for key, v in model.tune.items()}
        spec = {
            "data": self.source.fingerprint,
            "recipe": _plain(self.case, study.tune_seed),
            "tune": space,
            "metric": study.metric,
        }
        return dict(json.loads(json.dumps(spec)))  # as it will be read

    def stored_spec(self) -> dict[str, Any] | None:
        """What the trials on disk were made for; None where there are none."""
        lines = self._lines()
        return lines[0] if lines else None

    def trials(self) -> list[Trial]:
        """Trials made so far for the search as it is now; none where all of a whole search failed: it is made again."""
        lines = self._lines()
        if not lines or not _same(lines[0], self.spec):
            return []
        found = [Trial(**line) for line in lines[1:]][: self.size]
        return [] if len(found) == self.size and best_trial(found) is None else found

    def keep(self, trials: Sequence[Trial]) -> None:
        """Write all trials, in one step."""
        lines = [self.spec, *(trial.to_json() for trial in trials)]
        write_text(self.folder / "trials.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def chosen(self) -> dict[str, Any] | None:
        """The best settings of a finished search; None while it is not finished, or when all trials failed."""
        trials = self.trials()
        best = best_trial(trials)
        return best.settings if best is not None and len(trials) == self.size else None

    def _lines(self) -> list[dict[str, Any]]:
        path = self.folder / "trials.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


@dataclass(frozen=True)
class Cell:
    """One fit of the study: a case, a data set, a seed."""

    folder: Path
    source: Source
    case: Case
    seed: int
    search: Search  # of the settings; of another case where placebos take over what was found without

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.source.name} · {self.case.label} · seed {self.seed}"

    def settings(self) -> dict[str, Any] | None:
        """Tuned settings, {} without any; None while they are not found."""
        return self.search.chosen() if self.search.size else {}

    def spec(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What decides the figures of this cell."""
        return {"data": self.source.fingerprint, "recipe": _plain(self.case, self.seed, settings)}

    def searched(self) -> dict[str, Any]:
        """How the settings are found; {} where nothing is tuned."""
        return {"tune": self.search.spec["tune"], "trials": self.search.size} if self.search.size else {}

    def about(self) -> dict[str, Any]:
        """What cell.json says; {} without it."""
        path = self.folder / "cell.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return found

    def error(self) -> str | None:
        """The error that the last attempt ended with."""
        path = self.folder / "failed.json"
        return str(json.loads(path.read_text(encoding="utf-8"))["error"]) if path.is_file() else None

    def state(self) -> State:
        """Are the figures there, for the study as it is now?"""
        about, settings = self.about(), self.settings()
        if about and settings is not None and _same(about["spec"], self.spec(settings)):
            return "done"
        return "open" if self.error() is None else "failed"


@dataclass(frozen=True)
class Plan:
    """All searches and cells of a study on its data, in the order in which they are run."""

    study: Study
    out: Path
    sources: tuple[Source, ...]

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """Every model under every placebo."""
        return self.study.cases

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every cell."""
        return tuple(cell for source in self.sources for case in self.cases for cell in self.cells_of(source, case))

    @cached_property
    def searches(self) -> tuple[Search, ...]:
        """Every search that has something to find."""
        found = {cell.search.folder: cell.search for cell in self.cells if cell.search.size}
        return tuple(found.values())

    def cells_of(self, source: Source, case: Case) -> list[Cell]:
        """The cells of one case on one data set."""
        tuned = case if self.study.tune_placebos else Case(self.study, case.model)
        search = Search(self._folder(source, tuned), source, tuned)
        folder = self._folder(source, case)
        return [Cell(folder / f"seed-{seed}", source, case, seed, search) for seed in case.seeds]

    def _folder(self, source: Source, case: Case) -> Path:
        return self.out / "cells" / source.name / case.model.label / case.placebo

    def require_unchanged(self) -> None:
        """Raise CheckpointError when the study or its data changed in a way that finished work would be lost by."""
        lost = list(self._lost())
        if lost:
            listed = "\n".join(f"  - {line}" for line in lost[:8])
            more = f"\n  - and {len(lost) - 8} more" if len(lost) > 8 else ""
            raise CheckpointError(
                f"{self.out} holds results of something else ({len(lost)} of them):\n{listed}{more}\n"
                "  hint: choose another --out, or add --overwrite to run these anew (the others are kept)"
            )

    def _lost(self) -> Iterator[str]:
        for search in self.searches:
            stored = search.stored_spec()
            if stored is not None and not _same(stored, search.spec):
                yield f"search of {search.source.name} · {search.case.label}: {_difference(search.spec, stored)}"
        for cell in self.cells:
            about = cell.about()
            if not about:
                continue
            # Whether another search would find other settings is only known once it was made.
            now, before = {**cell.spec({}), **cell.searched()}, {**about["base"], **about["searched"]}
            if not _same(before, now):
                yield f"{cell.label}: {_difference(now, before)}"

    def begin(self) -> None:
        """Make the study folder, or take it over. Raises CheckpointError when it holds anything else."""
        marker = self.out / "study.toml"
        if self.out.exists() and not marker.is_file() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise CheckpointError(f"{self.out} is not empty and not a study folder; choose another --out")
        write_text(marker, tomli_w.dumps(self.study.values()))


def _plain(case: Case, seed: int, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The recipe of a fit without what changes nothing about it."""
    return _without_words(case.recipe(seed, settings))


def _without_words(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in recipe.values().items() if key not in ("title", "notes")}


def _same(stored: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Equal, where settings that the package has got since are taken at their defaults."""
    return not _differences(now, stored)


def _difference(now: Mapping[str, Any], stored: Mapping[str, Any]) -> str:
    return "; ".join(_differences(now, stored)[:3])


def _differences(now: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """ "recipe.model.l2: 50.0, not 100.0" for everything that differs."""
    left, right = _flat(now), _flat(_read_today(stored))
    out = []
    for key in sorted(left.keys() | right.keys()):
        if left.get(key) != right.get(key):
            changed = "the data changed" if key == "data" else f"{key}: {left.get(key)!r}, not {right.get(key)!r}"
            out.append(changed)
    return out


def _read_today(stored: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {**stored, "recipe": _without_words(load_recipe(stored["recipe"]))}
    except RecipeError:
        return dict(stored)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out

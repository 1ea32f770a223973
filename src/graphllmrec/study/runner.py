"""Run a study: tune every case on validation, fit and evaluate every cell, write the tables. What is there is kept."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from graphllmrec import run_folder as run
from graphllmrec.data.read import load_data
from graphllmrec.data.tables import Dataset
from graphllmrec.errors import CheckpointError, DataError, GraphLLMRecError, Interrupted
from graphllmrec.io import discard, remove_leftovers, write_text
from graphllmrec.progress import RunLogger
from graphllmrec.recipe import Recipe
from graphllmrec.recommender import Recommender
from graphllmrec.report.format import settings_text
from graphllmrec.report.study_report import write_study
from graphllmrec.study.display import Display, FitLogger, Kind
from graphllmrec.study.folder import Cell, Plan, Search, Source
from graphllmrec.study.outcome import outcome_of
from graphllmrec.study.plan import Case, Study, load_study
from graphllmrec.study.search import Trial, needs_optuna, next_settings, require_optuna

KEPT = ("recipe.toml", "log.jsonl", "timings.jsonl")  # of a run whose model is not kept, beside its figures
FIGURES = ("metrics-", "per-user-", "targets-")


def run_study(
    study: Study | str | Path | Mapping[str, Any],
    data: Sequence[str | Path],
    out: str | Path,
    *,
    overwrite: bool = False,
    display: Display | None = None,
) -> dict[str, Any]:
    """Run what is missing of a study in the folder `out`, and write its tables. Returns what study.json holds.

    `data` are data folders with names of their own. A cell that fails is recorded, does not stop the others, and is
    tried again by the next call. Raises RecipeError for an invalid study, DataError for unreadable data,
    CheckpointError when `out` holds results that no longer belong to the study (unless `overwrite`), and Interrupted on
    Ctrl-C or SIGTERM; the same call then goes on where it stopped.
    """
    plan = plan_study(study, data, out)
    if not overwrite:
        plan.require_unchanged()
    if any(needs_optuna(search.case.model.tune, plan.study.trials) for search in plan.searches):
        require_optuna()
    plan.begin()
    with display or Display(quiet=True) as shown:
        try:
            _run(plan, shown)
            shown.say("tests and tables")
            found = outcome_of(plan)
            write_study(plan.out, found)
        except (Interrupted, KeyboardInterrupt) as error:
            done = sum(cell.state() == "done" for cell in plan.cells)
            what = str(error) or "stopped"
            raise Interrupted(
                f"{what}; {done} of {len(plan.cells)} cells are done. The same command goes on from here."
            ) from None
    return found


def plan_study(study: Study | str | Path | Mapping[str, Any], data: Sequence[str | Path], out: str | Path) -> Plan:
    """Everything a study consists of on its data. Raises RecipeError and DataError."""
    study, paths = load_study(study), [Path(path) for path in data]
    if not paths:
        raise DataError("a study needs at least one data folder")
    names = [path.resolve().name for path in paths]
    for name, path in zip(names, paths, strict=True):
        if names.count(name) > 1:
            raise DataError("two data folders of the same name", value=name, hint="rename one, or make a link to it")
        if not path.is_dir():
            raise DataError("no such data folder", value=path)
    recipe = study.cases[0].recipe(0)
    sources = [
        Source(name, path, run.fingerprint(_read(path, recipe)), Path(out) / "stages" / name)
        for name, path in zip(names, paths, strict=True)
    ]
    return Plan(study, Path(out), tuple(sources))


def fits_left(plan: Plan) -> list[Kind]:
    """The kind of every fit that is still to be made."""
    trials = [
        (search.source.name, search.case.label)
        for search in plan.searches
        for _ in range(search.size - len(search.trials()))
    ]
    return trials + [(cell.source.name, cell.case.label) for cell in plan.cells if cell.state() != "done"]


def _read(path: Path, recipe: Recipe) -> Dataset:
    return load_data(path, min_rating=recipe.data.min_rating, k_core=recipe.data.k_core)


def _run(plan: Plan, display: Display) -> None:
    left = fits_left(plan)
    total = len(plan.cells) + sum(search.size for search in plan.searches)
    display.plan(left, _known_times(plan), total - len(left))
    for source in plan.sources:
        cells = [cell for cell in plan.cells if cell.source == source and cell.state() != "done"]
        if not cells:
            continue
        dataset = _read(source.path, plan.cases[0].recipe(0))
        if run.fingerprint(dataset) != source.fingerprint:
            raise CheckpointError(f"{source.path} changed while the study was running")
        for note in dataset.notes:
            display.say(f"{source.name}: {note}")
        hopeless: dict[Path, str] = {}  # searches of which all trials failed: once a run is enough
        for cell in cells:
            _attempt(cell, dataset, display, hopeless)
        if all(cell.state() == "done" for cell in cells):
            _remove(source.stages)


def _known_times(plan: Plan) -> dict[Kind, list[float]]:
    times: dict[Kind, list[float]] = {}
    for cell in plan.cells:
        if about := cell.about():
            times.setdefault((cell.source.name, cell.case.label), []).append(about["seconds"])
    return times


def _attempt(cell: Cell, dataset: Dataset, display: Display, hopeless: dict[Path, str]) -> None:
    """Find the settings where that is still to be done, then fit and evaluate; an error is kept beside the cell."""
    kind = (cell.source.name, cell.case.label)
    try:
        if cell.search.size and cell.settings() is None:
            _tune(cell.search, dataset, display, hopeless)
        display.begin(cell.label)
        valid = _fit(cell, dataset, display)
    except Interrupted:
        raise
    except Exception as error:  # whatever one model does wrong, the others are to be run
        message = str(error).strip() or repr(error)
        known = isinstance(error, GraphLLMRecError)
        said = message if known else f"{type(error).__name__}: {message}"
        about = {"error": said, "traceback": [] if known else traceback.format_exc().splitlines()}
        write_text(cell.folder / "failed.json", json.dumps(about, indent=1) + "\n")
        display.end(f"{cell.label} failed: {said.splitlines()[0]}", kind, failed=True)
        return
    display.end(f"{cell.label}: validation {cell.case.study.metric} {valid:.4f}", kind)


def _tune(search: Search, dataset: Dataset, display: Display, hopeless: dict[Path, str]) -> None:
    """Make the trials that are missing. Raises GraphLLMRecError when every one of them failed."""
    if search.folder in hopeless:
        raise GraphLLMRecError(hopeless[search.folder])
    study, case, usual, trials = search.case.study, search.case, _usual(search.case), search.trials()
    label, kind = f"{search.source.name} · {case.label}", (search.source.name, case.label)
    while (settings := next_settings(case.model.tune, trials, study.trials, study.tune_seed, usual)) is not None:
        what = f"{label} · trial {len(trials) + 1} of {search.size}"
        display.begin(what)
        before = next((trial for trial in trials if trial.settings == settings), None)
        if before is None:
            trial = _trial(search, len(trials), settings, dataset, display)
        else:  # the same fit again would give the same value
            trial = Trial(len(trials), settings, before.value, before.error)
        trials.append(trial)
        search.keep(trials)
        came = f"failed: {trial.error}" if trial.value is None else f"validation {study.metric} {trial.value:.4f}"
        display.end(f"{what} ({settings_text(settings)}): {came}", kind, failed=trial.value is None)
    if search.chosen() is None:
        hopeless[search.folder] = f"all {search.size} trials of the search failed; the first one: {trials[0].error}"
        raise GraphLLMRecError(hopeless[search.folder])


def _trial(search: Search, number: int, settings: dict[str, Any], dataset: Dataset, display: Display) -> Trial:
    """One fit with `settings`, looked at on the validation part only."""
    study, began, folder = search.case.study, time.monotonic(), search.folder / f"trial-{number}"
    value, error = None, None
    try:
        recipe = search.case.recipe(study.tune_seed, settings)
        with FitLogger(display) as logger:
            recommender = _fitted(folder, recipe, dataset, search.source, logger)
            value = recommender.evaluate("valid", logger=logger).overall[study.metric]
    except Interrupted:
        raise
    except Exception as failure:  # settings that cannot work are a result as well
        error = f"{type(failure).__name__}: {failure}".splitlines()[0]
    _remove(folder)
    return Trial(number, settings, value, error, round(time.monotonic() - began, 2))


def _fit(cell: Cell, dataset: Dataset, display: Display) -> float:
    """Fit and evaluate one cell; returns the headline metric on the validation part."""
    settings = cell.settings()
    assert settings is not None
    began, folder = time.monotonic(), cell.folder / "run"
    if cell.about() or cell.error() is not None:  # of the study as it was before, or of an attempt that failed
        _remove(cell.folder)
    recipe = cell.case.recipe(cell.seed, settings)
    with FitLogger(display) as logger:
        recommender = _fitted(folder, recipe, dataset, cell.source, logger)
        valid, test = (recommender.evaluate(part, logger=logger) for part in ("valid", "test"))
    valid.write(folder)
    test.write(folder)
    about = {
        "spec": cell.spec(settings),
        "base": cell.spec({}),
        "searched": cell.searched(),
        "settings": settings,
        "fit_seconds": json.loads((folder / "model.json").read_text(encoding="utf-8"))["seconds"],
        "seconds": round(time.monotonic() - began, 2),
        "versions": {name: version(name) for name in ("graphllmrec", "torch")},
    }
    write_text(cell.folder / "cell.json", json.dumps(about, indent=1) + "\n")
    if not cell.case.study.keep_models:
        for path in folder.iterdir():
            if path.name not in KEPT and not path.name.startswith(FIGURES):
                path.unlink()
    return valid.overall[cell.case.study.metric]


def _fitted(folder: Path, recipe: Recipe, dataset: Dataset, source: Source, logger: RunLogger) -> Recommender:
    """The fitted recommender of a run folder: taken over, continued, or made, whatever is possible."""
    if folder.is_dir():
        run.tidy(folder)
    state = run.state_of(folder)
    try:
        if state == "finished":  # killed before it was evaluated
            found = Recommender.load(folder)
            same_recipe = found.recipe == recipe.for_data(found.split.ordered)
            if same_recipe and run.read_tables(folder).fingerprint == source.fingerprint:
                return found
        elif state == "interrupted":
            return Recommender.resume(folder, recipe=recipe, data=dataset, logger=logger)
    except CheckpointError:  # of something else, or damaged: a fit that nothing has been read from is made anew
        pass
    if state != "absent":
        _remove(folder)
    return Recommender(recipe).fit(dataset, out=folder, cache=source.stages, logger=logger)


def _usual(case: Case) -> dict[str, Any]:
    """The recipe's own values of the settings that are tuned."""
    values: Any = case.recipe(case.study.tune_seed).values()
    found = {}
    for key in case.model.tune:
        here = values
        for part in key.split("."):
            here = here.get(part) if isinstance(here, dict) else None
        found[key] = here
    return found


def _remove(folder: Path) -> None:
    if folder.exists():
        discard(folder)
    if folder.parent.is_dir():
        remove_leftovers(folder.parent, folder.name)

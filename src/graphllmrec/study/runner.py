"""Run a study: tune on validation, fit and evaluate, write the tables. Finished trials and fits are kept."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from graphllmrec import run_folder as run
from graphllmrec.data.tables import Dataset
from graphllmrec.errors import CheckpointError, GraphLLMRecError, Interrupted
from graphllmrec.io import discard, remove_leftovers, write_text
from graphllmrec.progress import RunLogger
from graphllmrec.recipe import Recipe
from graphllmrec.recommender import Recommender
from graphllmrec.report.format import settings_text
from graphllmrec.report.study_report import write_study
from graphllmrec.study.config import Study, Variant
from graphllmrec.study.display import Display, FitLogger
from graphllmrec.study.folder import FIT, write_study_file
from graphllmrec.study.outcome import summarize
from graphllmrec.study.plan import FitJob, Plan, plan_study, read_source
from graphllmrec.study.search import Kind, Search, Source, Trial, needs_optuna, next_settings, require_optuna

KEPT = ("recipe.toml", "log.jsonl")  # of a run whose model is not kept, beside its figures and timings


def run_study(
    study: Study | str | Path | Mapping[str, Any],
    data: Sequence[str | Path],
    out: str | Path,
    *,
    overwrite: bool = False,
    display: Display | None = None,
) -> dict[str, Any]:
    """Run what is missing of a study in the folder `out`, and write its tables. Returns what study.json holds.

    `data` are data folders with different names. A fit that fails is recorded, does not stop the others, and is tried
    again by the next call. Raises RecipeError for an invalid study, DataError for unreadable data, CheckpointError when
    `out` holds results with other settings or data (unless `overwrite`), and Interrupted on Ctrl-C or SIGTERM; the same
    call then continues where it stopped.
    """
    plan = plan_study(study, data, out)
    if not overwrite:
        plan.require_unchanged()
    if any(needs_optuna(search.variant.model.tune, plan.study.trials) for search in plan.searches):
        require_optuna()
    write_study_file(plan.out, plan.study)
    with display or Display.of_python() as shown:
        for note in plan.notes:
            shown.say(note)
        try:
            _run(plan, shown)
            shown.say("tests and tables")
            found = summarize(plan)
            write_study(plan.out, found)
        except (Interrupted, KeyboardInterrupt) as error:
            done = sum(job.state() == "done" for job in plan.jobs)
            what = str(error) or "stopped"
            raise Interrupted(
                f"{what}; {done} of {len(plan.jobs)} fits are done. The same command goes on from here."
            ) from None
    return found


def fits_left(plan: Plan) -> list[Kind]:
    """The kind of every fit that is still to be made, those of the searches first."""
    trials = [search.kind for search in plan.searches for _ in range(search.size - len(search.trials()))]
    return trials + [job.kind for job in plan.jobs if job.state() != "done"]


def _run(plan: Plan, display: Display) -> None:
    left = fits_left(plan)
    total = len(plan.jobs) + sum(search.size for search in plan.searches)
    display.plan(left, _known_times(plan), total - len(left))
    for source in plan.sources:
        jobs = [job for job in plan.jobs if job.source == source and job.state() != "done"]
        if not jobs:
            continue
        dataset = read_source(plan.study, source.path)
        if run.fingerprint(dataset) != source.fingerprint:
            raise CheckpointError(f"{source.path} changed while the study was running")
        for note in dataset.notes:
            display.say(f"{source.name}: {note}")
        failed: dict[Path, str] = {}  # message of each search without a valid trial: it is made once per run
        for job in jobs:
            _attempt(job, dataset, display, failed)
        if all(job.state() == "done" for job in jobs):
            _remove(source.cache)


def _known_times(plan: Plan) -> dict[Kind, list[float]]:
    times: dict[Kind, list[float]] = {}
    for job in plan.jobs:
        if record := job.record():
            times.setdefault(job.kind, []).append(record["seconds"])
    return times


def _attempt(job: FitJob, dataset: Dataset, display: Display, failed: dict[Path, str]) -> None:
    """Find the settings if they are not found yet, then fit and evaluate; an error is written to failed.json."""
    try:
        if job.search.size and job.settings() is None:
            _tune(job.search, dataset, display, failed)
        display.begin(job.label)
        valid = _fit(job, dataset, display)
    except Interrupted:
        raise
    except Exception as error:  # whatever fails in one model, the others are to be run
        message = str(error).strip() or repr(error)
        known = isinstance(error, GraphLLMRecError)
        text = message if known else f"{type(error).__name__}: {message}"
        record = {"error": text, "traceback": [] if known else traceback.format_exc().splitlines()}
        write_text(job.folder / "failed.json", json.dumps(record, indent=1) + "\n")
        display.end(f"{job.label} failed: {text.splitlines()[0]}", job.kind, failed=True)
        return
    display.end(f"{job.label}: validation {job.variant.study.metric} {valid:.4f}", job.kind)


def _tune(search: Search, dataset: Dataset, display: Display, failed: dict[Path, str]) -> None:
    """Make the trials that are missing. Raises GraphLLMRecError when every one of them failed."""
    if search.folder in failed:
        raise GraphLLMRecError(failed[search.folder])
    variant, trials = search.variant, search.trials()
    study, space, usual = variant.study, variant.model.tune, _usual_settings(variant)
    while (settings := next_settings(space, trials, study.trials, study.tune_seed, usual)) is not None:
        label = f"{search.label} · trial {len(trials) + 1} of {search.size}"
        display.begin(label)
        before = next((trial for trial in trials if trial.settings == settings), None)
        if before is None:
            trial = _trial(search, len(trials), settings, dataset, display)
        else:  # the same fit again would give the same value
            trial = Trial(len(trials), settings, before.value, before.error)
        trials.append(trial)
        search.write(trials)
        result = f"failed: {trial.error}" if trial.value is None else f"validation {study.metric} {trial.value:.4f}"
        display.end(f"{label} ({settings_text(settings)}): {result}", search.kind, failed=trial.value is None)
    if search.best_settings() is None:
        failed[search.folder] = f"all {search.size} trials of the search failed; the first one: {trials[0].error}"
        raise GraphLLMRecError(failed[search.folder])


def _trial(search: Search, number: int, settings: dict[str, Any], dataset: Dataset, display: Display) -> Trial:
    """One fit with `settings`, evaluated on the validation part only."""
    study, began, folder = search.variant.study, time.monotonic(), search.folder / f"trial-{number}"
    value, error = None, None
    try:
        recipe = search.variant.recipe(study.tune_seed, settings)
        with FitLogger(display) as logger:
            recommender = _fitted(folder, recipe, dataset, search.source, logger)
            value = recommender.evaluate("valid", logger=logger).overall[study.metric]
    except Interrupted:
        raise
    except Exception as failure:  # settings that cannot work are a result as well
        error = f"{type(failure).__name__}: {failure}".splitlines()[0]
    _remove(folder)
    return Trial(number, settings, value, error, round(time.monotonic() - began, 2))


def _fit(job: FitJob, dataset: Dataset, display: Display) -> float:
    """Make one fit and evaluate it; returns the headline metric on the validation part."""
    settings, metric = job.settings(), job.variant.study.metric
    assert settings is not None
    began, folder = time.monotonic(), job.folder / "run"
    if job.record() or job.error() is not None:  # of the study as it was before, or of an attempt that failed
        _remove(job.folder)
    recipe = job.variant.recipe(job.seed, settings)
    with FitLogger(display) as logger:
        recommender = _fitted(folder, recipe, dataset, job.source, logger)
        valid, test = (recommender.evaluate(part, logger=logger) for part in ("valid", "test"))
    valid.write(folder)
    test.write(folder)
    record = {
        "spec": job.spec(settings),
        "base": job.spec({}),
        "searched": job.search_spec(),
        "settings": settings,
        "fit_seconds": run.load_about(folder)[0].seconds,
        "seconds": round(time.monotonic() - began, 2),
        "versions": {name: version(name) for name in ("graphllmrec", "torch")},
    }
    write_text(job.folder / FIT, json.dumps(record, indent=1) + "\n")
    if not job.variant.study.keep_models:
        run.forget_model(folder, KEPT)
    return valid.overall[metric]


def _fitted(folder: Path, recipe: Recipe, dataset: Dataset, source: Source, logger: RunLogger) -> Recommender:
    """The fitted recommender of a run folder: loaded where it is finished, else resumed, else fitted."""
    if folder.is_dir():
        run.tidy(folder)
    state = run.state_of(folder)
    try:
        if state == "finished":  # killed before it was evaluated
            found = Recommender.load(folder)
            same_recipe = found.recipe == recipe.for_data(found.split.ordered)
            if same_recipe and run.load_tables(folder).fingerprint == source.fingerprint:
                return found
        elif state == "interrupted":
            return Recommender.resume(folder, recipe=recipe, data=dataset, logger=logger)
    except CheckpointError:  # with other settings, or damaged: no figure has been read from it yet, so it is made anew
        pass
    if state != "absent":
        _remove(folder)
    return Recommender(recipe).fit(dataset, out=folder, cache=source.cache, logger=logger)


def _usual_settings(variant: Variant) -> dict[str, Any]:
    """The recipe's own values of the settings that are tuned."""
    values: Any = variant.recipe(variant.study.tune_seed).values()
    found = {}
    for key in variant.model.tune:
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

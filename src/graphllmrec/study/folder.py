"""The study folder, and which results in it belong to the study as it is now.

    study.toml                       the study as it was last run, defaults written out
    fits/DATA/MODEL/PLACEBO/
        trials.jsonl                 the search: one line with what was searched, and one line per trial
        trial-3/                     a trial's fit while it runs
        seed-0/run/                  the fit: its recipe, logs, metrics and per-user values; with keep_models all of it
        seed-0/fit.json              what was fitted, and how long it took; written last, so it marks a finished fit
        seed-0/failed.json           instead of it: the error of a fit that failed; tried again on the next run
    cache/DATA/                      trained stages that other fits can use, while fits on this data are open
    study.json, study.md, index.html the tables

Results of an earlier run are kept where recipe, data and search are those of the study as it is now. Every other change
(a title, a comparison, one more model) only changes the tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from graphllmrec import recipe as recipes
from graphllmrec.errors import CheckpointError, RecipeError
from graphllmrec.io import sync, write_text
from graphllmrec.recipe import Recipe, load_recipe
from graphllmrec.study.config import Study

STUDY, FITS, FIT, CACHE = "study.toml", "fits", "fit.json", "cache"
OLD_FITS, OLD_FIT, OLD_CACHE = "cells", "cell.json", "stages"  # names of version 0.1


def write_study_file(out: Path, study: Study) -> None:
    """Write study.toml into a new folder or a study folder. Raises CheckpointError when `out` holds anything else."""
    marker = out / STUDY
    if out.exists() and not marker.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} is not empty and not a study folder; choose another --out")
    write_text(marker, tomli_w.dumps(study.values()))


def upgrade(out: Path) -> list[str]:
    """Give the files of a study folder of version 0.1 their new names; returns a note, [] where nothing was done.

    The folder of the fits is renamed last and in one step, so that the next call continues an upgrade that was killed.
    """
    old = out / OLD_FITS
    if not old.is_dir() or not (out / STUDY).is_file() or (out / FITS).exists():
        return []
    if (out / OLD_CACHE).is_dir() and not (out / CACHE).exists():
        (out / OLD_CACHE).rename(out / CACHE)
    for path in old.rglob(OLD_FIT):
        path.rename(path.with_name(FIT))
        sync(path.parent)
    old.rename(out / FITS)
    sync(out)
    return [f"{out} is a study folder of version 0.1: {OLD_FITS}/ was renamed to {FITS}/, each {OLD_FIT} to {FIT}"]


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file of the study folder holds; {} without the file. Raises CheckpointError when damaged."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): delete it to make it again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} cannot be read (it is no JSON object): delete it to make it again")
    return found


def plain_values(recipe: Recipe) -> dict[str, Any]:
    """The values of a recipe that decide the outcome of its fit."""
    return {key: value for key, value in recipe.values().items() if key not in ("title", "notes")}


def differences(now: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """ "recipe.model.l2: 50.0, not 100.0" for everything in which a stored description differs from that of now.

    Settings that the package did not have when `stored` was written count with their defaults.
    """
    lines = recipes.differences(now, _with_defaults(stored))
    return ["the data changed" if line.startswith("data: ") else line for line in lines]


def _with_defaults(stored: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {**stored, "recipe": plain_values(load_recipe(stored["recipe"]))}
    except RecipeError:
        return dict(stored)

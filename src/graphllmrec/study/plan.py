"""All fits of a study on its data, in the order in which they are run, and which of them are done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from graphllmrec.data.prepare import read_dataset
from graphllmrec.data.tables import Dataset
from graphllmrec.errors import CheckpointError, DataError
from graphllmrec.progress import RunLogger
from graphllmrec.run_folder import fingerprint
from graphllmrec.study.config import Study, Variant
from graphllmrec.study.folder import CACHE, FIT, FITS, differences, plain_values, read_json, upgrade
from graphllmrec.study.loading import load_study
from graphllmrec.study.search import Kind, Search, Source

State = Literal["done", "failed", "open"]


@dataclass(frozen=True)
class FitJob:
    """One fit of the study: a variant, a data set, a seed."""

    folder: Path
    source: Source
    variant: Variant
    seed: int
    search: Search  # for the settings; the search of the model without placebo where tune_placebos is false

    @property
    def label(self) -> str:
        """ "books · ease · seed 0"."""
        return f"{self.source.name} · {self.variant.label} · seed {self.seed}"

    @property
    def kind(self) -> Kind:
        """Data set and variant."""
        return self.source.name, self.variant.label

    def settings(self) -> dict[str, Any] | None:
        """Tuned settings, {} where nothing is tuned; None while they are not found."""
        return self.search.best_settings() if self.search.size else {}

    def spec(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What decides the figures of this fit."""
        recipe = self.variant.recipe(self.seed, settings)
        return {"data": self.source.fingerprint, "recipe": plain_values(recipe)}

    def search_spec(self) -> dict[str, Any]:
        """How the settings are found; {} where nothing is tuned."""
        return {"tune": self.search.spec["tune"], "trials": self.search.size} if self.search.size else {}

    def record(self) -> dict[str, Any]:
        """The contents of fit.json; {} without it."""
        return read_json(self.folder / FIT)

    def error(self) -> str | None:
        """The error of the last attempt; None where it did not fail."""
        found = read_json(self.folder / "failed.json")
        return str(found["error"]) if found else None

    def state(self) -> State:
        """ "done" where the results are those of the study as it is now."""
        record, settings = self.record(), self.settings()
        if record and settings is not None and not differences(self.spec(settings), record["spec"]):
            return "done"
        return "open" if self.error() is None else "failed"


@dataclass(frozen=True)
class Plan:
    """All searches and fits of a study on its data, in the order in which they are run."""

    study: Study
    out: Path
    sources: tuple[Source, ...]
    notes: tuple[str, ...] = ()  # what was changed in the study folder

    @cached_property
    def variants(self) -> tuple[Variant, ...]:
        """Every model with and without placebos."""
        return self.study.variants

    @cached_property
    def jobs(self) -> tuple[FitJob, ...]:
        """Every fit."""
        return tuple(job for source in self.sources for one in self.variants for job in self.jobs_for(source, one))

    @cached_property
    def searches(self) -> tuple[Search, ...]:
        """Every search that has something to find."""
        found = {job.search.folder: job.search for job in self.jobs if job.search.size}
        return tuple(found.values())

    def jobs_for(self, source: Source, variant: Variant) -> list[FitJob]:
        """The fits of one variant on one data set, one per seed."""
        tuned = variant if self.study.tune_placebos else Variant(self.study, variant.model)
        search = Search(self._folder(source, tuned), source, tuned)
        folder = self._folder(source, variant)
        return [FitJob(folder / f"seed-{seed}", source, variant, seed, search) for seed in variant.seeds]

    def _folder(self, source: Source, variant: Variant) -> Path:
        return self.out / FITS / source.name / variant.model.label / variant.placebo

    def require_unchanged(self) -> None:
        """Raise CheckpointError when the study or its data changed so that finished results would be lost."""
        lost = list(self._lost())
        if lost:
            listed = "\n".join(f"  - {line}" for line in lost[:8])
            more = f"\n  - and {len(lost) - 8} more" if len(lost) > 8 else ""
            raise CheckpointError(
                f"{self.out} holds {len(lost)} results with other settings or data:\n{listed}{more}\n"
                "  hint: choose another --out, or add --overwrite to run these anew (the others are kept)"
            )

    def _lost(self) -> Iterator[str]:
        """A line for each stored result that the study as it is now would replace, with what differs."""
        for search in self.searches:
            stored = search.stored_spec()
            if stored is not None and (changed := differences(search.spec, stored)):
                yield f"search of {search.label}: {'; '.join(changed[:3])}"
        for job in self.jobs:
            record = job.record()
            if not record:
                continue
            # Whether another search would find other settings is only known once it was made.
            now, before = {**job.spec({}), **job.search_spec()}, {**record["base"], **record["searched"]}
            if changed := differences(now, before):
                yield f"{job.label}: {'; '.join(changed[:3])}"


def plan_study(study: Study | str | Path | Mapping[str, Any], data: Sequence[str | Path], out: str | Path) -> Plan:
    """All fits of a study on its data; files of a version 0.1 folder are renamed. Raises RecipeError, DataError."""
    study, paths, out = load_study(study), [Path(path) for path in data], Path(out)
    if not paths:
        raise DataError("a study needs at least one data folder")
    names = [path.resolve().name for path in paths]
    for name, path in zip(names, paths, strict=True):
        if names.count(name) > 1:
            raise DataError("two data folders of the same name", value=name, hint="rename one, or make a link to it")
        if not path.is_dir():
            raise DataError("no such data folder", value=path)
    sources = [
        Source(name, path, fingerprint(read_source(study, path)), out / CACHE / name)
        for name, path in zip(names, paths, strict=True)
    ]
    return Plan(study, out, tuple(sources), tuple(upgrade(out)))


def read_source(study: Study, path: Path) -> Dataset:
    """One data folder, filtered as the study says; the settings are the same for all its models."""
    with RunLogger(quiet=True) as logger:  # each fit tells the notes
        return read_dataset(path, study.variants[0].recipe(0).data, logger)

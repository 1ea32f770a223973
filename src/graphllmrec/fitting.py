"""Fitting a recommender: a recipe and data in, a fitted model out, in memory or in a run folder that can be resumed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from graphllmrec import run_folder as run
from graphllmrec.data.config import DataConfig
from graphllmrec.data.frames import Table
from graphllmrec.data.prepare import Data, read_and_split
from graphllmrec.data.split import Split
from graphllmrec.data.tables import Dataset
from graphllmrec.data.tags import left_out_note
from graphllmrec.errors import CheckpointError
from graphllmrec.fitted import Fitted
from graphllmrec.progress import RunLogger, open_logger
from graphllmrec.protocol import Earlier, Findings, Model, Task
from graphllmrec.recipe import Recipe, differences
from graphllmrec.text.prepare import prepare_encoder, prepare_text
from graphllmrec.train.checkpoint import EVERY, Checkpoints

WHOLE = {"data.split": "none"} | {  # no part is held out, so shares of the parts have their defaults
    f"data.{name}": DataConfig.model_fields[name].default for name in ("valid_ratio", "test_ratio", "cold_ratio")
}
_NOTHING_HELD_OUT = (
    "nothing is held out (data.split = none): what is tuned keeps its default, and every stage trains all its epochs; "
    "fit with a split first, and `refit` that run on all data"
)


@dataclass(frozen=True)
class Fit:
    """What a fit made."""

    recipe: Recipe  # with [unordered] merged in, or dropped
    fitted: Fitted
    findings: Findings | run.RunFiles | None  # what it found on validation, or where that is kept

    def read_findings(self) -> Findings | None:
        """What the fit found; None for a run that kept nothing. Raises CheckpointError when its file is damaged."""
        return run.read_findings(self.findings) if isinstance(self.findings, run.RunFiles) else self.findings


@dataclass(frozen=True)
class Keep:
    """Where a fit is kept, and how often its training writes a checkpoint."""

    out: Path
    overwrite: bool = False
    cache: Path | None = None  # trained stages that other runs share
    every: float = EVERY  # seconds

    @staticmethod
    def of(out: str | Path | None, overwrite: bool, cache: str | Path | None, every: float) -> Keep | None:
        """From the arguments of the front door; None without a folder."""
        return None if out is None else Keep(Path(out), overwrite, None if cache is None else Path(cache), every)


@dataclass(frozen=True)
class Origin:
    """The earlier fit that a refit takes over."""

    dataset: Dataset
    findings: Findings
    warm: float  # share of the epochs to train from the earlier weights

    @staticmethod
    def of(fit: Fit, warm: float) -> Origin:
        """Raises CheckpointError for a run that kept no findings."""
        findings = fit.read_findings()
        if findings is None:
            raise CheckpointError("this run was fitted by a version that kept no findings; fit it again, then refit it")
        return Origin(fit.fitted.dataset, findings, warm)

    def earlier(self, dataset: Dataset) -> Earlier:
        """What a fit on `dataset` takes over: its users and items are found by their ids."""
        items = self.dataset.items.ids.rows(dataset.items.ids.ids.to_list())
        items[items >= self.findings.num_items] = -1  # added since the fit
        return Earlier(self.findings, self.dataset.users.rows(dataset.users.ids.to_list()), items, self.warm)


def fit_new(
    recipe: Recipe,
    data: Data,
    items: Table | None = None,
    *,
    keep: Keep | None = None,
    origin: Origin | None = None,
    logger: RunLogger | None = None,
) -> Fit:
    """Read, split and encode `data`, and fit the model of `recipe`; see `Recommender.fit` and `Recommender.refit`."""
    if keep is not None:
        run.require_free(keep.out, keep.overwrite)
    with open_logger(logger) as logger:
        logger.new_run()
        dataset, split = read_and_split(data, recipe.data, recipe.seed, logger, items)
        recipe = recipe.for_data(split.ordered)
        model = recipe.build_model()
        dataset = prepare_encoder(model.abilities, dataset, recipe.text)
        earlier = None if origin is None else origin.earlier(dataset)
        if origin is None and split.kind == "none":
            logger.say(f"note: {_NOTHING_HELD_OUT}")
        if split.kind == "none" and (lacking := left_out_note(dataset)):
            logger.say(f"note: {lacking}, and a run keeps no others; refit with the data (--data) to have them")
        if keep is None:
            return _train(recipe, model, dataset, split, earlier, logger)
        with run.begin(keep.out, recipe, dataset, split, overwrite=keep.overwrite) as folder:
            if earlier is not None:
                run.write_earlier(folder, earlier)
            checkpoints = Checkpoints(folder / "checkpoint", keep.cache, keep.every)
            return _train(recipe, model, dataset, split, earlier, logger, folder, checkpoints)


def fit_rest(
    path: Path, recipe: Recipe | None = None, data: Data | None = None, *, every: float, logger: RunLogger | None = None
) -> Fit:
    """Continue the interrupted fit in run folder `path`; see `Recommender.resume`."""
    if recipe is not None and data is not None and run.state_of(path) == "absent":
        return fit_new(recipe, data, keep=Keep(path, every=every), logger=logger)
    with run.continued(path) as (folder, tables), open_logger(logger) as logger:
        if recipe is not None and (recipe := recipe.for_data(tables.split.ordered)) != tables.recipe:
            listed = "; ".join(differences(recipe.values(), tables.recipe.values())[:5])
            raise CheckpointError(f"the recipe differs from the one of {path}: {listed}")
        logger.new_run()
        if data is not None:
            dataset, _ = read_and_split(data, tables.recipe.data, tables.recipe.seed, logger)
            if run.fingerprint(dataset) != tables.fingerprint:
                raise CheckpointError(f"the data changed since {path} was begun; fit again with --overwrite")
        model, earlier = tables.recipe.build_model(), run.read_earlier(folder)
        checkpoints = Checkpoints(folder / "checkpoint", every=every)
        return _train(tables.recipe, model, tables.dataset, tables.split, earlier, logger, folder, checkpoints)


def load_fit(path: Path) -> Fit:
    """The fit of a finished run folder. Raises CheckpointError naming what is missing or damaged."""
    found = run.load(path)
    tables = found.tables
    return Fit(tables.recipe, Fitted.of(found.model, tables.dataset, tables.split, found.identity), found.files)


def _train(
    recipe: Recipe,
    model: Model,
    dataset: Dataset,
    split: Split,
    earlier: Earlier | None,
    logger: RunLogger,
    path: Path | None = None,
    checkpoints: Checkpoints | None = None,
) -> Fit:
    """Encode the texts and fit the model; with a run folder, log, checkpoints and result are written there."""
    if path is not None:
        logger.write_to(path)
    text, user_text = prepare_text(model.abilities, dataset, split, recipe.text, recipe.seed, logger)
    if split.train.weight is not None and not model.abilities.uses_weights:
        logger.say(f"note: {model.name} counts all clicks the same; the weights of the data are not used")
    logger.begin(f"fit {model.name}")
    began = time.monotonic()
    findings = Findings(num_users=split.num_users, num_items=split.num_items)
    model.fit(
        Task(
            split, text, recipe.seed, logger, checkpoints,
            user_text=user_text, findings=findings, earlier=earlier, encoder=recipe.text,
        )
    )  # fmt: skip
    identity = None
    if path is not None and checkpoints is not None:
        seconds = time.monotonic() - began + checkpoints.earlier  # those of earlier attempts and other runs too
        logger.finish_log()
        identity = run.finish(path, model, findings, {"seconds": round(seconds, 2)})
    return Fit(recipe, Fitted.of(model, dataset, split, identity), findings)

"""Tuning on validation: the trials that were made, and which settings to try next.

The next settings are a function of (tune_seed, trials so far), so an interrupted search continues with the same trials
as one without interruption. A space with no more combinations than the budget is tried whole, in order. Otherwise the
first trial is the recipe's own values, where the space holds them, and the others come from the Tree-structured Parzen
Estimator (Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization", NIPS) of optuna, after a few at random.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from graphllmrec.errors import CheckpointError, GraphLLMRecError
from graphllmrec.io import write_text
from graphllmrec.rng import stream_seed
from graphllmrec.study.config import Range, Space, Variant
from graphllmrec.study.folder import differences, plain_values

RANDOM_TRIALS = 5  # before the estimator's first proposal
ATTEMPTS = 20  # proposals until one is new


Kind = tuple[str, str]  # names of data set and variant: fits of the same kind take about as long


@dataclass(frozen=True)
class Source:
    """A data folder of the study."""

    name: str  # of the folder
    path: Path
    fingerprint: str  # of what was read (run_folder.fingerprint)
    cache: Path  # trained stages, for other fits on this data with the same ones


@dataclass(frozen=True)
class Trial:
    """Settings that were tried, and the validation value they reached (None: the fit failed with `error`)."""

    number: int
    settings: dict[str, Any]
    value: float | None
    error: str | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Search:
    """The search for the settings of a variant on one data set; its trials are in `folder`."""

    folder: Path
    source: Source
    variant: Variant

    @property
    def label(self) -> str:
        """ "books · ease"."""
        return f"{self.source.name} · {self.variant.label}"

    @property
    def kind(self) -> Kind:
        """The kind of its trials."""
        return self.source.name, self.variant.label

    @property
    def size(self) -> int:
        """Number of trials; 0: nothing to tune."""
        return budget(self.variant.model.tune, self.variant.study.trials)

    @cached_property
    def spec(self) -> dict[str, Any]:
        """What decides which trials are made, and their outcome."""
        study, model = self.variant.study, self.variant.model
        space = {key: v.model_dump(by_alias=True) if isinstance(v, Range) else list(v) for key, v in model.tune.items()}
        spec = {
            "data": self.source.fingerprint,
            "recipe": plain_values(self.variant.recipe(study.tune_seed)),
            "tune": space,
            "metric": study.metric,
        }
        return dict(json.loads(json.dumps(spec)))  # as it will be read

    def stored_spec(self) -> dict[str, Any] | None:
        """`spec` of the trials in the folder; None where there are none."""
        lines = self._lines()
        return lines[0] if lines else None

    def trials(self) -> list[Trial]:
        """Trials of the search as it is now; none where all trials of a complete search failed: it is made again."""
        lines = self._lines()
        if not lines or differences(self.spec, lines[0]):
            return []
        try:
            found = [Trial(**line) for line in lines[1:]][: self.size]
        except TypeError as error:
            raise self._unreadable(error) from error
        return [] if len(found) == self.size and best_trial(found) is None else found

    def write(self, trials: Sequence[Trial]) -> None:
        """Write all trials, in one step."""
        lines = [self.spec, *(trial.to_json() for trial in trials)]
        write_text(self.folder / "trials.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def best_settings(self) -> dict[str, Any] | None:
        """The best settings of a complete search; None while it is not complete, or when all trials failed."""
        trials = self.trials()
        best = best_trial(trials)
        return best.settings if best is not None and len(trials) == self.size else None

    def _lines(self) -> list[dict[str, Any]]:
        path = self.folder / "trials.jsonl"
        try:
            lines = [json.loads(line) for line in path.read_bytes().splitlines()] if path.is_file() else []
        except (ValueError, RecursionError) as error:
            raise self._unreadable(error) from error
        if not all(isinstance(line, dict) for line in lines):
            raise self._unreadable(ValueError("a line is no JSON object"))
        return lines

    def _unreadable(self, error: Exception) -> CheckpointError:
        path = self.folder / "trials.jsonl"
        return CheckpointError(f"{path} cannot be read ({error}): delete it to make the search again")


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the highest value, the earlier of equals; None when all failed."""
    return max((trial for trial in trials if trial.value is not None), key=lambda t: t.value or 0.0, default=None)


def budget(space: Space, trials: int) -> int:
    """How many trials a search takes: `trials`, or as many as there are combinations where that is fewer."""
    number = combinations(space)
    return trials if number is None else min(trials, number)


def combinations(space: Space) -> int | None:
    """Number of combinations of a space of lists (0: nothing to tune); None with a range in it."""
    lists = [values for values in space.values() if not isinstance(values, Range)]
    if len(lists) < len(space):
        return None
    return math.prod(len(values) for values in lists) if lists else 0


def needs_optuna(space: Space, trials: int) -> bool:
    """Has the space more combinations than the budget has trials?"""
    found = combinations(space)
    return found is None or found > trials


def next_settings(
    space: Space, done: Sequence[Trial], trials: int, seed: int, usual: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Settings of the next trial, None when the search is over. `usual`: the recipe's own values of these settings.

    No settings are tried twice: after ATTEMPTS proposals that are not new, the next combination of the lists is taken.
    """
    if len(done) >= budget(space, trials):
        return None
    tried = [trial.settings for trial in done]
    if not needs_optuna(space, trials):
        return _untried(space, tried)
    if not done and all(_holds(values, usual.get(key)) for key, values in space.items()):
        return {key: usual[key] for key in space}
    for attempt in range(ATTEMPTS):
        settings = _proposed(space, done, stream_seed(seed, "tune", len(done), attempt))
        if settings not in tried:
            return settings
    return settings if combinations(space) is None else _untried(space, tried)


def _untried(space: Space, tried: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The first combination of a space of lists that was not tried."""
    lists = [values for values in space.values() if not isinstance(values, Range)]
    whole = (dict(zip(space, values, strict=True)) for values in itertools.product(*lists))
    return next((settings for settings in whole if settings not in tried), None)


def _holds(values: Range | tuple[Any, ...], value: Any) -> bool:
    if not isinstance(values, Range):
        return value in values
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and values.low <= value <= values.high and (not values.whole or value == int(value))


def _proposed(space: Space, done: Sequence[Trial], seed: int) -> dict[str, Any]:
    """What the estimator proposes after the trials `done`."""
    optuna = require_optuna()
    floats, ints = optuna.distributions.FloatDistribution, optuna.distributions.IntDistribution
    axes: dict[str, Any] = {}
    for key, values in space.items():
        if not isinstance(values, Range):  # optuna's categories are scalars and a setting may be a list: its position
            axes[key] = optuna.distributions.CategoricalDistribution(range(len(values)))
        elif values.whole:
            axes[key] = ints(int(values.low), int(values.high), log=values.log)
        else:
            axes[key] = floats(values.low, values.high, log=values.log)
    sampler = optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=RANDOM_TRIALS)
    search = optuna.create_study(sampler=sampler, direction="maximize")
    for trial in done:
        if trial.value is not None:
            params = {key: _position(space[key], value) for key, value in trial.settings.items()}
            search.add_trial(optuna.trial.create_trial(params=params, distributions=axes, value=trial.value))
    return _settings(space, search.ask(axes).params)


def _position(values: Range | tuple[Any, ...], value: Any) -> Any:
    return value if isinstance(values, Range) else values.index(value)


def _settings(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    return {key: params[key] if isinstance(values, Range) else values[params[key]] for key, values in space.items()}


def require_optuna() -> Any:
    """The optuna module, without its messages. Raises GraphLLMRecError when it is not installed."""
    try:
        import optuna
    except ImportError:
        raise GraphLLMRecError('tuning needs optuna: pip install "graphllmrec[tune]"') from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna

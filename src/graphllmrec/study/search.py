"""Tuning on validation: which settings to try next, given those that were tried.

What is tried next is a function of (tune_seed, trials so far), so a search that is interrupted goes on as if it had
not been. A space that has no more combinations than the budget is tried whole, in order. Otherwise the first trial is
the recipe as it stands, where the space holds it, and the others come from the Tree-structured Parzen Estimator
(Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization", NIPS) of optuna, after a few at random.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from graphllmrec.errors import GraphLLMRecError
from graphllmrec.rng import stream_seed
from graphllmrec.study.plan import Range, Space

RANDOM_TRIALS = 5  # before the estimator has anything to go by
ATTEMPTS = 20  # at settings that were not tried yet


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
    """Is the space too large for the budget, so that a choice has to be made?"""
    found = combinations(space)
    return found is None or found > trials


def next_settings(
    space: Space, done: Sequence[Trial], trials: int, seed: int, usual: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Settings of the next trial, None when the search is over. `usual`: the recipe's own values of these settings.

    What was tried already does not come up again: after ATTEMPTS proposals of it, the next combination is taken.
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
        if not isinstance(values, Range):  # optuna's categories are plain values, a setting may be a list: so its place
            axes[key] = optuna.distributions.CategoricalDistribution(range(len(values)))
        elif values.whole:
            axes[key] = ints(int(values.low), int(values.high), log=values.log)
        else:
            axes[key] = floats(values.low, values.high, log=values.log)
    sampler = optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=RANDOM_TRIALS)
    search = optuna.create_study(sampler=sampler, direction="maximize")
    for trial in done:
        if trial.value is not None:
            params = {key: _place(space[key], value) for key, value in trial.settings.items()}
            search.add_trial(optuna.trial.create_trial(params=params, distributions=axes, value=trial.value))
    return _settings(space, search.ask(axes).params)


def _place(values: Range | tuple[Any, ...], value: Any) -> Any:
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

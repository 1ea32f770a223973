"""Is one model better than another? Paired tests on per-user values of the same users.

Two questions are answered from the per-user differences d = a - b:

- *How large is the difference?* A 95 % interval by the paired bootstrap: draw as many users with replacement, average,
  repeat.
- *Could it be chance?* The p-value of the paired randomisation test: under the null hypothesis the two models are
  interchangeable for every user, so every d may as well have the other sign. p is the share of random sign flips whose
  mean is as far from zero as the observed one. The bootstrap's own p-value is given beside it.

Where several models are compared with one baseline, p-values are corrected by Holm's step-down procedure.
Sources: Smucker, Allan & Carterette, CIKM 2007 (randomisation and bootstrap); Holm, Scand. J. Stat. 1979.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from graphllmrec.errors import EvaluationError
from graphllmrec.evaluation.evaluation import Evaluation, decoys_told, protocol_line
from graphllmrec.rng import rng

Floats = NDArray[np.float64]
CHUNK = 2_000_000  # random numbers held at a time


@dataclass(frozen=True)
class Comparison:
    """Model a against model b on the same users. A positive difference means that a is better."""

    metric: str
    a: str
    b: str
    users: int
    mean_a: float
    mean_b: float
    difference: float  # mean_a - mean_b
    relative: float | None  # difference / mean_b; None when b's mean is 0
    ci: tuple[float, float]  # 95 % interval of the difference, paired bootstrap
    p: float  # two-sided, paired randomisation test
    p_bootstrap: float  # two-sided, paired bootstrap
    p_holm: float | None = None  # p corrected for the number of models compared; only from compare_many
    strata: dict[str, dict[str, Comparison]] = field(
        default_factory=dict
    )  # {"item_degree": {"0": …}}, without empty ones

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self) | {
            "ci": list(self.ci),
            "strata": {kind: {name: row.to_json() for name, row in rows.items()} for kind, rows in self.strata.items()},
        }


def compare(
    a: Evaluation, b: Evaluation, metric: str = "ndcg@20", *, rounds: int = 10_000, seed: int = 0, strata: bool = True
) -> Comparison:
    """Compare two evaluations user by user, overall and (unless `strata` is False) within every stratum.

    `rounds` resamples bound the precision of p from below: the smallest possible p is 1 / (rounds + 1). Raises
    EvaluationError when the two were not measured on the same users, targets, masked items and decoys, or lack the
    metric.
    """
    _check_same(a, b, metric)
    whole = _paired(a, b, a.per_user, b.per_user, metric, rounds, seed)
    if not strata:
        return whole
    rows = {
        kind: {
            name: _paired(a, b, a.within(kind, name), b.within(kind, name), metric, rounds, seed)
            for name, row in names.items()
            if row["users"]
        }
        for kind, names in a.strata.items()
    }
    return replace(whole, strata=rows)


def compare_many(
    evaluations: Mapping[str, Evaluation],
    baseline: str,
    metric: str = "ndcg@20",
    *,
    rounds: int = 10_000,
    seed: int = 0,
    strata: bool = False,
) -> dict[str, Comparison]:
    """Compare every evaluation with `baseline` (a key), p-values Holm-corrected over the models (`p_holm`).

    With `strata`, each stratum is corrected over the models as well, on its own. Raises EvaluationError as `compare`
    does, and when there is no evaluation named `baseline`.
    """
    if baseline not in evaluations:
        raise EvaluationError(f"no evaluation named {baseline!r} to compare with; there are: {', '.join(evaluations)}")
    found = {
        name: replace(
            compare(evaluation, evaluations[baseline], metric, rounds=rounds, seed=seed, strata=strata),
            a=name,
            b=baseline,
        )
        for name, evaluation in evaluations.items()
        if name != baseline
    }
    return _corrected(found)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the i-th smallest of m p-values times (m - i + 1), made monotone, at most 1."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    steps = np.minimum(np.maximum.accumulate(np.asarray(p_values, dtype=np.float64)[order] * factors), 1.0)
    out = np.empty(len(p_values))
    out[order] = steps
    return [float(value) for value in out]


def bootstrap_means(differences: Floats, rounds: int, random: np.random.Generator) -> Floats:
    """Means (rounds,) of resamples with replacement of `differences` (n,)."""
    n = len(differences)
    values, counts = np.unique(differences, return_counts=True)
    if 20 * len(values) < n:  # few distinct values: how often each is drawn is multinomial, which is the same bootstrap
        draws = random.multinomial(n, counts / n, size=rounds)  # (rounds, distinct)
        return np.asarray(draws @ values / n)
    step = max(CHUNK // n, 1)
    means = [
        differences[random.integers(0, n, (min(step, rounds - start), n), dtype=np.uint32)].mean(axis=1)
        for start in range(0, rounds, step)
    ]
    return np.concatenate(means)


def flipped_means(differences: Floats, rounds: int, random: np.random.Generator) -> Floats:
    """Means (rounds,) of `differences` (n,) with every sign flipped by a fair coin."""
    n = len(differences)
    values, counts = np.unique(np.abs(differences), return_counts=True)
    if 20 * len(values) < n:  # of equal differences, only the number of flipped ones matters
        heads = random.binomial(counts, 0.5, (rounds, len(counts)))
        return np.asarray((2 * heads - counts) @ values / n)
    step, width = max(CHUNK // n, 1), -(-n // 8)
    means = []
    for start in range(0, rounds, step):
        size = min(step, rounds - start)
        coins = np.frombuffer(random.bytes(size * width), dtype=np.uint8).reshape(size, width)
        heads = np.unpackbits(coins, axis=1, count=n).astype(np.float64)  # (size, n)
        means.append((2 * (heads @ differences) - differences.sum()) / n)
    return np.concatenate(means)


def compare_values(
    values_a: Floats,
    values_b: Floats,
    *,
    metric: str,
    names: tuple[str, str],
    rounds: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare values (n,) of the same n users in the same order, e.g. each averaged over the seeds of a model."""
    differences = values_a - values_b
    observed = float(differences.mean())
    resampled = bootstrap_means(differences, rounds, rng(seed, "bootstrap"))
    low, high = (float(value) for value in np.quantile(resampled, [0.025, 0.975]))
    flipped = flipped_means(differences, rounds, rng(seed, "randomisation"))
    as_far = int((np.abs(flipped) >= abs(observed) - 1e-12).sum())  # equal in spite of the summation order
    beyond_zero = min(int((resampled <= 1e-12).sum()), int((resampled >= -1e-12).sum()))
    mean_b = float(values_b.mean())
    return Comparison(
        metric=metric,
        a=names[0],
        b=names[1],
        users=len(differences),
        mean_a=float(values_a.mean()),
        mean_b=mean_b,
        difference=observed,
        relative=observed / mean_b if mean_b else None,
        ci=(low, high),
        p=(as_far + 1) / (rounds + 1),
        p_bootstrap=min(2 * (beyond_zero + 1) / (rounds + 1), 1.0),
    )


def _paired(
    a: Evaluation, b: Evaluation, rows_a: pl.DataFrame, rows_b: pl.DataFrame, metric: str, rounds: int, seed: int
) -> Comparison:
    values_a, values_b = rows_a[metric].to_numpy(), rows_b[metric].to_numpy()
    return compare_values(values_a, values_b, metric=metric, names=(a.name, b.name), rounds=rounds, seed=seed)


def _check_same(a: Evaluation, b: Evaluation, metric: str) -> None:
    if a.protocol["fingerprint"] != b.protocol["fingerprint"]:
        raise EvaluationError(
            f"{a.name} and {b.name} cannot be compared: users, targets, masked items or decoys differ\n"
            f"  {a.name}: {protocol_line(a.protocol)}\n  {b.name}: {protocol_line(b.protocol)}\n"
            f"  hint: {_way_out(a, b)}"
        )
    for evaluation in (a, b):
        if metric not in evaluation.overall_ci:
            known = ", ".join(evaluation.overall_ci)
            raise EvaluationError(f"{evaluation.name} was not evaluated with {metric!r} per user; it has: {known}")


def _way_out(a: Evaluation, b: Evaluation) -> str:
    """What to change so that the two can be compared."""
    with_decoys = [decoys_told(evaluation.protocol).rstrip(", ") or "without decoys" for evaluation in (a, b)]
    if with_decoys[0] != with_decoys[1]:
        return (
            f"one was measured {with_decoys[0]}, the other {with_decoys[1]}; evaluate both with the same --decoys and "
            "--decoys-from"
        )
    one, other = (evaluation.protocol["split_settings"] for evaluation in (a, b))
    differ = {key: (one.get(key), other.get(key)) for key in sorted({*one, *other}) if one.get(key) != other.get(key)}
    if "seed" in differ:
        drawn = "{} and {}".format(*differ["seed"])
        return (
            f"the random split was drawn with seeds {drawn}; use one seed, or give train.* and test.* to fix the split"
        )
    if differ:
        listed = ", ".join(f"{key}: {mine} and {yours}" for key, (mine, yours) in differ.items())
        return f"the settings of the split differ ({listed}); use the same"
    return "evaluate both on the same data folder, split and part"


def _corrected(found: dict[str, Comparison]) -> dict[str, Comparison]:
    """The same comparisons with p_holm, for the whole and for every stratum."""
    values = holm([comparison.p for comparison in found.values()])
    out = {name: replace(row, p_holm=p) for (name, row), p in zip(found.items(), values, strict=True)}
    shared = next(iter(found.values())).strata if found else {}
    for kind, names in shared.items():
        for stratum in names:
            rows = _corrected({name: row.strata[kind][stratum] for name, row in out.items()})
            for name, row in rows.items():
                out[name].strata[kind][stratum] = replace(row, a=name, b=out[name].b)
    return out

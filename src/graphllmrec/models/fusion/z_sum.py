"""z-sum: the tuned, weighted sum of the z-scores of several models. Nothing is trained.

    z_e(u, j) = (s_e(u, j) − mean_j s_e(u, j)) / std_j s_e(u, j)         s_e: scores of expert e over all items
    score(u, j) = Σ_e w_e · z_e(u, j),   w_e ≥ 0,  Σ_e w_e = 1

CombSUM (Fox & Shaw 1994, "Combination of multiple searches", TREC-2) over z-normalised scores (Montague & Aslam 2001,
"Relevance score normalization for metasearch", CIKM), with weights. Weights and the experts' recency decays are found
together by hill climbing on the NDCG@20 of up to `tune_users` validation users (models/fusion/score_fusion.py).

The weights are tuned on items with clicks, and tuning may leave nothing for the text. Two rules keep what only the text
can place from ties: items without training clicks are scored with at least TEXT_FLOOR of the weight on the experts that
read text; and where no expert with weight distinguishes any items, as for a history of new items, the others are
summed.

An expert that cannot use the data (text-kNN without text, transitions without order) is left out, and logged. EASE and
text-EASE solve a dense system of all items, so for more than `dense_items`, or where memory is short, item-kNN takes
their place. Each expert is a branch: it can be scored alone, and `explain` gives its additive share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from graphllmrec.errors import RecipeError
from graphllmrec.models.fusion.score_fusion import Variant, build_score_table, search, zscores
from graphllmrec.models.memory import free_memory
from graphllmrec.models.registry import MODELS, build, model_class
from graphllmrec.models.scoring import DECAYS, UNTUNED_DECAY
from graphllmrec.protocol import Abilities, FadingModel, Model, Queries, RowExplanation, Task, TextVectors
from graphllmrec.settings import Condition, Config
from graphllmrec.train.validation import VALIDATION_USERS, settle, tuning_users

DENSE = {"ease": 4, "text-ease": 12}  # models with dense (num_items, num_items) matrices: bytes per pair of items
SPARSE = "item-knn"  # takes their place in large catalogues
TEXT_FLOOR = 0.1  # least weight of the text in the score of an item without training clicks


class ZSumConfig(Config):
    """Settings of z-sum."""

    experts: tuple[str, ...] = Field(
        ("ease", "text-knn", "transitions"), min_length=1, max_length=8, description="names of the models to sum"
    )
    settings: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="settings of single experts, e.g. {ease = {l2 = 50}}; a fixed decay is kept"
    )
    tune_users: int = Field(
        VALIDATION_USERS, ge=1, le=10_000_000, description="validation users the weights are tuned on"
    )
    dense_items: int = Field(
        20_000, ge=0, le=10_000_000, description="items up to which ease and text-ease are used; item-knn for more"
    )

    def conditions(self) -> Iterator[Condition]:
        """What settings need of each other."""
        yield Condition("dense_items", bool(DENSE.keys() & set(self.experts)), f"{' or '.join(DENSE)} as an expert")

    @model_validator(mode="after")
    def _experts_are_sound(self) -> Self:
        problems = [f"expert {name!r} is given twice" for name in set(self.experts) if self.experts.count(name) > 1]
        usable = [name for name in MODELS if name != ZSum.name]
        for name in self.experts:
            if name not in usable:
                problems.append(f"unknown expert {name!r}; known: {', '.join(usable)}")
        for name, settings in self.settings.items():
            if name not in self.experts:
                problems.append(f"settings.{name}: not one of the experts ({', '.join(self.experts)})")
            elif name in usable:
                problems.extend(_problems(name, settings))
        if problems:
            raise ValueError("; ".join(problems))
        return self


def _state_of(expert: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{expert}/"): value for key, value in state.items() if key.startswith(f"{expert}/")}


def _problems(name: str, settings: Mapping[str, Any]) -> list[str]:
    """One line per invalid setting of an expert; a value of none of several types is one problem."""
    found: dict[str, list[str]] = {}
    try:
        model_class(name).config_class(**settings)
    except ValidationError as error:
        for each in error.errors():
            found.setdefault(str(each["loc"][0]) if each["loc"] else "", []).append(each["msg"])
    return [f"settings.{name}.{key}: {' or: '.join(messages)}" for key, messages in found.items()]


class ZSum:
    """Validation-tuned sum of z-scored models."""

    name: ClassVar[str] = "z-sum"
    config_class: ClassVar[type[Config]] = ZSumConfig
    abilities = Abilities(uses_text=True, uses_user_text=True, ranks_cold_items=True)  # as its experts do

    def __init__(self, config: ZSumConfig) -> None:
        self.config = config
        parts = [model_class(name).abilities for name in config.experts]
        self.abilities = replace(  # texts that no expert reads are not encoded
            ZSum.abilities,
            uses_text=any(part.needs_text for part in parts),
            uses_user_text=any(part.uses_user_text for part in parts),
            uses_weights=any(part.uses_weights for part in parts),
        )
        self.experts: dict[str, Model] = {}
        self.weights = torch.empty(0)  # (num_experts,), in the order of `experts`
        self.unclicked = torch.empty(0, dtype=torch.bool)  # of the last items: no training clicks

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the experts in use."""
        return tuple(self.experts)

    def fit(self, task: Task) -> None:
        """Fit the experts that apply, then tune weights and decays. Raises RecipeError when no expert applies."""
        self.experts = self._applicable(task)
        for name, expert in self.experts.items():
            task.logger.begin(f"z-sum: fit {name}")
            expert.fit(task)
        self.unclicked = torch.from_numpy(task.split.item_degree() == 0)
        task.logger.begin("z-sum: tune weights")
        self._tune(task)

    def _applicable(self, task: Task) -> dict[str, Model]:
        """Unfitted experts, without those that cannot use the data."""
        experts: dict[str, Model] = {}
        for name in self._affordable(task):
            wants = model_class(name).abilities
            if wants.needs_text and task.text is None:
                task.logger.log("expert-left-out", expert=name, reason="the items have no text")
            elif wants.needs_order and not task.split.ordered:
                task.logger.log("expert-left-out", expert=name, reason="the interactions have no order")
            else:
                # the decay is tuned here, together with the weights, not by each expert alone
                experts[name] = build(name, self._settings(name) | ({"decay": 1.0} if self._tunes_decay(name) else {}))
        if not experts:
            wanted = ", ".join(self.config.experts)
            raise RecipeError(
                [f"model.experts: none of {wanted} can use this data, which lacks text or order; add ease"]
            )
        return experts

    def _affordable(self, task: Task) -> list[str]:
        """The experts, with item-kNN in place of those whose matrices would be too large."""
        num_items, names = task.split.num_items, list(self.config.experts)
        for name in [name for name in names if name in DENSE]:
            needed, free = DENSE[name] * num_items**2, free_memory()
            if num_items <= self.config.dense_items and needed <= free:
                continue
            reason = f"{num_items:,} items would need {needed / 1e9:,.1f} GB"
            reason += f", {free / 1e9:,.1f} GB are free" if needed > free else "; the limit is dense_items"
            task.logger.log("expert-replaced", expert=name, by=SPARSE, reason=reason)
            names[names.index(name)] = SPARSE
        return list(dict.fromkeys(names))

    def _settings(self, name: str) -> dict[str, Any]:
        return dict(self.config.settings.get(name, {}))

    def _tunes_decay(self, name: str) -> bool:
        fields = model_class(name).config_class.model_fields
        return "decay" in fields and self._settings(name).get("decay", fields["decay"].default) == "tune"

    def _tune(self, task: Task) -> None:
        """Find weights and decays; without a validation part: those of the earlier fit, or equal weights."""
        even = {name: {"weight": 1 / len(self.experts)} for name in self.experts}
        untuned = {name: part | {"decay": UNTUNED_DECAY} for name, part in even.items()}
        found = settle(task, "z-sum/experts", lambda: self._tuned(task), untuned)
        self.weights = torch.tensor([found.get(name, even[name])["weight"] for name in self.experts])
        if list(found) != list(self.experts):  # an expert may be new, or have gone, since the earlier fit
            self.weights = self.weights / self.weights.sum()
        for name, expert in self.experts.items():
            if task.split.ordered and self._tunes_decay(name):
                expert.decay = found.get(name, untuned[name])["decay"]  # type: ignore[attr-defined]

    def _tuned(self, task: Task) -> dict[str, dict[str, Any]]:
        """The best weight and decay of every expert on validation users."""
        users = tuning_users(task.split, task.seed, self.config.tune_users)
        variants, groups = self._variants(DECAYS, task.split.ordered)
        found = search(build_score_table(variants, groups, task.split, users), groups)
        self.weights = found.weights
        for place in found.chosen:
            variants[place].apply()
        about = {"ndcg@20": found.ndcg, "trials": found.trials}
        task.logger.log("z-sum-tuned", users=len(users), experts=self.readable(), **about)
        parts = zip(self.experts.items(), found.weights.tolist(), strict=True)
        return {
            name: {"weight": weight, "decay": expert.decay if isinstance(expert, FadingModel) else 1.0}
            for (name, expert), weight in parts
        }

    def _variants(self, decays: Sequence[float], ordered: bool) -> tuple[list[Variant], list[range]]:
        """Every expert at every decay it may have, and the range of these variants per expert."""
        variants: list[Variant] = []
        groups: list[range] = []
        for name, expert in self.experts.items():
            own: Sequence[float | None] = (expert.decay if isinstance(expert, FadingModel) else None,)
            if ordered and self._tunes_decay(name):
                own = decays
            groups.append(range(len(variants), len(variants) + len(own)))
            variants.extend(Variant(expert, decay) for decay in own)
        return variants, groups

    def readable(self) -> dict[str, dict[str, float]]:
        """Weight and, where it has one, recency decay of every expert."""
        return {
            name: {"weight": round(float(weight), 4)}
            | ({"decay": expert.decay} if isinstance(expert, FadingModel) else {})
            for (name, expert), weight in zip(self.experts.items(), self.weights, strict=True)
        }

    def branch_scores(self, queries: Queries, branch: str) -> Tensor:
        """z-scored scores (B, num_items) of one expert, not weighted."""
        return zscores(self.experts[branch].scores(queries))

    def scores(self, queries: Queries) -> Tensor:
        """Weighted sum (B, num_items) of the experts' z-scores."""
        total, spoken = torch.zeros(()), torch.zeros(len(queries), dtype=torch.bool)
        cold, items = torch.zeros(()), torch.empty(0, dtype=torch.long)
        cold_weights = self.cold_weights()
        for name, weight, cold_weight in zip(self.branches, self.weights, cold_weights, strict=True):
            z = self.branch_scores(queries, name)  # (B, num_items)
            total = total + weight * z
            if weight > 0:
                spoken |= z.any(1)
            if cold_weights is not self.weights:
                items = self._unclicked(z.shape[1])
                cold = cold + cold_weight * z.index_select(1, items)
        if len(items):
            total.index_copy_(1, items, cold)
        if not spoken.all():
            silent = (~spoken).numpy()
            rest = Queries(queries.users[silent], queries.histories.take(np.flatnonzero(silent)))
            weighed = zip(self.branches, self.spare_weights(), strict=True)
            total[~spoken] = sum((w * self.branch_scores(rest, name) for name, w in weighed if w > 0), torch.zeros(()))
        return total

    def silent_rows(self, experts: Tensor) -> Tensor:
        """Queries (B,) for which no expert with weight distinguishes items, by their z-scores (E, B, num_items)."""
        heard = self.weights > 0
        silent = ~experts[heard, :, :1].any(2).any(0)  # a single item that is not at the mean says that some are told
        rows = silent.nonzero()[:, 0]
        silent[rows] = ~experts[:, rows][heard].any(2).any(0)
        return silent

    def spare_weights(self) -> Tensor:
        """Equal weights (num_experts,) of the experts that have none."""
        spare = (self.weights <= 0).float()
        return spare / spare.sum().clamp_min(1)

    def cold_weights(self) -> Tensor:
        """Weights (num_experts,) for items without clicks; `weights` itself where these leave enough to the text."""
        reads = torch.tensor([expert.abilities.needs_text for expert in self.experts.values()])
        text = float(self.weights[reads].sum())
        if not reads.any() or text >= TEXT_FLOOR:
            return self.weights
        own = self.weights * reads / text if text > 0 else reads / reads.sum()
        others = self.weights * ~reads
        return TEXT_FLOOR * own + (1 - TEXT_FLOOR) * others / others.sum()

    def _unclicked(self, num_items: int) -> Tensor:
        """Rows of the items without training clicks; of a run of version 0.1, those that were added to it."""
        return self.unclicked.nonzero()[:, 0] + (num_items - len(self.unclicked))

    def explain(self, queries: Queries, item: int) -> RowExplanation:
        """Weighted z-score of item row `item` per expert for the first query; the gate is the weight of the text."""
        scores = {name: self.branch_scores(queries, name)[0] for name in self.branches}
        used = [z for z, weight in zip(scores.values(), self.weights, strict=True) if weight > 0 and z.any()]
        is_new = item in self._unclicked(len(next(iter(scores.values()))))
        weights = self.spare_weights() if not used else self.cold_weights() if is_new else self.weights
        shares = {name: float(z[item] * weight) for (name, z), weight in zip(scores.items(), weights, strict=True)}
        text = [
            float(w)
            for (_, expert), w in zip(self.experts.items(), weights, strict=True)
            if expert.abilities.needs_text
        ]
        return RowExplanation(sum(shares.values()), shares, gate=sum(text) if text else None)

    def state(self) -> dict[str, Tensor]:
        """Weights, and the state of every expert under its name."""
        parts = {
            f"{name}/{key}": value for name, expert in self.experts.items() for key, value in expert.state().items()
        }
        return {"weights": self.weights, "unclicked": self.unclicked, **parts}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors written by `state`; experts that were left out of the fit stay out."""
        self.experts = {}
        for wanted in self.config.experts:
            name = SPARSE if wanted in DENSE and not _state_of(wanted, state) else wanted
            if name not in self.experts and (own := _state_of(name, state)):
                self.experts[name] = build(name, self._settings(name), saved=True)
                self.experts[name].restore(own)
        self.weights, self.unclicked = state["weights"], state.get("unclicked", torch.empty(0, dtype=torch.bool))

    def with_items(self, text: TextVectors) -> Self:
        """A copy whose experts all have more items."""
        more = copy(self)
        more.experts = {name: expert.with_items(text) for name, expert in self.experts.items()}
        more.unclicked = torch.cat([self.unclicked, torch.ones(len(text), dtype=torch.bool)])
        return more

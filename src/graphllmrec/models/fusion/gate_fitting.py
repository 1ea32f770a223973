"""Fit the context gate on validation targets: z-scores of the experts, cross-entropy, folds, the cold lift.

The items clicked after validation differ from those clicked in it: they are newer, and have fewer training clicks. How
contexts drift from one step to the next is measured one step back (`context_drift`), and targets weigh accordingly:

    ρ_c = share of context c among validation clicks / its share among the last training clicks, within [1/2, 2]
    weight of a target = Σ_c π_c ρ_c, scaled to a mean of 1

For ρ, contexts are computed from the training clicks without each user's last one.

The experts do not change while the gate is fitted. So their z-scores for the validation queries are computed once and
kept in half precision. Where they are more than `_HELD` numbers for all queries and all items, of each query only some
columns are kept (`Columns`): the items that any expert, or their mean, ranks highest within a context, and a random
sample of every context, which stands for the rest of it. With T the highest items and the targets of a query and S_c
the sample of context c, n_c of its N_c items,

    Σ_j f(j) ≈ Σ_{j in T} f(j) + Σ_c N_c / n_c Σ_{j in S_c, not in T} f(j)

which is unbiased for the denominator of the softmax, f = exp(score), and for the number of better items.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Histories, Ints
from graphllmrec.errors import RecipeError
from graphllmrec.evaluation.metrics import TUNING_CUTOFF, gains, ideal_gains
from graphllmrec.evaluation.rank import rank_of_target
from graphllmrec.models.memory import free_memory
from graphllmrec.nn.gate import CONTEXTS, ContextGate, GateInputs, head_degree, memberships
from graphllmrec.protocol import Queries, Task
from graphllmrec.rng import At, rng
from graphllmrec.train.device import to_device
from graphllmrec.train.loop import TrainedConfig, TrainingStage, train
from graphllmrec.train.validation import tuning_users

FOLDS = 3
LIFTS = (0.1, 0.2, 0.35, *(step / 4 for step in range(2, 21)))  # added to context biases, tried in this order
BIASES = tuple(step / 20 for step in range(-60, 101))  # of new items in `keep_up_new`
NEW = CONTEXTS.index("new")
PRIORS = (0.0, *(sign * step for step in (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0) for sign in (1, -1)))  # per log click
_HELD = 600_000_000  # z-scores kept: 1.2 GB
_ROWS = 256  # queries scored at a time, at most
_BLOCK = 50_000_000  # scores computed at a time: 200 MB
HIGHEST = 50  # items kept per query, expert and context
SAMPLED = 400  # items drawn per context, the same ones for all queries
_RARE = 0.001  # share of a context below which its drift is noise
_LOWEST = -1e4  # of an item that must not be ranked


@dataclass(frozen=True)
class Columns:
    """Which items the z-scores of every query are of, where not all are kept."""

    items: Tensor  # (U, C) int32
    stands_for: Tensor  # (U, C) float32: how many items it counts for; 0: not ranked
    place: Tensor  # (P,) column of every target

    @staticmethod
    def joined(parts: Sequence[Columns]) -> Columns:
        """Columns of consecutive queries."""
        return Columns(*map(torch.cat, zip(*(vars(part).values() for part in parts), strict=True)))


@dataclass(frozen=True)
class GateTargets:
    """z-scores of E experts for U validation queries, and their P targets."""

    experts: Tensor  # (E, U, C) float16; C = num_items without `columns`
    features: Tensor  # (U, G) of the queries
    known: Histories  # U rows: items that are masked
    row: Tensor  # (P,) query of every target
    target: Tensor  # (P,) item
    count: Tensor  # (U,) targets per query
    weight: Tensor  # (U,) of a query, 1 on average
    columns: Columns | None = None  # None: all items

    @property
    def place(self) -> Tensor:
        """Column (P,) of every target."""
        return self.target if self.columns is None else self.columns.place

    def to(self, device: torch.device) -> GateTargets:
        """The same on another device."""
        parts: dict[str, Any] = {name: part.to(device) for name, part in vars(self).items() if isinstance(part, Tensor)}
        if self.columns is not None:
            parts["columns"] = Columns(**{name: part.to(device) for name, part in vars(self.columns).items()})
        return replace(self, **parts)

    def weighted(self, contexts: Tensor, drift: Tensor) -> GateTargets:
        """The same with queries weighted by the drift (5,) of their targets' contexts (num_items, 5)."""
        targets = contexts.index_select(0, self.target) @ drift  # (P,)
        total = targets.new_zeros(len(self.count)).index_add_(0, self.row, targets) / self.count.clamp_min(1)
        return replace(self, weight=total / total.mean())

    def mean(self, values: Tensor) -> float:
        """Weighted mean of a value per query (U,)."""
        return float((values * self.weight).mean())

    def centred(self, centre: Tensor) -> GateTargets:
        """The same with features relative to `centre` (G,)."""
        return replace(self, features=self.features - centre)

    def scores(self, gate: ContextGate, inputs: GateInputs, rows: Tensor) -> Tensor:
        """Gated scores (n, C) of these queries; masked items are last."""
        weights, bias = gate.weigh_items(inputs)  # (num_items, E), (num_items,)
        factors = gate.query_factors(self.features.index_select(0, rows))  # (n, E)
        if self.columns is None:
            total = bias.expand(len(rows), -1)
        else:
            items = self.columns.items.index_select(0, rows)  # (n, C)
            weights = weights.index_select(0, items.flatten()).view(*items.shape, -1).movedim(2, 1)  # (n, E, C)
            total = bias.index_select(0, items.flatten()).view_as(items)
        for expert, zscores in enumerate(self.experts):
            part = zscores.index_select(0, rows).float()
            total = total + part * weights[:, expert] * factors[:, expert, None]
        return total.masked_fill(self._masked(rows, total.device), _LOWEST)

    def _masked(self, rows: Tensor, device: torch.device) -> Tensor:
        """Columns (n, C) bool that are not ranked."""
        if self.columns is not None:
            return self.columns.stands_for.index_select(0, rows) == 0
        seen = self.known.take(rows.cpu().numpy())
        mask = torch.zeros(len(rows), self.experts.shape[2], dtype=torch.bool, device=device)
        mask[to_device(seen.row_of_entry, device), to_device(seen.items, device)] = True
        return mask

    def cross_entropy(self, gate: ContextGate, inputs: GateInputs, pairs: Tensor) -> Tensor:
        """Cross-entropy (n,) of these targets among all items that are not masked."""
        rows = self.row.index_select(0, pairs)
        scores = self.scores(gate, inputs, rows)
        if self.columns is not None:  # a sampled item counts as often as it stands for
            scores = scores + self.columns.stands_for.index_select(0, rows).clamp_min(1).log()
        return F.cross_entropy(scores, self.place.index_select(0, pairs), reduction="none")

    @torch.no_grad()
    def ndcg(self, gate: ContextGate, inputs: GateInputs, queries: Tensor | None = None) -> Tensor:
        """NDCG@20 per query (n,); equal scores count against a target."""
        queries = torch.arange(len(self.count), device=self.row.device) if queries is None else queries
        total = self.weight.new_zeros(len(self.count))
        for rows in torch.split(queries, _ROWS):
            scores = self.scores(gate, inputs, rows)
            place = torch.full_like(self.count, -1)
            place[rows] = torch.arange(len(rows), device=rows.device)
            pairs = (place.index_select(0, self.row) >= 0).nonzero()[:, 0]
            scores = scores.index_select(0, place.index_select(0, self.row[pairs]))
            own = scores.gather(1, self.place[pairs, None])
            if self.columns is None:
                rank = rank_of_target(scores, own)
            else:
                rank = ((scores >= own) * self.columns.stands_for.index_select(0, self.row[pairs])).sum(1).round()
            total.index_add_(0, self.row[pairs], gains(rank, TUNING_CUTOFF))
        return (total / ideal_gains(self.count, TUNING_CUTOFF))[queries]


def build_gate_targets(
    model: Any, task: Task, degree: Tensor, text: list[int], contexts: Tensor, config: Any
) -> GateTargets:
    """The z-scores of a fitted sum of experts (models/fusion/z_sum.py) for at most `config.tune_users` queries.

    `text`: which of its experts are the text branch. `contexts` (num_items, 5): memberships, by which columns are
    chosen. All items are kept if that leaves room for half of the validation users. Raises RecipeError when more
    memory is needed than is free.
    """
    split, names = task.split, model.branches
    users = tuning_users(split, task.seed, config.tune_users)
    wanted, most = len(users), int(split.targets("valid").lengths.max(initial=1))
    width, chooser = split.num_items, None
    some = _Chooser.of(contexts, task.seed)
    if _HELD // (len(names) * width) < wanted / 2 and some.width(len(names)) + most < width:
        width, chooser = some.width(len(names)) + most, some
    users = tuning_users(split, task.seed, min(wanted, max(_HELD // (len(names) * width), 1)))
    step = min(_ROWS, max(_BLOCK // (len(names) * split.num_items), 1))
    about = {"users": len(users), "of": wanted, "columns": width, "items": split.num_items}
    needed = _check_memory(len(names), len(users), width, config.batch_size, step * split.num_items)
    task.logger.log("gate-users", **about, gb=round(needed / 1e9, 2))
    known, targets = split.known("valid"), split.targets("valid").take(users)
    experts = torch.empty(len(names), len(users), width, dtype=torch.float16)
    features, columns = [], []
    task.logger.begin("score for the gate", len(users))
    for start in range(0, len(users), step):
        rows = np.arange(start, min(start + step, len(users)))
        queries = Queries.of(known, users[rows])
        block = torch.stack([model.branch_scores(queries, name) for name in names])  # (E, b, num_items)
        features.append(query_features(queries, block, degree, text))
        if chooser is not None:
            columns.append(chooser.choose(block, queries.histories, targets.take(rows), most))
            block = block.gather(2, columns[-1].items.long().expand(len(names), -1, -1))  # (E, b, C)
        experts[:, start : start + step] = block.clamp(-6e4, 6e4)
        task.logger.advance(len(queries))
    row, item = torch.from_numpy(targets.row_of_entry), torch.from_numpy(targets.items)
    count, weight = torch.from_numpy(targets.lengths), torch.ones(len(users))
    kept = Columns.joined(columns) if columns else None
    return GateTargets(experts, torch.cat(features), known.take(users), row, item, count, weight, kept)


def _check_memory(experts: int, users: int, columns: int, batch_size: int, block: int) -> int:
    """Bytes that the fit of the gate takes at its peak. Raises RecipeError with the figure when they are not free."""
    held = users * columns * (2 * experts + 16)  # z-scores, items and counts, which are joined from blocks
    step = 4 * max(batch_size, _ROWS) * columns * (4 * experts + 4)  # of training, with gradients
    needed, free = held + max(step, 4 * block * (2 * experts + 4)), free_memory()
    if needed > free:
        raise RecipeError([
            f"model.gate.tune_users: fitting the gate on {users:,} users needs {needed / 1e9:,.2f} GB, "
            f"{free / 1e9:,.2f} GB are free; lower it, or use model.fusion = static"
        ])  # fmt: skip
    return needed


@dataclass(frozen=True)
class _Chooser:
    """Chooses the columns that are kept of a query."""

    groups: list[Tensor]  # items (N_c,) of every context that has any
    sample: Tensor  # (S,) items
    weight: Tensor  # (S,) float32: N_c / n_c

    @staticmethod
    def of(contexts: Tensor, seed: int) -> _Chooser:
        """Every item belongs to its strongest context (num_items, 5)."""
        strongest = contexts.argmax(1)
        groups = [(strongest == place).nonzero()[:, 0] for place in range(len(CONTEXTS))]
        groups = [group for group in groups if len(group)]
        draw = rng(seed, "gate/columns")
        parts = [group[np.sort(draw.permutation(len(group))[:SAMPLED])] for group in groups]
        weights = [torch.full((len(part),), len(group) / len(part)) for part, group in zip(parts, groups, strict=True)]
        return _Chooser(groups, torch.cat(parts), torch.cat(weights))

    def width(self, experts: int) -> int:
        """Columns per query, without those of its targets."""
        return (experts + 1) * sum(min(HIGHEST, len(group)) for group in self.groups) + len(self.sample)

    def choose(self, scores: Tensor, known: Histories, targets: Histories, most: int) -> Columns:
        """Columns of b queries with z-scores (E, b, num_items) of all items, at most `most` targets each."""
        seen = torch.from_numpy(known.row_of_entry), torch.from_numpy(known.items)
        row, item = torch.from_numpy(targets.row_of_entry), torch.from_numpy(targets.items)
        number = torch.from_numpy(np.arange(len(targets.items)) - targets.indptr[targets.row_of_entry])
        own = torch.from_numpy(targets.items[targets.indptr[:-1]])[:, None].repeat(1, most)  # (b, most)
        own[row, number] = item
        lists = [own]
        for values in (*scores, scores.mean(0)):
            ranked = values.index_put(seen, values.new_tensor(_LOWEST))
            for group in self.groups:
                best = ranked.index_select(1, group).topk(min(HIGHEST, len(group)), dim=1).indices
                lists.append(group[best])
        listed = torch.cat(lists, 1).sort(1).values  # (b, L)
        is_known, is_listed = torch.zeros(2, *scores.shape[1:], dtype=torch.bool)  # (b, num_items) each
        is_known[seen] = True
        is_listed.scatter_(1, listed, True)
        again = torch.zeros_like(listed, dtype=torch.bool)
        again[:, 1:] = listed[:, 1:] == listed[:, :-1]
        single = ~(again | is_known.gather(1, listed)) * 1.0  # (b, L)
        rest = ~(is_known | is_listed)[:, self.sample] * self.weight  # (b, S)
        items = torch.cat([listed, self.sample.expand(len(listed), -1)], 1).int()
        return Columns(items, torch.cat([single, rest], 1), torch.searchsorted(listed, own)[row, number])


def context_drift(split: Split, cold_degree: float) -> Tensor:
    """ρ (5,) of the contexts; 1 where clicks were not split by their order. Reads train and validation only."""
    if not split.ordered or split.kind != "leave-last-out" or not len(split.valid):
        return torch.ones(len(CONTEXTS))
    known = split.train.histories(split.num_users)
    last = known.indptr[1:][known.lengths > 1] - 1  # a user's only click stays
    before = np.bincount(np.delete(known.items, last), minlength=split.num_items)
    contexts = memberships(torch.from_numpy(before), cold_degree, head_degree(before))
    earlier, later = (contexts[torch.from_numpy(items)].mean(0) for items in (known.items[last], split.valid.item))
    return ((later + _RARE) / (earlier + _RARE)).nan_to_num(1.0).clamp(0.5, 2.0)


def query_features(queries: Queries, experts: Tensor, degree: Tensor, text: list[int]) -> Tensor:
    """Features (B, 3): log history length, mean log clicks of the history, correlation of both branches.

    experts (E, B, num_items): z-scores, so a mean product is a correlation; `text`: which of them are the text branch.
    """
    histories = queries.histories
    length = torch.from_numpy(histories.lengths).float()
    logs = degree.log1p().index_select(0, torch.from_numpy(histories.items))
    total = torch.zeros(len(length)).index_add_(0, torch.from_numpy(histories.row_of_entry), logs)
    graph = [place for place in range(len(experts)) if place not in text]
    agree = torch.zeros(len(length))
    if graph and text:
        agree = (experts[graph[0]] * experts[text[0]]).mean(1)  # the leading expert of each
    return torch.stack([length.log1p() / 3, total / length.clamp_min(1) / 5, agree], dim=1)


def fit_gate(
    name: str,
    gate: ContextGate,
    inputs: GateInputs,
    targets: GateTargets,
    config: Any,
    task: Task,
    pairs: Ints | None = None,
    watch: Callable[[], dict[str, Any]] | None = None,
) -> None:
    """Minimise the cross-entropy of the targets `pairs` (all by default) among all items; changes `gate` in place.

    Gate, inputs and targets are on the device of `config`.
    """
    device = targets.row.device
    start = {key: value.detach().clone() for key, value in gate.named_parameters()}
    chosen = to_device(np.arange(len(targets.row)) if pairs is None else pairs, device)

    def loss(rows: Ints, _at: At) -> Tensor:
        picked = chosen[to_device(rows, device)]
        drift = sum((value - start[key]).square().sum() for key, value in gate.named_parameters())
        pull = config.l2 * drift / (2 * len(chosen))
        entropy = targets.cross_entropy(gate, inputs, picked)
        weight = targets.weight.index_select(0, targets.row.index_select(0, picked))
        out: Tensor = (entropy * weight).mean() + pull
        return out

    settings: TrainedConfig = config
    # z-scores are relative to all items of their query: equal ones of all targets mean equal z-scores
    own = targets.experts[:, targets.row, targets.place]  # (E, P)
    inside = (targets.features, targets.weight, *inputs.__dict__.values(), own)
    train(TrainingStage(name, gate, len(chosen), loss, None, settings, inputs=inside, figures=watch), task)


@dataclass(frozen=True)
class Folds:
    """Gates that are fitted without a part of the queries each."""

    gates: list[ContextGate]
    held_out: list[Tensor]  # query rows per gate; together all of them

    def ndcg(self, inputs: GateInputs, targets: GateTargets) -> Tensor:
        """NDCG@20 (U,) of every query under the gate that was fitted without it."""
        found = targets.weight.new_zeros(len(targets.count))
        for gate, rows in zip(self.gates, self.held_out, strict=True):
            found[rows] = targets.ndcg(gate, inputs, rows)
        return found


def out_of_fold(gate: ContextGate, inputs: GateInputs, targets: GateTargets, config: Any, task: Task) -> Folds:
    """FOLDS gates, each fitted without a part of the queries, from the present values of `gate`."""
    fold = rng(task.seed, "gate/folds").integers(0, FOLDS, len(targets.count))
    gates, held_out = [], []
    for number in range(FOLDS):
        one = deepcopy(gate)
        pairs = np.flatnonzero(fold[targets.row.cpu().numpy()] != number)
        rows = to_device(np.flatnonzero(fold == number), targets.row.device)
        if len(pairs) and len(rows):
            fit_gate(f"gate-fold-{number + 1}", one, inputs, targets, config, task, pairs)
            gates.append(one)
            held_out.append(rows)
    return Folds(gates, held_out)


@torch.no_grad()
def lift_cold(
    gate: ContextGate, inputs: GateInputs, targets: GateTargets, budget: float, folds: Folds
) -> dict[str, Any]:
    """Raise the biases of the cold contexts, then that of new items, within `budget`. Returns lift and trials of both.

    Each is raised as far as NDCG@20 loses no more than half of `budget` of itself. The loss is measured on `folds`,
    gates that are lifted alike and are fitted without the targets they rank. Without a target of its kind in
    validation a context is not lifted.
    """
    done = {}
    for kind in ("cold", "new"):
        raised = targets.weight.new_tensor([name.startswith(kind) for name in CONTEXTS])
        count = int((inputs.contexts[targets.target] @ raised > 0.5).sum())
        done[kind] = _lift(raised, folds, inputs, targets, budget / 2 if count else 0.0) | {"targets": count}
        gate.context_bias.add_(done[kind]["lift"] * raised)
    return done


@torch.no_grad()
def tune_prior(
    gate: ContextGate, inputs: GateInputs, targets: GateTargets, logs: Tensor
) -> tuple[float, dict[str, float]]:
    """The p of PRIORS for which p times `logs` (num_items,), added to the scores, ranks best; NDCG@20 of each p."""
    tried = {p: targets.mean(targets.ndcg(gate, replace(inputs, prior=p * logs))) for p in PRIORS}
    return max(tried, key=lambda p: tried[p]), {str(p): value for p, value in tried.items()}


@torch.no_grad()
def keep_up_new(
    gate: ContextGate, static: ContextGate, inputs: GateInputs, targets: GateTargets, folds: Folds
) -> dict[str, Any]:
    """Where new targets rank worse than under `static`, give new items the static weights and a bias of their own.

    The weights are those of `static` on the scale that the gate has for other items. Of BIASES, the bias is the lowest
    one with which new targets rank no worse than under `static`; lower, where all targets together would rank worse
    than under `static`. Measured on `folds`, as `lift_cold`; changes these too. Returns the NDCG@20 of the new targets
    under `static`, before and after, and the bias; None: nothing had to be changed.
    """
    asked = torch.zeros_like(targets.count, dtype=torch.bool)  # (U,): has a new target
    asked[targets.row[inputs.contexts[targets.target, NEW] > 0.5]] = True
    done: dict[str, Any] = {"queries": int(asked.sum()), "bias": None}
    if not done["queries"]:
        return done
    values = targets.ndcg(static, inputs)
    least, wanted = targets.mean(values), float(values[asked].mean())
    done |= {"static": wanted, "before": float(folds.ndcg(inputs, targets)[asked].mean())}
    if done["before"] >= wanted:
        return done
    gates = [gate, *folds.gates]
    starts = [deepcopy(one.state_dict()) for one in gates]
    for one in gates:
        _static_weights(one, static, inputs)

    def with_bias(bias: float) -> Tensor:
        for one in gates:
            one.context_bias[NEW] = bias
        return folds.ndcg(inputs, targets)

    keeps_up = bisect_left(BIASES, wanted, key=lambda bias: float(with_bias(bias)[asked].mean()))
    chosen = BIASES[: keeps_up + 1]
    if targets.mean(with_bias(chosen[-1])) < least:
        chosen = chosen[: max(bisect_right(chosen, -least, key=lambda bias: -targets.mean(with_bias(bias))), 1)]
    after = float(with_bias(chosen[-1])[asked].mean())
    if after <= done["before"]:  # all that new items could gain would cost the others too much
        for one, start in zip(gates, starts, strict=True):
            one.load_state_dict(start)
        return done
    return done | {"bias": chosen[-1], "after": after}


def _static_weights(gate: ContextGate, static: ContextGate, inputs: GateInputs) -> None:
    """Give new items the weights of `static`, times the mean factor by which those of other items are larger."""
    others = 1 - inputs.contexts[:, NEW]
    learned, fixed = gate.weigh_items(inputs)[0].sum(1), static.weigh_items(inputs)[0].sum(1)  # (num_items,) each
    scale = ((learned / fixed).log() * others).sum() / others.sum().clamp_min(1)
    usual = (inputs.features * inputs.contexts[:, [NEW]]).sum(0) / inputs.contexts[:, NEW].sum().clamp_min(1)
    gate.log_weight[NEW] = static.log_weight[NEW] + scale - usual @ gate.item_slope


def _lift(raised: Tensor, folds: Folds, inputs: GateInputs, targets: GateTargets, budget: float) -> dict[str, Any]:
    """Raise the biases of the contexts `raised` (5,) of all gates in place, as far as the budget allows."""
    starts = [one.context_bias.detach().clone() for one in folds.gates]
    before, lift = targets.mean(folds.ndcg(inputs, targets)), 0.0
    tried = {"0.0": before}

    def raise_by(candidate: float) -> None:
        for one, start in zip(folds.gates, starts, strict=True):
            one.context_bias.copy_(start + candidate * raised)

    for candidate in LIFTS if budget else ():
        raise_by(candidate)
        tried[str(candidate)] = value = targets.mean(folds.ndcg(inputs, targets))
        if value < before * (1 - budget):
            break
        lift = candidate
    raise_by(lift)
    return {"lift": lift, "tried": tried}

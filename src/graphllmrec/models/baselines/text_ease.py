"""Text-EASE: a linear autoencoder over items, pulled to item–item weights that come from the texts; a closed form.

L3AE (Moon, Park & Lee 2025, "LLM-Enhanced Linear Autoencoders for Recommendation", CIKM, arXiv:2508.13500): two ridge
regressions without a diagonal, first of the texts on each other, then of the clicks, pulled to the first:

    C = argmin |Fᵀ − FᵀC|² + text_l2·|C|²                              F (num_items, text_dim): texts of unit length
    B = argmin |X − XB|² + λx·|B|² + λe·|B − C|²                       X (num_users, num_items): clicks
    score(u, j) = Σ_{i in history of u} decay^(steps back of i) · B_ij

SLIST (Choi et al. 2021, "Session-aware Linear Item-Item Models for Session-based Recommendation", WWW,
arXiv:2103.16104) also learns what comes next: a share μ of |X − XB|² is replaced by |T − SB|². They have a row for
every click that has clicks before it: T this click, S the newest PAST before it with weights FADE^(steps back). With
G = (1−μ)·XᵀX + μ·SᵀS, D = μ·(SᵀT − SᵀS), P = (G + (λx + λe)·I)⁻¹ and the quotient per column, off the diagonal

    B = λe·PC + PD − P∘(1 + λe·diag(PC) + diag(PD))/diag(P)            μ = 0 is L3AE

Settings: `l2` is λx + λe, so that P is the same for every λe; `text_weight` is λe; `directed` is μ. λx may be negative
as long as λx + λe is positive. The diagonal of C does not change B, and off its diagonal C has the rank of the texts:

    z_i = L⁻¹ f_i,  LLᵀ = FᵀF + text_l2·I,  v_j = z_j / (1 − |z_j|²):   C_ij = z_i · v_j,  PC = (PZ)Vᵀ

so there is one dense solve per `l2` and `directed`; other values of `text_weight` and `text_l2` cost a product with
thin matrices.

An item j without training clicks: the paper pulls its column to 0, because nobody clicked it. Here its clicks are taken
as unknown: without |X − XB|², column j is B_ij = text_weight / l2 · C_ij. A new item has this column too; its C_ij, the
regression of its text on those of the catalogue, is z_i · z_j. Its row is text_weight / l2 · z_i · v_j, what the
equations give for an item without clicks.

Other differences from the papers: weights of clicks in X, and a history that may fade in the score, as in EASE; SLIST
also weighs sessions by their age. Memory while the settings are tuned: three dense (num_items, num_items) float32
matrices, P, PD and B, or two without PD; then B alone. Accuracy of the solve and its repetition in float64 as in EASE.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from functools import cached_property, partial
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import scipy.sparse as sp
import torch
from pydantic import Field
from torch import Tensor

from graphllmrec.data.tables import Histories
from graphllmrec.errors import TextError
from graphllmrec.graph.bipartite import weighted_matrix
from graphllmrec.models.baselines.ease import UNTUNED_L2, checked_inverse
from graphllmrec.models.scoring import Decay, Sparse, dense_scores, history_state, load_history_state, settle_decay
from graphllmrec.nn.examples import NextClicks
from graphllmrec.nn.histories import aggregate, history_matrix, recency_weights
from graphllmrec.nn.state import prefixed, under
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import Abilities, Queries, Task, TextVectors
from graphllmrec.settings import Condition, Config
from graphllmrec.text.whiten import require_text
from graphllmrec.train.validation import Trials, climb_setting, settle, tuning_users

TRIED = {  # when tuning, one setting after the other, each from its value in UNTUNED as far as it gets better
    "text_weight": (1.0, 10.0, 50.0, 100.0, 200.0, 500.0),
    "directed": (0.0, 0.25, 0.5, 0.75),
    "l2": (UNTUNED_L2, 300.0, 1000.0),
    "text_l2": (1.0, 3.0, 10.0, 30.0, 100.0),
}
UNTUNED = {"text_weight": 100.0, "directed": 0.5, "l2": UNTUNED_L2, "text_l2": 10.0}
PAST = 20  # clicks before a click that are regressed on: with FADE the next one would weigh .0008
FADE = 0.7  # weight per step back among them


class TextEASEConfig(Config):
    """Settings of text-EASE."""

    l2: Annotated[float, Field(gt=0, le=1e8)] | Literal["tune"] = Field(
        "tune", description='ridge penalty of both kinds together, λx + λe; or "tune" on validation'
    )
    text_weight: Annotated[float, Field(ge=0, le=1e8)] | Literal["tune"] = Field(
        "tune", description='pull to the weights of the texts, λe; 0 ignores the texts; or "tune" on validation'
    )
    text_l2: Annotated[float, Field(ge=1e-3, le=1e8)] | Literal["tune"] = Field(
        10.0, description='ridge penalty when text vectors are regressed on each other; or "tune" on validation'
    )
    directed: Annotated[float, Field(ge=0, le=1)] | Literal["tune"] = Field(
        "tune", description='share of the regression of a click on those before it; or "tune" on validation'
    )
    decay: Decay = Field("tune", description='history weight per step back, 0 to 1, or "tune" on validation')

    def conditions(self) -> Iterable[Condition]:
        """Without weight, the texts are not read."""
        return [Condition("text_l2", self.text_weight != 0, "text_weight above 0")]


class TextRegression:
    """C (num_items, num_items) as the product of two thin matrices: C_ij = z_i · v_j off the diagonal."""

    def __init__(self, inputs: Tensor, targets: Tensor, factor: Tensor) -> None:
        self.inputs = inputs  # Z (num_items, text_dim)
        self.targets = targets  # V (num_items, text_dim)
        self.factor = factor  # L⁻¹ (text_dim, text_dim)

    @staticmethod
    def fit(text: TextVectors, l2: float) -> TextRegression:
        """The ridge regression of each item's text on those of the other items."""
        vectors = unit(text.vectors.double())  # F (num_items, text_dim)
        gram = vectors.T @ vectors + l2 * torch.eye(vectors.shape[1], dtype=torch.float64)
        lower = torch.linalg.cholesky(gram)  # L
        factor = torch.linalg.solve_triangular(lower, torch.eye(len(lower), dtype=torch.float64), upper=False)
        inputs = vectors @ factor.T
        targets = inputs / (1 - (inputs * inputs).sum(1, keepdim=True))  # |z_j|² ≤ 1 / (1 + l2)
        return TextRegression(inputs.float(), targets.float(), factor.float().contiguous())

    def state(self) -> dict[str, Tensor]:
        """What the constructor takes."""
        return {"inputs": self.inputs, "targets": self.targets, "factor": self.factor}

    def with_items(self, text: TextVectors) -> TextRegression:
        """More items: their texts are regressed on those of the fit. Raises TextError if the dimension differs."""
        if text.vectors.shape[1] != len(self.factor):
            raise TextError(
                f"text-ease was fitted on text vectors of {len(self.factor)} dimensions, these have "
                f"{text.vectors.shape[1]}: encode the new items with the same text encoder"
            )
        more = unit(text.vectors) @ self.factor.T
        return TextRegression(torch.cat([self.inputs, more]), torch.cat([self.targets, more]), self.factor)


class TextEASE:
    """Linear autoencoder of clicks and texts."""

    name: ClassVar[str] = "text-ease"
    config_class: ClassVar[type[Config]] = TextEASEConfig
    abilities = Abilities(needs_text=True, uses_weights=True, ranks_cold_items=True)

    def __init__(self, config: TextEASEConfig) -> None:
        self.config = config
        self.weights = torch.empty(0, 0)  # B (num_items at fit, same)
        self.text: TextRegression | None = None  # of all items
        self.text_share = 0.0  # text_weight / l2: what is left of the equation without clicks, as a multiple of C
        self.num_items = 0
        self.decay = 1.0

    def fit(self, task: Task) -> None:
        """Settings from the validation part, B solved for them. Raises TextError without text, RecipeError as EASE."""
        solver = _Solver(task, require_text(task, self.name), 8 if self.config.directed == 0 else 12)
        self.num_items = task.split.num_items
        values = self.config.model_dump()
        wanted = {name: values[name] for name in TRIED}
        if not task.split.ordered:
            if wanted["directed"] not in ("tune", 0.0):
                task.logger.log("directed-ignored", model=self.name, reason="the interactions have no order")
            wanted["directed"] = 0.0
        settings = {name: UNTUNED[name] if value == "tune" else value for name, value in wanted.items()}
        self._solve(solver, **settings)
        settle_decay(self, task)  # before the others, which depend on it more than it does on them
        users = tuning_users(task.split, task.seed)
        trials = Trials(self, task.split, users, lambda *values: self._solve(solver, *values))
        for name in [name for name, value in wanted.items() if value == "tune"]:
            found = partial(self._tuned, task, trials, settings, name)
            settings[name] = settle(task, f"{self.name}/{name}", found, settings[name])
        self._solve(solver, **settings)

    def _tuned(self, task: Task, trials: Trials, settings: Mapping[str, float], name: str) -> float:
        """The best value of one setting by NDCG@20 of validation users."""
        values = TRIED[name]
        return climb_setting(
            self, task, name, values, settings[name], lambda value: trials(*{**settings, name: value}.values())
        )

    def _solve(self, solver: _Solver, text_weight: float, directed: float, l2: float, text_l2: float) -> None:
        """Set `weights` to B; does nothing where they are solved for these settings."""
        settings = (text_weight, directed, l2, text_l2)
        if solver.in_model == settings:
            return
        solver.in_model = settings
        self.weights = torch.empty(0, 0)  # before the next solve needs its room
        inverse, drift = solver.solution(l2, directed)
        self.text, self.text_share = TextRegression.fit(solver.text, text_l2), text_weight / l2
        inputs, targets = self.text.inputs, self.text.targets
        pulled = inverse @ inputs  # PZ (num_items, text_dim)
        diagonal = 1 + text_weight * (pulled * targets).sum(1)  # (num_items,)
        if drift is not None:
            diagonal += drift.diagonal()
        weights = inverse * -(diagonal / inverse.diagonal())
        weights.addmm_(pulled, targets.T, alpha=text_weight)
        if drift is not None:
            weights += drift
        weights[:, solver.unclicked] = self.text_share * (inputs @ targets[solver.unclicked].T)
        self.weights = weights.fill_diagonal_(0.0)

    def scores(self, queries: Queries) -> Tensor:
        """Scores (B, num_items)."""
        scores, known = dense_scores(queries, self.weights, self.num_items, self.decay), len(self.weights)
        if self.num_items > known:
            self._add_new_items(scores, queries.histories, known)
        return scores

    def _add_new_items(self, scores: Tensor, histories: Histories, known: int) -> None:
        """Add to `scores` (B, num_items): what the items from `known` on get from histories, and what they give."""
        text, share = self._fitted_text(), np.float32(self.text_share)
        weights = share * recency_weights(histories, self.decay)  # (nnz,)
        scores[:, known:] += aggregate(histories, text.inputs, weights) @ text.targets[known:].T
        new = weights * (histories.items >= known)
        if not new.any():
            return
        scores[:, :known] += aggregate(histories, text.inputs, new) @ text.targets[:known].T
        rows, items = torch.from_numpy(histories.row_of_entry), torch.from_numpy(histories.items)
        own = (text.inputs * text.targets).sum(1).index_select(0, items) * torch.from_numpy(new)  # (nnz,)
        scores.index_put_((rows, items), -own, accumulate=True)  # the diagonal of B is zero

    def _fitted_text(self) -> TextRegression:
        assert self.text is not None, "used before fit()"
        return self.text

    def state(self) -> dict[str, Tensor]:
        """B, regression of the texts, share of C, decay, size of the catalogue."""
        own = {"weights": self.weights, "text_share": torch.tensor(self.text_share, dtype=torch.float64)}
        return own | history_state(self) | prefixed("text", self._fitted_text().state())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors written by `state`."""
        self.weights, self.text_share = state["weights"], float(state["text_share"])
        self.text = TextRegression(**under("text", state))
        load_history_state(self, state)

    def with_items(self, text: TextVectors) -> Self:
        """A copy with more items, placed by their text; all weights stay as fitted."""
        more = copy(self)
        more.text = self._fitted_text().with_items(text)
        more.num_items += len(text)
        return more


class _Solver:
    """What the solutions for several settings have in common."""

    def __init__(self, task: Task, text: TextVectors, bytes_per_pair: int) -> None:
        self.task, self.text, self.bytes_per_pair = task, text, bytes_per_pair
        split = task.split
        clicks = weighted_matrix(split.train, split.num_users, split.num_items)  # X (num_users, num_items)
        self.gram: Sparse = (clicks.T @ clicks).tocsr()
        self.unclicked = torch.from_numpy(np.flatnonzero(split.item_degree() == 0))
        self.in_model: tuple[float, ...] | None = None  # settings of the weights that the model has
        self._solved: tuple[tuple[float, float], tuple[Tensor, Tensor | None]] | None = None

    def solution(self, l2: float, directed: float) -> tuple[Tensor, Tensor | None]:
        """P and PD (num_items, num_items), None for 0; the last ones are kept and serve other settings of the text."""
        if self._solved is None or self._solved[0] != (l2, directed):
            self._solved = None  # before the next solve needs its room
            gram, drift = self.gram, None
            if directed:
                past, following = self._directed  # SᵀS, SᵀT
                gram = ((1 - directed) * self.gram + directed * past).tocsr()
                drift = (directed * (following - past)).astype(np.float32).T.tocsr()  # Dᵀ
            solved = checked_inverse(gram, l2, self.task, TextEASE.name, at_least=self.bytes_per_pair).T  # in rows
            inverse = np.ascontiguousarray(solved, dtype=np.float32)
            moved = None if drift is None else torch.from_numpy(drift @ inverse).T  # PD = (DᵀP)ᵀ, for P is symmetric
            self._solved = (l2, directed), (torch.from_numpy(inverse), moved)
        return self._solved[1]

    @cached_property
    def _directed(self) -> tuple[Sparse, Sparse]:
        """SᵀS and SᵀT (num_items, num_items)."""
        split = self.task.split
        clicks = NextClicks(split.train.histories(split.num_users), ordered=True, max_history=PAST)
        rows = np.arange(len(clicks))
        before = history_matrix(clicks.histories(rows), split.num_items, FADE)  # S (num_examples, num_items)
        ones = np.ones(len(clicks), dtype=np.float32)
        after = sp.csr_array(sp.coo_array((ones, (rows, clicks.target)), shape=before.shape))  # T
        return (before.T @ before).tocsr(), (before.T @ after).tocsr()

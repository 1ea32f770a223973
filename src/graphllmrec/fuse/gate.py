"""The context gate: how much of an item's score comes from clicks and how much from words, readable per item.

Soft routing: from its training clicks d an item belongs to each of four contexts to some degree,

    p_cold = σ(3 (log(1 + c) - log(1 + d)))      p_head = σ(3 (log(1 + d) - log(1 + h)))
    π = [p_cold (1 - p_head), p_cold p_head, (1 - p_cold)(1 - p_head), (1 - p_cold) p_head]

with c = `cold_degree` and h the degree from which items are "head" (the most clicked items, with half of all clicks).
Every context has its own gate, scale and prior, mixed by π:

    γ_i = Σ_c π_ic σ(a_c + w_c · x_i)      α_i = Σ_c π_ic exp(s_c)      β_i = Σ_c π_ic b_c
    score(q, i) = α_i [(1 - γ_i) graph(q, i) + γ_i text(q, i)] + β_i

x_i: features of the item (log degree, agreement of the branches). Without text γ_i is 0; without a click the graph part
is empty and γ_i is 1. A static gate is the same formula with one γ and one α for all items and β = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from graphllmrec.data.tables import Ints

CONTEXTS = ("cold/tail", "cold/head", "warm/tail", "warm/head")
_SHARPNESS = 3.0  # of the routing: an item at twice a threshold's degree belongs 8 : 1 to the upper side


@dataclass(frozen=True)
class GateInputs:
    """What the gate knows of each item."""

    contexts: Tensor  # (num_items, 4) soft membership π, rows add up to 1
    features: Tensor  # (num_items, num_features) x
    clicked: Tensor  # (num_items,) bool: has the item a training click?
    has_text: Tensor  # (num_items,) bool

    def where_cold(self, cold: Tensor, stand_in: GateInputs) -> GateInputs:
        """The items of `cold` (num_items,) bool as if nobody had clicked them; `stand_in`: one such item (1 row)."""
        pick = cold[:, None]
        return GateInputs(
            torch.where(pick, stand_in.contexts, self.contexts),
            torch.where(pick, stand_in.features, self.features),
            self.clicked & ~cold,
            self.has_text,
        )


@dataclass(frozen=True)
class GateValues:
    """What the gate says of each item (num_items,): weight of text γ, scale α, prior β."""

    gamma: Tensor
    scale: Tensor
    prior: Tensor


class ContextGate(nn.Module):
    """Gate, scale and prior per context; starts as the static gate it is given."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(len(CONTEXTS)))
        self.slope = nn.Parameter(torch.zeros(len(CONTEXTS), num_features))
        self.log_scale = nn.Parameter(torch.zeros(len(CONTEXTS)))
        self.prior = nn.Parameter(torch.zeros(len(CONTEXTS)))

    @torch.no_grad()
    def set_static(self, text_weight: float) -> None:
        """The static gate graph + text_weight · text in all contexts; an item with one part only has it count 1 + w."""
        gamma = text_weight / (1 + text_weight)
        self.logit.fill_(float(np.log(max(gamma, 1e-6) / max(1 - gamma, 1e-6))))
        self.log_scale.fill_(float(np.log1p(text_weight)))
        self.slope.zero_()
        self.prior.zero_()

    def forward(self, inputs: GateInputs) -> GateValues:
        """γ, α and β of every item."""
        each = torch.sigmoid(self.logit + inputs.features @ self.slope.T)  # (num_items, 4)
        gamma = (inputs.contexts * each).sum(1)
        gamma = torch.where(inputs.clicked, gamma, 1.0)
        gamma = torch.where(inputs.has_text, gamma, 0.0)
        return GateValues(gamma, inputs.contexts @ self.log_scale.exp(), inputs.contexts @ self.prior)


def memberships(degree: Tensor, cold_degree: float, head_degree: float) -> Tensor:
    """Soft membership (num_items, 4) in CONTEXTS from training clicks per item (num_items,)."""
    logs = torch.log1p(degree.float())
    cold = torch.sigmoid(_SHARPNESS * (float(np.log1p(cold_degree)) - logs))
    head = torch.sigmoid(_SHARPNESS * (logs - float(np.log1p(head_degree))))
    return torch.stack([cold * (1 - head), cold * head, (1 - cold) * (1 - head), (1 - cold) * head], dim=1)


def head_degree_of(degree: Ints) -> float:
    """The degree of the least clicked head item: the most clicked items that together hold half of all clicks."""
    falling = np.sort(degree)[::-1]
    held = np.cumsum(falling)
    if not len(held) or not held[-1]:
        return 1.0
    return float(falling[int(np.searchsorted(held, held[-1] / 2))])

"""What a gate could gain at most over static weights: gates that are chosen knowing the targets that they rank.

python benchmarks/gate_ceiling.py RUN

RUN: a fitted run of a stack (recipe stack, hybrid) with `model.fusion = "static"`. NDCG@20 of at most 3,000
validation users.

- best for all: the weight of one expert times one of FACTORS, for all items;
- per target: the best of these for each user, which no gate can know;
- per context: a factor for every expert and a bias in every context of the item (new, cold or warm × tail or head),
  found by coordinate ascent on the very targets that are ranked. A gate by context that is fitted on other users, as
  any honest one, has less.
"""

from __future__ import annotations

import argparse
import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from graphllmrec import Recommender
from graphllmrec.models.fusion.gate_fitting import GateTargets, build_gate_targets
from graphllmrec.nn.gate import CONTEXTS, LEARNABLE, ContextGate, GateInputs
from graphllmrec.protocol import Task

FACTORS = (0.25, 0.5, 2.0, 4.0)
BIASES = (-1.0, -0.5, -0.25, 0.25, 0.5, 1.0)
ROUNDS = 1
USERS = 3_000


def main() -> None:
    """Print the ceilings of one run as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    args = parser.parse_args()
    recommender = Recommender.load(args.run)
    model, split = recommender.model, recommender.split
    inputs = model.inputs()
    about = (
        model.degree,
        model._places("text"),
        inputs.contexts,
        model.config.gate.model_copy(update={"tune_users": USERS}),
    )
    targets = build_gate_targets(model.sum, Task(split), *about)
    model.gate.set_static(model.sum.weights, LEARNABLE)  # an expert without weight may be wanted in some context
    print(json.dumps(ceilings(model.gate, inputs, targets, list(model.sum.branches)), indent=1))


@torch.no_grad()
def ceilings(gate: ContextGate, inputs: GateInputs, targets: GateTargets, experts: list[str]) -> dict[str, Any]:
    """NDCG@20 of the static weights of `gate`, and of gates that know the targets."""
    base = targets.ndcg(gate, inputs)
    trials = {}
    for place, name in enumerate(experts):
        for factor in FACTORS:
            tried = deepcopy(gate)
            tried.log_weight[:, place] += math.log(factor)
            trials[f"{name} x {factor:g}"] = targets.ndcg(tried, inputs)
    best = max(trials, key=lambda name: float(trials[name].mean()))
    found: dict[str, Any] = {"queries": len(base), "static": float(base.mean())}
    found |= {"best for all": {best: float(trials[best].mean())}}
    found["per target"] = float(torch.stack([base, *trials.values()]).max(0).values.mean())
    return found | _per_context(gate, inputs, targets, experts)


def _per_context(gate: ContextGate, inputs: GateInputs, targets: GateTargets, experts: list[str]) -> dict[str, Any]:
    best, steps = float(targets.ndcg(gate, inputs).mean()), [math.log(factor) for factor in FACTORS]
    begin, gate = gate, deepcopy(gate)
    for _ in range(ROUNDS):
        for context in range(len(CONTEXTS)):
            for table, place, moves in [
                *((gate.log_weight, expert, steps) for expert in range(len(experts))),
                (gate.context_bias[:, None], 0, BIASES),
            ]:
                start, chosen = float(table[context, place]), 0.0
                for move in moves:
                    table[context, place] = start + move
                    if (value := float(targets.ndcg(gate, inputs).mean())) > best:
                        best, chosen = value, move
                table[context, place] = start + chosen
    factors = (gate.log_weight - begin.log_weight).exp()
    return {
        "per context": best,
        "factors": {c: dict(zip(experts, row.tolist(), strict=True)) for c, row in zip(CONTEXTS, factors, strict=True)},
        "biases": dict(zip(CONTEXTS, gate.context_bias.tolist(), strict=True)),
    }


if __name__ == "__main__":
    main()

"""Does the hand-over of the gate (gate_schedule = "grokking") help in RecMind's own fit, when its graph branch groks?

    OMP_NUM_THREADS=1 python benchmarks/grokking_fit.py [--seeds 1,2,3,4,5,6,7,8]

80 users and 80 items in 8 blocks. A user likes the 10 items of one block: 5 clicks are for training, 2 for validation;
every item has 5 training clicks. Graph branch: one embedding per user and item (no layers) with large initial weights,
so that it memorises the clicks, and finds the blocks later through weight decay. Worlds:

- nothing: titles of random words; the text is of no use
- genres: the first word of a title is one of two genres, each of four blocks; of use until the blocks are found
- small start: as "nothing", small initial weights; nothing is to be found late, so the schedule may not change a bit

Every fit goes through `Recommender.fit`. RecMind has no static weight: for "static" a constant takes the place of its
learned gate. The constants with the best area and the best end are chosen per seed, with these same figures.

Event: the first late generalisation of the graph branch in the fit of "gate" (no schedule); text weight: mean γ there.
Area: mean validation NDCG@20 from its detection on; end: the last value; kept: the best, whose weights fit keeps. p:
exact paired sign-flip test over the seeds with an event, two-sided. Seed 0 served to choose the settings, by the event
and the first share of the gate alone. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import save
from torch import Tensor

from graphllmrec import Recommender
from graphllmrec.grokking.lab.fusion import sign_flips
from graphllmrec.models.fusion.recmind.network import Gate
from graphllmrec.progress import RunLogger
from graphllmrec.rng import rng

USERS, ITEMS, BLOCKS, CLICKS, VALID = 80, 80, 8, 5, 2
STATIC = (0.02, 0.05, 0.1, 0.2, 0.4)  # γ, the weight of the text
WORLDS = {"nothing": 1, "genres": 2, "small start": 1}  # number of genres
SETTINGS: dict[str, Any] = {
    "fusion": "late", "num_layers": 0, "query": "user", "loss": "bpr", "cosine": False, "embedding_dim": 32,
    "init_scale": 3.0, "weight_decay": 0.1, "learning_rate": 1e-2, "batch_size": 100_000, "epochs": 1600,
    "validate_every": 20, "patience": 100_000, "align": 0.0, "warmup_epochs": 0, "dropout": 0.0, "cold_dropout": 0.0,
}  # fmt: skip
WORLD_SETTINGS = {
    "nothing": {"text_dim": 4},
    "genres": {"text_dim": 2},
    "small start": {"text_dim": 4, "init_scale": 0.1},
}


def make_world(seed: int, genres: int) -> tuple[dict[str, pl.DataFrame], pl.DataFrame]:
    """Interactions by part, and the items with titles."""
    random, words = rng(seed, "benchmark/grokking-fit"), list("abcdefghijklmnop")
    rings = [random.permutation(np.arange(block, ITEMS, BLOCKS)) for block in range(BLOCKS)]
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "valid": [], "test": []}
    for user in range(USERS):
        liked = np.roll(rings[user % BLOCKS], -(user // BLOCKS))
        for part, items in zip(parts, np.split(liked, [CLICKS, CLICKS + VALID]), strict=True):
            parts[part] += [(f"u{user}", f"i{item}") for item in items]
    titles = [
        " ".join([f"genre{item % BLOCKS % genres}", *("".join(random.choice(words, 5)) for _ in range(3))])
        for item in range(ITEMS)
    ]
    schema = ["user_id", "item_id"]
    frames = {part: pl.DataFrame(rows, schema=schema, orient="row") for part, rows in parts.items()}
    return frames, pl.DataFrame({"item_id": [f"i{item}" for item in range(ITEMS)], "title": titles})


class Fit(RunLogger):
    """One fit, and what it logged."""

    def __init__(self, world: str, seed: int, **settings: Any) -> None:
        super().__init__(quiet=True)
        self.epochs: list[dict[str, Any]] = []  # those with a validation
        self.events: list[dict[str, Any]] = []
        model = {"name": "recmind", **SETTINGS, **WORLD_SETTINGS[world], **settings}
        recommender = Recommender.from_recipe({"model": model, "text": {"encoder": "ngrams"}, "seed": seed})
        recommender.fit(*make_world(seed, WORLDS[world]), logger=self)
        self.weights = save(recommender.model.state())
        self.steps = [int(each["epoch"]) for each in self.epochs]  # one step per epoch
        self.valid = np.array([each["ndcg@20"] for each in self.epochs])

    def log(self, event: str, **values: Any) -> None:
        """Keep validations and events."""
        if event == "epoch" and "branches" in values:
            self.epochs.append(values)
        elif event == "grokking":
            self.events.append(values)

    @property
    def event(self) -> dict[str, Any] | None:
        """The first late generalisation of the graph branch."""
        return next((e for e in self.events if e["kind"] == "generalising" and e["branch"] == "graph"), None)

    @property
    def shares(self) -> list[float]:
        """Share of the gate given to the graph branch, at every validation."""
        return [each.get("share", {}).get("graph", 0.0) for each in self.epochs]

    @property
    def first_share(self) -> int | None:
        """The step of the first share of the gate."""
        return next((step for step, share in zip(self.steps, self.shares, strict=True) if share), None)

    def text_weight(self, step: int) -> float:
        """Mean γ of the items at the validation of this step."""
        strata = self.epochs[self.steps.index(step)]["gate"].values()
        return float(np.average([each["mean"] for each in strata], weights=[each["items"] for each in strata]))

    def figures(self, since: int) -> dict[str, float]:
        """Area from step `since` on, end, and the best value."""
        after = self.valid[np.array(self.steps) >= since]
        return {"area": float(after.mean()), "end": float(self.valid[-1]), "kept": float(self.valid.max())}


@contextmanager
def static_gate(weight: float) -> Iterator[None]:
    """γ = `weight` of all nodes with clicks, instead of the learned gate."""
    learned = Gate.forward

    def constant(_gate: Gate, _graph: Tensor, _text: Tensor, degree: Tensor) -> Tensor:
        return torch.where(degree > 0, weight, 1.0)[:, None]

    Gate.forward = constant  # type: ignore[method-assign]
    try:
        yield
    finally:
        Gate.forward = learned  # type: ignore[method-assign]


def fit_all(world: str, seed: int) -> dict[str, Any]:
    """All variants in one world with one seed."""
    fits = {"gate": Fit(world, seed, gate_schedule="none"), "gate, grokking": Fit(world, seed)}
    gate, grokking = fits["gate"], fits["gate, grokking"]
    same = gate.weights == grokking.weights and np.array_equal(gate.valid, grokking.valid)
    found: dict[str, Any] = {"identical": bool(same), "event": None, "largest share": max(grokking.shares)}
    if gate.event is not None:
        found["event"] = {name: gate.event[name] for name in ("onset", "detected")}
        found["event"]["memorised"] = gate.event["evidence"]["memorised"]
        found["text weight"] = gate.text_weight(found["event"]["detected"])
        found["first share"] = grokking.first_share
    if world == "nothing":
        fits |= {f"gate, {name}": Fit(world, seed, gate_schedule=name) for name in ("ratio", "late")}
        for weight in STATIC:
            with static_gate(weight):
                fits[f"static {weight:g}"] = Fit(world, seed, gate_schedule="none")
    since = 0 if found["event"] is None else found["event"]["detected"]
    found["variants"] = {name: fit.figures(since) for name, fit in fits.items()}
    for what in ("area", "end"):
        if static := [figures for name, figures in found["variants"].items() if name.startswith("static 0")]:
            found["variants"][f"static, best {what}"] = max(static, key=lambda figures: figures[what])
    return found


def compare(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means per variant over the runs with an event, and what "gate, grokking" gains on them."""
    runs = [run for run in runs if run["event"] is not None]
    table: dict[str, Any] = {}
    for name in runs[0]["variants"] if runs else ():
        table[name] = {}
        for what in ("area", "end", "kept"):
            ours, other = (np.array([run["variants"][n][what] for run in runs]) for n in ("gate, grokking", name))
            table[name][what] = round(float(other.mean()), 4)
            if name != "gate, grokking":
                table[name][f"{what}, gain"] = round(float((ours - other).mean()), 4)
                table[name][f"{what}, p"] = round(sign_flips(ours - other), 4)
    return {"seeds with an event": len(runs), "table": table}


def main() -> None:
    """Fit everything and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3,4,5,6,7,8")
    seeds = [int(seed) for seed in parser.parse_args().seeds.split(",")]
    began, found = time.time(), {}
    for world in WORLDS:
        runs = []
        for seed in seeds:
            runs.append(fit_all(world, seed))
            short = {key: value for key, value in runs[-1].items() if key != "variants"}
            print(world, seed, short, runs[-1]["variants"], flush=True)
        found[world] = compare(runs) | {
            "identical": [run["identical"] for run in runs],
            "event": [run["event"] for run in runs],
            "first share": [run.get("first share") for run in runs],
            "text weight": [round(run["text weight"], 3) for run in runs if run["event"] is not None],
            "largest share": [round(run["largest share"], 3) for run in runs],
        }
    print(json.dumps({"seeds": seeds, "seconds": round(time.time() - began), "worlds": found}))


if __name__ == "__main__":
    main()

"""Power-law graphs of 1, 10 and 50 million clicks: seconds and memory of sampled GraphSAGE and of full LightGCN.

    python benchmarks/scale.py                                       # sizes 1, 10 and 50 million, 2 threads
    python benchmarks/scale.py --millions 1,10 --threads 1

A graph has a fiftieth as many users and a hundredth as many items as clicks, popularity falls like a power of the rank,
and items have 64 random features. Every size and model runs in a process of its own, through the model's own `fit`:

- graphsage: two hops of 10, features alone (ids = false), histories of at most 10 clicks, 256 uniform negatives
- lightgcn:  recipe lightgcn-paper: every step propagates three layers over the whole graph

An epoch is extrapolated from the median step, which the names of the keys say, with the number of steps that were
measured beside it. `growth` is the exponent b of seconds ~ clicks^b between the smallest and the largest size (1 is
linear). At a fixed batch, a graph n times larger has n times more steps; a step of GraphSAGE then costs the same, one
of full LightGCN n times more. Seconds are by the clock, cpu_ are those of all threads of the process, which other work
on the machine disturbs less. Memory is the peak of the process, making the graph included. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import numpy as np
import torch

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Interactions
from graphllmrec.graph.neighbours import Neighbourhoods, draws, sample_tree
from graphllmrec.models.registry import build
from graphllmrec.protocol import SilentLogger, Task, TextVectors
from graphllmrec.recipe import load_recipe
from graphllmrec.rng import rng

SEED, FEATURES, CHUNK, WARM_UP = 0, 64, 5_000_000, 2
SEEDS, FANOUTS, ROUNDS = 1024, (10, 10), 50  # of the sampler alone
GRAPHSAGE = {
    "ids": False, "text_dim": FEATURES, "hidden": 64, "batch_size": 1024, "negatives": 256, "max_history": 10,
    "users_per_item": FANOUTS[0], "items_per_user": FANOUTS[1], "epochs": 1,
}  # fmt: skip
LIGHTGCN = load_recipe("lightgcn-paper").model.config.model_dump() | {"epochs": 1}


class EnoughError(Exception):
    """Ends a training from within its logger."""


class Stopwatch(SilentLogger):
    """Times the steps of a training, by the clock and in CPU seconds, and ends it after `limit` of them."""

    def __init__(self, limit: int) -> None:
        self.limit, self.seconds, self.since = limit, list[tuple[float, float]](), now()

    def advance(self, steps: int = 1, **values: float | str) -> None:  # noqa: ARG002 - the protocol's
        """The training loop has done a step, or is about to begin."""
        if "loss" in values:
            self.seconds.append(tuple(np.subtract(now(), self.since)))
            if len(self.seconds) == self.limit:
                raise EnoughError
        self.since = now()


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def clicks(size: int) -> Split:
    """`size` clicks of users who come sorted; drawn in chunks, so that nothing but the result takes memory."""
    draw = rng(SEED, "benchmark/scale", size)
    num_users, num_items = max(size // 50, 10), max(size // 100, 10)
    chunks = [min(CHUNK, size - start) for start in range(0, size, CHUNK)]
    degree = sum(
        np.bincount((num_users * draw.random(n, np.float32) ** 2).astype(np.int32), minlength=num_users + 1)[:num_users]
        for n in chunks
    )
    degree[0] += size - degree.sum()  # rounding may reach num_users
    item = np.empty(size, dtype=np.int64)
    for start, n in zip(range(0, size, CHUNK), chunks, strict=True):
        item[start : start + n] = np.minimum(num_items * draw.random(n) ** 3, num_items - 1)
    train = Interactions(np.repeat(np.arange(num_users), degree), item)
    nothing = Interactions(np.empty(0, np.int64), np.empty(0, np.int64))
    return Split("synthetic", num_users, num_items, train, nothing, nothing, valid_in_history=False, ordered=True)


def measure(model: str, size: int, steps: int) -> dict[str, Any]:
    """Seconds per step and peak memory of one model on one size; of graphsage also the sampler's speed."""
    split = clicks(size)
    watch = Stopwatch(steps + WARM_UP)
    text, settings = None, LIGHTGCN
    if model == "graphsage":
        vectors = torch.from_numpy(rng(SEED, "features").standard_normal((split.num_items, FEATURES), np.float32))
        text, settings = TextVectors(vectors, torch.ones(split.num_items, dtype=torch.bool)), GRAPHSAGE
    with suppress(EnoughError):
        build(model, settings).fit(Task(split, text, SEED, watch))
    wall, cpu = np.median(np.array(watch.seconds[WARM_UP:]), axis=0)
    epoch_steps = -(-size // settings["batch_size"])
    found: dict[str, Any] = {
        "s_per_step": round(wall, 4),
        "cpu_s_per_step": round(cpu, 4),
        "s_per_epoch_extrapolated": round(wall * epoch_steps, 1),
        "cpu_s_per_epoch_extrapolated": round(cpu * epoch_steps, 1),
        "steps_measured": len(watch.seconds) - WARM_UP,
        "steps_per_epoch": epoch_steps,
        "peak_memory_gb": round(peak_memory_gb(), 2),
    }
    if model == "graphsage":
        found |= sampler(Neighbourhoods.of(split.train, split.num_users, split.num_items))
    return found


def sampler(graph: Neighbourhoods) -> dict[str, float]:
    """Edges that the sampler alone draws per second: SEEDS items x FANOUTS."""
    seeds = rng(SEED, "seeds").integers(0, len(graph.of_items), (ROUNDS, SEEDS))
    rates = []
    for step, items in enumerate(torch.from_numpy(seeds)):
        began = now()
        hops = sample_tree(graph.towards("items", len(FANOUTS)), items, FANOUTS, draws(SEED, "scale", 0, step))
        rates.append(sum(len(hop.nodes) for hop in hops) / np.subtract(now(), began))
    wall, cpu = np.median(np.array(rates[WARM_UP:]), axis=0)
    return {"sampled_edges_per_s": round(wall), "sampled_edges_per_cpu_s": round(cpu)}


def peak_memory_gb() -> float:
    """Largest resident size of this process so far; unlike ru_maxrss it does not count the parent's."""
    status = Path("/proc/self/status")
    if not status.exists():
        raise SystemExit("memory is read from /proc/self/status, which this system does not have")
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def in_a_process(model: str, size: int, steps: int, threads: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", model, str(size), str(steps), "--threads", str(threads)]
    child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    print(f"{model}, {size:,} clicks:", found, flush=True)
    return found


def growth(results: dict[int, dict[str, Any]], key: str) -> float | None:
    """Exponent b of results[size][key] ~ size^b between the smallest and the largest size."""
    small, large = min(results), max(results)
    if small == large:
        return None
    return round(math.log(results[large][key] / results[small][key]) / math.log(large / small), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", default="1,10,50", help="sizes, in millions of clicks")
    parser.add_argument("--models", default="graphsage,lightgcn")
    parser.add_argument("--steps", type=int, default=20, help="steps that are measured")
    parser.add_argument("--lightgcn-steps", help="steps of lightgcn per size, e.g. 20,5,2; default: as --steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        model, size, steps = options.child
        print(json.dumps(measure(model, int(size), int(steps))))
        return
    sizes = [round(float(part) * 1e6) for part in options.millions.split(",")]
    lightgcn_steps = options.lightgcn_steps.split(",") if options.lightgcn_steps else [options.steps] * len(sizes)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result: dict[str, Any] = {"benchmark": "scale"}
    for model in options.models.split(","):
        steps = lightgcn_steps if model == "lightgcn" else [options.steps] * len(sizes)
        found = {size: in_a_process(model, size, int(n), options.threads) for size, n in zip(sizes, steps, strict=True)}
        exponents = {
            key: growth(found, key) for key in ("s_per_step", "cpu_s_per_step", "cpu_s_per_epoch_extrapolated")
        }
        result[model] = {"clicks": {str(size): values for size, values in found.items()}, "growth": exponents}
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    about = {"threads": options.threads, "seed": SEED, "commit": commit.stdout.strip(), "versions": versions}
    print(json.dumps(result | about))


if __name__ == "__main__":
    main()

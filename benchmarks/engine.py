"""One training batch of `lightgcn-paper` beside the same batch on a COO matrix with plain autograd; ranking; memory.

    python benchmarks/engine.py --data DIR            # DIR holds gowalla/train.parquet and gowalla/test.parquet
    python benchmarks/engine.py --data DIR --set yelp2018 --epoch     # a whole epoch of ours as well

Ours is the real training loop: drawing the batch and its negatives, loss, gradient, optimiser, logger. The others are
written here or come from their packages, and take the same examples, negatives, loss and optimiser (fused AdamW):

- coo:  the layers with `torch.sparse.mm` on a coalesced COO matrix, summed up as they are made; autograd
- pyg:  torch_geometric's LightGCN on a torch CSR matrix that is normalised once (where torch_geometric is installed)

Batches of all take turns, so that other work on the machine hits all alike: read the ratios, of wall-clock seconds and
of CPU seconds over all threads, medians over batches. Memory is the peak of a process of its own that imports, reads,
builds the graph and trains some batches. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from graphllmrec.data.read import load_data
from graphllmrec.data.split import Split, make_split
from graphllmrec.evaluation.evaluation import evaluate_model
from graphllmrec.graph.bipartite import Bipartite
from graphllmrec.models.registry import build
from graphllmrec.nn.examples import UnclickedItems
from graphllmrec.protocol import SilentLogger, Task
from graphllmrec.recipe import load_recipe
from graphllmrec.train.batches import epoch_order

SEED, WARM_UP, MEMORY_BATCHES = 0, 2, 10
SETTINGS = load_recipe("lightgcn-paper").model.config.model_dump()
DIM, LAYERS, BATCH, L2 = (SETTINGS[name] for name in ("embedding_dim", "num_layers", "batch_size", "l2"))
Batch = tuple[Tensor, Tensor, Tensor]  # users, clicked items, unclicked items, each (B,) int64


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def elapsed(since: tuple[float, float]) -> tuple[float, float]:
    """Seconds by the clock, and CPU seconds of all threads."""
    return time.perf_counter() - since[0], time.process_time() - since[1]


class EnoughError(Exception):
    """Ends a training from within its logger."""


class Stopwatch(SilentLogger):
    """Times every batch of a training, which ends after `limit` of them; in between, the others have their turn."""

    def __init__(self, limit: int, between: Callable[[int], None]) -> None:
        self.limit, self.between = limit, between
        self.seconds: list[tuple[float, float]] = []
        self.since = now()

    def advance(self, steps: int = 1, **values: float | str) -> None:  # noqa: ARG002 - the protocol's
        """The training loop has done a batch, or is about to begin."""
        if "loss" in values:
            self.seconds.append(elapsed(self.since))
            if len(self.seconds) == self.limit:
                raise EnoughError
            self.between(len(self.seconds) - 1)
        self.since = now()


class Rival:
    """One way to write the published training step: `layer_mean(nodes, matrix)` is what differs."""

    def __init__(self, split: Split, matrix: Tensor, layer_mean: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.split, self.matrix, self.layer_mean = split, matrix, layer_mean
        random = torch.Generator().manual_seed(SEED)
        self.nodes = torch.nn.Parameter(torch.randn(matrix.shape[0], DIM, generator=random) * 0.1)
        rate = SETTINGS["learning_rate"]
        self.optimizer = torch.optim.AdamW([self.nodes], lr=rate, weight_decay=0.0, fused=True)
        self.order = epoch_order(len(split.train), SEED, "graph", 0)
        self.unclicked = UnclickedItems(split.train.histories(split.num_users), split.num_items)
        self.seconds: list[tuple[float, float]] = []

    def batch(self, step: int) -> Batch:
        """The examples of ours, with the same negatives."""
        rows = self.order[step * BATCH : (step + 1) * BATCH]
        user = self.split.train.user[rows]
        other = self.unclicked.draw(user, SEED, "graph", 0, step)
        return torch.from_numpy(user), torch.from_numpy(self.split.train.item[rows]), torch.from_numpy(other)

    def step(self, step: int) -> float:
        """One training step; returns its loss."""
        began = now()
        user, item, other = self.batch(step)
        places = [user, item + self.split.num_users, other + self.split.num_users]
        z = self.layer_mean(self.nodes, self.matrix)
        query, positive, negative = (z.index_select(0, place) for place in places)
        penalty = sum(self.nodes.index_select(0, place).square().sum() for place in places) / (2 * len(user))
        margin = (query * negative).sum(1) - (query * positive).sum(1)
        loss = F.softplus(margin).mean() + L2 * penalty
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        value = float(loss.detach())
        self.seconds.append(elapsed(began))
        return value


def coo_mean(nodes: Tensor, matrix: Tensor) -> Tensor:
    total = layer = nodes
    for _ in range(LAYERS):
        layer = torch.sparse.mm(matrix, layer)
        total = total + layer
    return total / (LAYERS + 1)


def pyg_mean() -> Callable[[Tensor, Tensor], Tensor]:
    from torch_geometric.nn.models import LightGCN

    model = LightGCN(1, DIM, LAYERS, normalize=False)

    def layer_mean(nodes: Tensor, matrix: Tensor) -> Tensor:
        model.embedding.weight = nodes
        mean: Tensor = model.get_embedding(matrix)
        return mean

    return layer_mean


def joint(graph: Bipartite) -> Tensor:
    """The adjacency of all nodes, users first, as a coalesced COO matrix."""
    place = graph.to_users.to_sparse_coo().coalesce()
    num_users, num_items = graph.to_users.shape
    user, item = place.indices()[0].long(), place.indices()[1].long() + num_users
    both = torch.stack([torch.cat([user, item]), torch.cat([item, user])])
    values = torch.cat([place.values(), place.values()])
    size = num_users + num_items
    return torch.sparse_coo_tensor(both, values, (size, size), check_invariants=False).coalesce()


def rivals(split: Split) -> dict[str, Rival]:
    matrix = joint(Bipartite.of(split.train, split.num_users, split.num_items))
    found = {"coo": Rival(split, matrix, coo_mean)}
    if find_spec("torch_geometric"):
        found["pyg"] = Rival(split, matrix.to_sparse_csr(), pyg_mean())
    else:
        print("torch_geometric is not installed: its LightGCN is not measured")
    return found


def train(split: Split, batches: int, others: Iterable[Rival] = ()) -> NDArray[np.float64]:
    """Seconds (batches, 2), by the clock and of CPU, of the first batches of lightgcn-paper, the others in turn."""

    def between(step: int) -> None:
        for rival in others:
            rival.step(step)

    watch = Stopwatch(batches, between)
    with suppress(EnoughError):
        build("lightgcn", SETTINGS | {"epochs": 1}).fit(Task(split, seed=SEED, logger=watch))
    return np.array(watch.seconds)


def peak_memory_mb() -> float:
    """Largest resident size of this process so far; unlike ru_maxrss it does not count the parent's."""
    status = Path("/proc/self/status")
    if not status.exists():
        raise SystemExit("memory is read from /proc/self/status, which this system does not have")
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024


def measured_memory(options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--data", str(options.data), "--set", options.set, "--memory"]
    child = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(child.stdout.splitlines()[-1])
    return found


def memory(folder: Path) -> dict[str, float]:
    imported = peak_memory_mb()
    split = make_split(load_data(folder))
    read = peak_memory_mb()
    train(split, MEMORY_BATCHES)
    return {"imports": round(imported), "and_reading": round(read), "and_training": round(peak_memory_mb())}


def measure(split: Split, options: argparse.Namespace) -> dict[str, Any]:
    others = rivals(split)
    ours = train(split, options.batches + WARM_UP + 1, others.values())[WARM_UP:-1]
    steps = -(-len(split.train) // BATCH)
    seconds = np.median(ours, axis=0)
    result: dict[str, Any] = {"ours_s_per_batch": round(seconds[0], 4), "ours_cpu_s_per_batch": round(seconds[1], 4)}
    for name, rival in others.items():
        theirs = np.array(rival.seconds[WARM_UP:])
        ratio = np.median(ours / theirs, axis=0)
        result[f"{name}_s_per_batch"] = round(float(np.median(theirs[:, 0])), 4)
        result |= {f"ratio_to_{name}": round(ratio[0], 3), f"cpu_ratio_to_{name}": round(ratio[1], 3)}
    result["seconds_per_epoch"] = round(seconds[0] * steps, 1)
    if options.epoch:
        result["seconds_of_a_whole_epoch"] = round(train(split, steps)[:, 0].sum(), 1)
    model = build("lightgcn", SETTINGS | {"epochs": 0})
    model.fit(Task(split, seed=SEED))
    began = time.perf_counter()
    evaluate_model(model, split, ks=(10, 20))
    result["ranking_seconds"] = round(time.perf_counter() - began, 2)
    return result | {"batches": len(ours), "batches_per_epoch": steps}


def about() -> dict[str, Any]:
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    with suppress(PackageNotFoundError):
        versions["torch-geometric"] = version("torch-geometric")
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in info if line.startswith("model name")]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    cpu, load = names[0] if names else platform.processor(), round(os.getloadavg()[0], 1)
    facts = {"cpu": cpu, "threads": torch.get_num_threads(), "load_average_before": load}
    return facts | {"commit": commit.stdout.strip(), "versions": versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("GRAPHLLMREC_DATA"), help="or GRAPHLLMREC_DATA")
    parser.add_argument("--set", default="gowalla")
    parser.add_argument("--batches", type=int, default=40, help="batches that are timed, of each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epoch", action="store_true", help="train a whole epoch of ours, too")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.data is None or not (Path(options.data) / options.set / "train.parquet").is_file():
        parser.error(f"--data DIR (or GRAPHLLMREC_DATA) must name the folder that holds the set {options.set!r}")
    torch.set_num_threads(options.threads)
    folder = Path(options.data) / options.set
    if options.memory:
        print(json.dumps(memory(folder)))
        return
    facts = about()  # before the run: the code that is measured, and what else the machine has to do
    peak = measured_memory(options)
    print("peak memory, MB:", peak)
    split = make_split(load_data(folder))
    result = measure(split, options)
    shape = {"users": split.num_users, "items": split.num_items, "clicks": len(split.train)}
    settings = {"dim": DIM, "num_layers": LAYERS, "batch_size": BATCH, "seed": SEED}
    print(json.dumps({"benchmark": "engine", "set": options.set, **result, "peak_memory_mb": peak, **shape, **settings,
                      **facts}))  # fmt: skip


if __name__ == "__main__":
    main()

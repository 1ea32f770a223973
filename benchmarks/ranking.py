"""Full ranking with all metrics: 29,858 users x 40,981 items (gowalla, the LightGCN paper's split), d = 64, top-20.

    python benchmarks/ranking.py --data DIR        # DIR holds gowalla/train.parquet and gowalla/test.parquet

What is timed: `evaluate_model`, i.e. scores, masking, top-20, every metric at 10 and 20, strata and intervals. Beside
it, in the same run: scores, masking and `torch.topk` alone (no metrics), as anybody would write them. The vectors are
random. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from graphllmrec.data.read import load_data
from graphllmrec.data.split import Split, make_split
from graphllmrec.evaluation.evaluation import evaluate_model
from graphllmrec.protocol import Queries

DIM, K, SEED = 64, 20, 0


class RandomVectors:
    """A vector model that has learned nothing."""

    name = "random-vectors"

    def __init__(self, num_users: int, num_items: int) -> None:
        generator = torch.Generator().manual_seed(SEED)
        self.users = torch.randn(num_users, DIM, generator=generator)
        self.items = torch.randn(num_items, DIM, generator=generator)

    def scores(self, queries: Queries) -> torch.Tensor:
        """Dot products (B, num_items)."""
        return self.users.index_select(0, torch.from_numpy(queries.users)) @ self.items.T  # (B, num_items)


def read(folder: Path) -> Split:
    folder = folder / "gowalla" if (folder / "gowalla").is_dir() else folder
    if not (folder / "train.parquet").is_file():
        raise SystemExit(f"{folder}: no train.parquet; --data must name the folder that holds the set 'gowalla'")
    return make_split(load_data(folder))


def plain_topk(model: RandomVectors, split: Split, batch: int = 256) -> None:
    """Scores, masking and torch.topk, nothing else."""
    known = split.known("test")
    for start in range(0, split.num_users, batch):
        queries = Queries.of(known, np.arange(start, min(start + batch, split.num_users)))
        scores = model.scores(queries)
        scores[torch.from_numpy(queries.histories.row_of_entry), torch.from_numpy(queries.histories.items)] = -torch.inf
        scores.topk(K, dim=1)


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("GRAPHLLMREC_DATA"), help="default: GRAPHLLMREC_DATA"
    )
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    if options.data is None:
        parser.error("--data DIR (or GRAPHLLMREC_DATA) must name the folder that holds the set 'gowalla'")
    split = read(options.data)
    model = RandomVectors(split.num_users, split.num_items)
    runs = [timed(lambda: evaluate_model(model, split, ks=(10, K))) for _ in range(options.repeat)]  # type: ignore[arg-type]
    plain = [timed(lambda: plain_topk(model, split)) for _ in range(options.repeat)]
    print("evaluate_model:", *(f"{seconds:.2f} s" for seconds in runs))
    print("torch.topk, no metrics:", *(f"{seconds:.2f} s" for seconds in plain))
    seconds = float(np.median(runs))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result = {
        "benchmark": "ranking",
        "seconds": round(seconds, 2),
        "users_per_s": round(split.num_users / seconds),
        "plain_topk_seconds": round(float(np.median(plain)), 2),
        "times_faster_than_plain_topk": round(float(np.median(plain)) / seconds, 2),
        "users": split.num_users,
        "items": split.num_items,
        "dim": DIM,
        "k": K,
        "threads": torch.get_num_threads(),
        "seed": SEED,
        "commit": commit.stdout.strip(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

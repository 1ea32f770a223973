"""Time and quality of models of clicks: from reading the files to the metrics, one after the other.

    python benchmarks/clicks.py --data DIR --sets gowalla --recipes graph-filter,bspm,lightgcn-fast --seeds 0

DIR holds the sets as folders. Every recipe is fitted on the training part and ranks all items for every user with a
test target. What is timed is reading and splitting, fitting, and evaluating; starting Python is not. Seconds of the
processor are given beside those of the clock, for a machine that does other work meanwhile. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import time
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import numpy as np
import torch

from graphllmrec.data.read import load_data
from graphllmrec.data.split import make_split
from graphllmrec.evaluation.evaluation import evaluate_model
from graphllmrec.models.registry import build
from graphllmrec.protocol import Task
from graphllmrec.recipe import load_recipe


class Clock:
    """Seconds since it was made or last read, on the clock and of the processor."""

    def __init__(self) -> None:
        self.read()

    def read(self) -> tuple[float, float]:
        """Both since the last reading."""
        now = time.perf_counter(), time.process_time()
        before, self.before = getattr(self, "before", now), now
        return round(now[0] - before[0], 1), round(now[1] - before[1], 1)


def measured(folder: Path, name: str, seed: int) -> dict[str, Any]:
    """Figures of one recipe on one set with one seed."""
    clock = Clock()
    split = make_split(load_data(folder), seed=seed)
    reading = clock.read()
    recipe = load_recipe(name).for_data(split.ordered)
    model = build(recipe.model.name, recipe.model.config.model_dump())
    model.fit(Task(split, seed=seed))
    fitting = clock.read()
    overall = evaluate_model(model, split, ks=(20,)).overall
    evaluating = clock.read()
    parts = {"read": reading, "fit": fitting, "evaluate": evaluating}
    result = {
        "set": folder.name,
        "recipe": name,
        "seed": seed,
        "recall@20": round(overall["recall@20"], 4),
        "ndcg@20": round(overall["ndcg@20"], 4),
        "seconds": {part: seconds for part, (seconds, _) in parts.items()},
        "processor_seconds": {part: seconds for part, (_, seconds) in parts.items()},
        "total_seconds": round(sum(seconds for seconds, _ in parts.values()), 1),
        "peak_gb_so_far": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }
    print(json.dumps(result), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("GRAPHLLMREC_DATA"), required=False)
    parser.add_argument("--sets", default="gowalla")
    parser.add_argument("--recipes", default="graph-filter,bspm,lightgcn-fast")
    parser.add_argument("--seeds", default="0")
    options = parser.parse_args()
    if options.data is None:
        parser.error("--data DIR (or GRAPHLLMREC_DATA) must name the folder that holds the sets")
    runs = product(options.sets.split(","), options.recipes.split(","), map(int, options.seeds.split(",")))
    results = [measured(options.data / name, recipe, seed) for name, recipe, seed in runs]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    print(
        json.dumps({
            "benchmark": "clicks",
            "results": results,
            "threads": torch.get_num_threads(),
            "commit": commit.stdout.strip(),
            "versions": versions,
        })
    )  # fmt: skip


if __name__ == "__main__":
    main()

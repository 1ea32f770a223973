"""Test metrics of recipes on data folders, every seed a full fit: the rows of the README's quality table.

    python benchmarks/quality.py --data DIR --sets amazon-scientific --recipes ease,text-knn,z-sum,hybrid --seeds 0,1,2

DIR holds one data folder per set (default: the environment variable GRAPHLLMREC_DATA). Of a model with branches each
branch is scored alone as well. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import numpy as np
import torch

from graphllmrec.evaluation.evaluation import Evaluation
from graphllmrec.protocol import BranchModel
from graphllmrec.recommender import Recommender

METRICS = ("hr@20", "recall@20", "ndcg@20")
STRATA = ("0", "1-3", "4-10", "11-50", ">50")


def measured(evaluation: Evaluation) -> dict[str, float]:
    """Overall metrics and NDCG@20 by item degree."""
    strata = evaluation.strata["item_degree"]
    row = {name: evaluation.overall[name] for name in METRICS}
    return row | {f"ndcg@20 of degree {name}": strata[name]["ndcg@20"] for name in STRATA if name in strata}


def run(folder: Path, recipe: str, seed: int) -> tuple[dict[str, dict[str, float]], float]:
    """Metrics of the model and of each branch, by name, and seconds of fitting with text vectors in the cache."""
    recommender = Recommender.from_recipe(recipe, seed=seed)
    began = time.perf_counter()
    recommender.fit(folder)
    seconds = time.perf_counter() - began
    rows = {recipe: measured(recommender.evaluate("test"))}
    if recipe.startswith("hybrid") and isinstance(recommender.model, BranchModel):
        for branch in recommender.model.branches:
            rows[f"{recipe}/{branch}"] = measured(recommender.evaluate("test", branch=branch))
    return rows, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("GRAPHLLMREC_DATA"))
    parser.add_argument("--sets", default="amazon-scientific")
    parser.add_argument("--recipes", default="ease,text-knn,transitions,z-sum,lightgcn-fast,hybrid-static,hybrid")
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    if not options.data:
        sys.exit("name the folder that holds the data folders: --data DIR, or set GRAPHLLMREC_DATA")
    found: dict[str, Any] = {}
    for name in options.sets.split(","):
        for recipe in options.recipes.split(","):
            for seed in map(int, options.seeds.split(",")):
                rows, seconds = run(Path(options.data) / name, recipe, seed)
                for model, row in rows.items():
                    entry = found.setdefault(name, {}).setdefault(model, {"seconds": [], "seeds": []})
                    entry["seeds"].append(row)
                    entry["seconds"].append(round(seconds, 1))
                    shown = " ".join(f"{key} {value:.4f}" for key, value in row.items())
                    print(f"{name} {model} seed {seed} ({seconds:.0f} s): {shown}", flush=True)
    for models in found.values():
        for entry in models.values():
            keys = entry["seeds"][0]
            entry["mean"] = {key: round(float(np.mean([row[key] for row in entry["seeds"]])), 4) for key in keys}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    facts = {"commit": commit.stdout.strip(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    split = "ready-made, or leave-last-out; all items ranked, seen items masked"
    print(json.dumps({"benchmark": "quality", "cpu": platform.processor() or platform.machine(), **facts,
                      "split": split, "results": found}))  # fmt: skip


if __name__ == "__main__":
    main()

"""SIGKILL at random moments of a fit: does the resumed run end with the same bytes, weights and log?

    OMP_NUM_THREADS=1 python benchmarks/kills.py [--kills 30] [--models lightgcn-fast,hybrid,graphsage] [--seed 0]

Fits on the packaged MovieLens (40-core) with small settings, a checkpoint at least every .2 s and a fresh cache of text
vectors per round. A round: fit, killed after a time drawn uniformly from the length of the unbroken fit (from the end
of its imports), resumed, killed again …, until an attempt reaches the end; then SHA-256 of model.safetensors and
log.jsonl are held against the unbroken run. After every kill all checkpoints must be readable. A recipe that is not
there is left out, with a note. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import numpy as np
import torch

import graphllmrec.data
from graphllmrec.errors import GraphLLMRecError
from graphllmrec.recipe import load_recipe
from graphllmrec.recommender import Recommender
from graphllmrec.rng import rng
from graphllmrec.run_folder import state_of
from graphllmrec.train.checkpoint import Checkpoints

DEMO = Path(graphllmrec.data.__file__).parent / "demo"
SAVE_EVERY = 0.2
BATCHES = {"batch_size": 1024}
SETTINGS: dict[str, dict[str, Any]] = {
    "lightgcn-fast": {"epochs": 20, "patience": 20, **BATCHES},
    "hybrid": {
        "settings": {"sign": {"epochs": 2, "min_steps": 0, "negatives": 256, "max_history": 20}},
        "gate": {"epochs": 2, "min_steps": 0},
    },
    "graphsage": {"epochs": 2, **BATCHES},
}


def attempt(name: str, path: Path) -> None:
    """Begin the fit, or continue it, or find it finished."""
    state = state_of(path)
    if state == "absent":
        recipe = load_recipe(name, {"model": SETTINGS[name], "data": {"k_core": 40}})
        Recommender(recipe).fit(DEMO, out=path, save_every=SAVE_EVERY)
    elif state == "interrupted":
        Recommender.resume(path, save_every=SAVE_EVERY)


def start(name: str, path: Path, cache: Path) -> subprocess.Popen[str]:
    """A process that makes an attempt, at the moment when its imports are done."""
    command = [sys.executable, __file__, "--attempt", name, "--folder", str(path)]
    environment = os.environ | {"GRAPHLLMREC_CACHE": str(cache)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise SystemExit(f"the attempt at {name} did not begin")
    return process


def outcome(path: Path) -> dict[str, str]:
    return {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in ("model.safetensors", "log.jsonl")}


def unreadable(path: Path) -> int:
    """Checkpoints of a killed run that cannot be read."""
    bad = 0
    for file in (path / "checkpoint").glob("*.safetensors"):
        try:
            Checkpoints(file.parent).load(file.stem)
        except GraphLLMRecError as error:
            print(f"  {error}")
            bad += 1
    return bad


def place(path: Path) -> str:
    """Where in the fit the kill came."""
    if state_of(path) != "interrupted":
        return "before the run folder" if state_of(path) == "absent" else "after the last write"
    lines = (path / "timings.jsonl").read_text().splitlines() if (path / "timings.jsonl").exists() else []
    names = [
        entry["name"] for entry in map(json.loads, filter(lambda line: line.endswith("}"), lines)) if "name" in entry
    ]
    return f"in {names[-1]!r}" if names else "before the first stage"


def rounds(name: str, kills: int, folder: Path, seed: int) -> dict[str, Any]:
    """Kill fits of one recipe until there were `kills` kills; what came of them."""
    began = time.monotonic()
    process = start(name, folder / "whole", folder / "cache-whole")
    ready = time.monotonic()
    if process.wait():
        raise SystemExit(f"the unbroken fit of {name} failed")
    length, expected = time.monotonic() - ready, outcome(folder / "whole")
    draw, done, identical, number, bad = rng(seed, f"kills/{name}"), 0, 0, 0, 0
    where: Counter[str] = Counter()
    while done < kills:
        number += 1
        path, cache, in_this_round = folder / f"round-{number}", folder / f"cache-{number}", 0
        while True:
            process = start(name, path, cache)
            ready = time.monotonic()
            try:
                if done + in_this_round < kills:
                    process.wait(timeout=float(draw.uniform(0, length)))
                else:
                    process.wait()
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                in_this_round += 1
                where[place(path)] += 1
                bad += unreadable(path)
                continue
            if process.returncode:
                raise SystemExit(f"an attempt at {name} failed")
            if not in_this_round:  # too late a kill: the machine was busier during the first fit, which it came from
                length = min(length, time.monotonic() - ready)
            break
        same = outcome(path) == expected
        done += in_this_round
        identical += in_this_round * same
        print(
            f"{name}, round {number}: {in_this_round} kills, {'the same bytes' if same else 'OTHER BYTES'}", flush=True
        )
    return {
        "kills": done,
        "rounds": number,
        "kills_in_rounds_with_identical_outcome": identical,
        "unreadable_checkpoints": bad,
        "shortest_unbroken_seconds": round(length, 1),
        "where": dict(where.most_common()),
        "sha256": {key: value[:16] for key, value in expected.items()},
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--models", default=",".join(SETTINGS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attempt", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.attempt:
        print("ready", flush=True)
        attempt(args.attempt, args.folder)
        return
    names, results = args.models.split(","), {}
    for left_out in [name for name in names if not (Path(__file__).parents[1] / "recipes" / f"{name}.toml").exists()]:
        print(f"note: there is no recipe {left_out!r}; left out")
        names.remove(left_out)
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        for place_, name in enumerate(names):
            share = (args.kills + place_) // len(names)
            results[name] = rounds(name, share, Path(folder) / name, args.seed)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    total = {key: sum(result[key] for result in results.values())
             for key in ("kills", "kills_in_rounds_with_identical_outcome", "unreadable_checkpoints")}  # fmt: skip
    versions = {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}
    about = {"seed": args.seed, "save_every": SAVE_EVERY, "threads": torch.get_num_threads(), "cpus": os.cpu_count(),
             "cpu": platform.processor() or platform.machine(), "commit": commit.stdout.strip(),
             "versions": versions}  # fmt: skip
    print(json.dumps({"benchmark": "kills", **total, "models": results, **about}))


if __name__ == "__main__":
    main()

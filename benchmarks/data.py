"""Ten million interactions: how long do reading, checking, numbering and splitting take, and how much memory?

    python benchmarks/data.py [--interactions 10000000] [--format parquet] [--seed 0]

Makes a parquet file of string ids, power-law users and items and unix timestamps in a temporary folder, then measures
load_data + make_split (leave-last-out) in a process of its own. The last line is one JSON object; the bar is
30 s and 4 GB on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from graphllmrec.data import check_leakage, load_data, make_split, statistics
from graphllmrec.rng import rng


def write(folder: Path, interactions: int, seed: int, suffix: str) -> None:
    """A shuffled table: about a fiftieth as many users, and a hundredth as many items, with Zipf-like popularity."""
    draw = rng(seed, "benchmark/data")
    users, items = max(interactions // 50, 10), max(interactions // 100, 10)
    user = (users * draw.random(interactions) ** 2).astype(np.int64)
    item = (items * draw.random(interactions) ** 3).astype(np.int64)
    frame = pl.DataFrame({"user": user, "item": item}).select(
        user_id=pl.lit("A") + pl.col("user").cast(pl.String).str.zfill(12),
        item_id=pl.lit("B00") + pl.col("item").cast(pl.String).str.zfill(7),
        timestamp=pl.Series(draw.integers(1_400_000_000, 1_700_000_000, interactions)),
    )
    if suffix == "csv":
        frame.write_csv(folder / "interactions.csv")
    else:
        frame.write_parquet(folder / "interactions.parquet")


def measure(folder: str) -> dict[str, object]:
    """Seconds per stage and the peak memory of this process, imports included."""
    seconds = {}
    start = time.perf_counter()
    dataset = load_data(folder)
    seconds["read_and_index"] = time.perf_counter() - start
    start = time.perf_counter()
    split = make_split(dataset)
    seconds["split"] = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    start = time.perf_counter()
    check_leakage(split)
    seconds["check_leakage"] = time.perf_counter() - start
    start = time.perf_counter()
    figures = statistics(dataset, split)
    seconds["statistics"] = time.perf_counter() - start
    return {
        "seconds": round(seconds["read_and_index"] + seconds["split"], 2),
        "stages": {name: round(value, 2) for name, value in seconds.items()},
        "peak_rss_gb": round(peak, 2),
        "peak_rss_gb_with_checks": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        **{name: figures[name] for name in ("users", "items", "interactions", "repeats_dropped")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--interactions", type=int, default=10_000_000)
    parser.add_argument("--format", choices=("parquet", "csv"), default="parquet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        print(json.dumps(measure(args.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), args.interactions, args.seed, args.format)
        command = [sys.executable, __file__, "--folder", folder]
        child = subprocess.run(command, check=True, capture_output=True, text=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result = json.loads(child.stdout.splitlines()[-1])
    versions = {"python": platform.python_version(), "polars": pl.__version__, "numpy": np.__version__}
    about = {"format": args.format, "seed": args.seed, "versions": versions, "commit": commit.stdout.strip()}
    print(json.dumps({"benchmark": "data", **result, **about}))


if __name__ == "__main__":
    main()

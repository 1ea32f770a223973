"""Lists of all users of a run, written into parquet; and `recommend` for 5,000 users beside ranking them alone.

    python benchmarks/lists.py RUN [--k 10] [--users 5000]

RUN is a run folder; the figures in docs/guides/lists.md are of `fit sign --data amazon-beauty`. Ranking alone is
`top_k` on the same queries, in the same process, in turn; the smallest of three. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import numpy as np
import torch

from graphllmrec import Recommender
from graphllmrec.evaluation.rank import top_k
from graphllmrec.protocol import Queries


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, processor = time.monotonic(), time.process_time()
    work()
    return time.monotonic() - wall, time.process_time() - processor


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--users", type=int, default=5_000)
    given = parser.parse_args()
    recommender = Recommender.load(given.run)
    split, ids = recommender.split, recommender.dataset.users.ids[: given.users].to_list()
    queries = Queries.of(split.interactions().histories(split.num_users), np.arange(len(ids)))
    ranked, recommended = [], []
    for _ in range(3):
        ranked.append(seconds(lambda: top_k(recommender.model, queries, queries.histories, given.k)))
        recommended.append(seconds(lambda: recommender.recommend(users=ids, k=given.k)))
    with tempfile.TemporaryDirectory() as folder:
        written = seconds(lambda: recommender.recommend_all(Path(folder) / "recs.parquet", given.k))
    print(json.dumps({
        "model": recommender.model.name, "users": split.num_users, "items": split.num_items, "k": given.k,
        "write_all_seconds": round(written[0], 2), "write_all_processor_seconds": round(written[1], 2),
        "rank_seconds": round(min(ranked)[0], 2), "recommend_seconds": round(min(recommended)[0], 2),
        "recommend_by_rank": round(min(recommended)[0] / min(ranked)[0], 3),
        "recommend_by_rank_processor": round(min(p for _, p in recommended) / min(p for _, p in ranked), 3),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "threads": torch.get_num_threads(), "machine": platform.processor(),
    }))  # fmt: skip

"""Damaged run folders: is every answer the right one, or an error that names the file?

    OMP_NUM_THREADS=1 python benchmarks/fuzz_runs.py [--trials 2000] [--models ease,item-knn,…] [--workers 2] [--seed 0]

Two runs of every model, with evaluations and a report, on a tenth of the users of the packaged MovieLens and the items
that 10 of them rated (texts are encoded by hashing words, so nothing is downloaded). A trial damages a copy of one: a
flipped bit, some changed bytes, a file cut short, emptied, deleted, or exchanged for that of the second run, then asks
for everything that reads a run folder: load, recommend, similar, explain, evaluate, the stored evaluation, the log, the
report. Workers are processes, so that a crash is counted. Each trial is one of: refused (an error of this package, one
sentence), identical (all answers are those of the undamaged run), and the faults: other answers, other exceptions,
crashes. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import numpy as np
import polars as pl
import torch

import graphllmrec.data
from graphllmrec.data.read import load_data
from graphllmrec.errors import GraphLLMRecError
from graphllmrec.evaluation.evaluation import Evaluation
from graphllmrec.progress import RunLogger
from graphllmrec.protocol import TextVectors
from graphllmrec.recommender import Recommender
from graphllmrec.report.runs import report_runs
from graphllmrec.rng import rng, stream_seed
from graphllmrec.run_folder import load_log
from graphllmrec.text import prepare as text_prepare

DEMO = Path(graphllmrec.data.__file__).parent / "demo"
FAST = {"epochs": 1, "embedding_dim": 8}
SETTINGS: dict[str, dict[str, Any]] = {
    "popularity": {},
    "item-knn": {},
    "ease": {},
    "graph-filter": {"rank": 8},
    "transitions": {},
    "text-knn": {"text_dim": 8},
    "lightgcn-fast": FAST,
    "hybrid": {
        "settings": {"sign": {"epochs": 1, "min_steps": 0, "text_dim": 8, "hidden": 8, "negatives": 16}},
        "gate": {"epochs": 1, "min_steps": 0},
    },
}
KINDS = ("bit", "bytes", "cut", "empty", "deleted", "swapped")
SHARES = (0.55, 0.1, 0.12, 0.03, 0.05, 0.15)
FAULTS = ("other answer", "foreign exception", "crash")


def hash_words(items: Any, *_: Any, **__: Any) -> TextVectors:
    """Stands in for the language model: the sum of a fixed random vector per word of the title."""
    rows = []
    for title in items.titles:
        words = (title or "").lower().split()
        seeds = [stream_seed(0, f"word/{word}") % 2**31 for word in words] or [0]
        rows.append(sum(torch.randn(16, generator=torch.Generator().manual_seed(seed)) for seed in seeds))
    return TextVectors(torch.stack(rows), torch.ones(len(rows), dtype=torch.bool))


def write_data(folder: Path) -> Path:
    """A tenth of the users of the packaged MovieLens, without the items that fewer than 10 of them rated."""
    dataset = load_data(DEMO)
    rows = dataset.interactions
    ids = {"user_id": dataset.users.ids.gather(rows.user), "item_id": dataset.items.ids.ids.gather(rows.item)}
    table = pl.DataFrame(ids | {"timestamp": rows.order, "rating": rows.rating})
    users = dataset.users.ids.gather_every(10)
    table = table.filter(pl.col("user_id").is_in(users.implode()))
    table = table.filter(pl.len().over("item_id") >= 10)
    folder.mkdir(parents=True)
    table.write_csv(folder / "interactions.csv")
    kept = dataset.items.table.filter(pl.col("item_id").is_in(table["item_id"].unique().implode()))
    kept.select("item_id", "title").write_csv(folder / "items.csv")
    return folder


def make_run(model: str, data: Path, path: Path, seed: int) -> None:
    with RunLogger(quiet=True) as logger:
        fitted = Recommender.from_recipe(model, model=SETTINGS[model], seed=seed).fit(data, out=path, logger=logger)
        for part in ("test", "valid"):
            fitted.evaluate(part, logger=logger).write(path)


def answers(path: Path) -> str:
    """SHA-256 over every answer that a run folder gives."""
    digest = hashlib.sha256()

    def add(values: Any) -> None:
        digest.update(repr(values).encode())

    found = Recommender.load(path)
    users = found.dataset.users.ids.to_list()
    items = found.dataset.items.ids.ids.to_list()
    add(found.recommend(users=users[:20] + users[-20:], k=20))
    add(found.recommend(history=items[3:9], k=10))
    add([found.similar(item, k=10) for item in (items[0], items[-1])])
    add(found.explain(users[0], items[5]))
    add(found.evaluate("test").to_json())
    for part in ("test", "valid"):
        stored = Evaluation.read(path, part)
        add((stored.to_json(), stored.lists.tolist(), stored.per_user.rows(), stored.targets.rows()))
    add(load_log(path))
    with RunLogger(quiet=True) as logger:
        report_runs({"run": path}, path.with_suffix(".html"), logger)
    add(path.with_suffix(".html").read_text(encoding="utf-8"))
    return digest.hexdigest()


def damage(path: Path, other: Path, trial: int, seed: int) -> str:
    """Damage one file of the run at `path`; returns what was done. The same for the same trial and seed."""
    draw = rng(seed, "fuzz-runs", trial)
    files = sorted(entry.name for entry in path.iterdir())
    name, kind = str(draw.choice(files)), str(draw.choice(KINDS, p=SHARES))
    content = bytearray((path / name).read_bytes())
    size = max(len(content), 1)
    if kind == "deleted":
        (path / name).unlink()
    elif kind == "swapped":
        shutil.copy(other / name, path / name)
    elif content:
        place = int(draw.integers(size))
        if kind == "bit":
            content[place] ^= 1 << int(draw.integers(8))
        elif kind == "bytes":
            content[place : place + 8] = draw.bytes(min(8, size - place))
        else:
            content = content[: place if kind == "cut" else 0]
        (path / name).write_bytes(content)
    return f"{kind} {name}"


def work(folder: Path, models: list[str], trials: range, seed: int) -> None:
    """A worker: one line of JSON before (what is tried) and one after each trial."""
    text_prepare.encode_items = hash_words
    warnings.simplefilter("ignore")
    expected: dict[str, str] = {}
    scratch = Path(tempfile.mkdtemp(dir=folder))
    for trial in trials:
        model = models[trial % len(models)]
        path, first, second = scratch / "run", folder / f"{model}-0", folder / f"{model}-1"
        if model not in expected:
            shutil.copytree(first, path)
            expected[model] = answers(path)
            shutil.rmtree(path)
        shutil.copytree(first, path)
        what = damage(path, second, trial, seed)
        print(json.dumps({"trial": trial, "model": model, "what": what}), flush=True)
        try:
            outcome = "identical" if answers(path) == expected[model] else "other answer"
            said = ""
        except GraphLLMRecError as error:
            said = str(error)
            outcome = "refused" if len(said.splitlines()) == 1 else "foreign exception"
        except BaseException as error:
            outcome, said = "foreign exception", f"{type(error).__name__}: {error}"[:300]
        print(json.dumps({"outcome": outcome, "said": said}), flush=True)
        shutil.rmtree(path)
    shutil.rmtree(scratch)


def start(args: argparse.Namespace, folder: Path, first: int) -> subprocess.Popen[str]:
    """A worker on every `args.workers`-th trial from `first` on."""
    command = [sys.executable, __file__, "--worker", str(folder), "--first", str(first), "--workers", str(args.workers),
               "--trials", str(args.trials), "--models", args.models, "--seed", str(args.seed)]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def follow(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """All trials; a worker that dies is replaced by one that goes on behind the trial that killed it."""
    workers = {number: start(args, folder, number) for number in range(args.workers)}
    done: list[dict[str, Any]] = []
    while workers:
        for number, process in list(workers.items()):
            assert process.stdout is not None
            line = process.stdout.readline()  # the next trial of this worker; the others go on meanwhile
            if not line:
                process.wait()
                del workers[number]
                continue
            tried = json.loads(line)
            after = process.stdout.readline()
            if after:
                done.append(tried | json.loads(after))
            else:
                process.wait()
                done.append(tried | {"outcome": "crash", "said": f"exit status {process.returncode}"})
                workers[number] = start(args, folder, tried["trial"] + args.workers)
            if done[-1]["outcome"] in FAULTS:
                print(json.dumps(done[-1]), flush=True)
            elif len(done) % 100 == 0:
                print(f"{len(done)} of {args.trials} trials", flush=True)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--models", default=",".join(SETTINGS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    models = args.models.split(",")
    if args.worker:
        work(args.worker, models, range(args.first, args.trials, args.workers), args.seed)
        return
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-runs-") as temporary:
        text_prepare.encode_items = hash_words
        data = write_data(Path(temporary) / "movies")
        for model in models:
            for seed in (0, 1):
                make_run(model, data, Path(temporary) / f"{model}-{seed}", seed)
        made = time.monotonic() - began
        done = follow(args, Path(temporary))
    outcomes = Counter(entry["outcome"] for entry in done)
    by_kind = {kind: dict(Counter(e["outcome"] for e in done if e["what"].startswith(kind))) for kind in KINDS}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    versions = {"torch": torch.__version__, "polars": pl.__version__, "numpy": np.__version__,
                "python": platform.python_version()}  # fmt: skip
    print(json.dumps({
        "benchmark": "fuzz_runs", "trials": len(done), **{key: outcomes[key] for key in ("refused", "identical")},
        "faults": sum(outcomes[key] for key in FAULTS), **{key: outcomes[key] for key in FAULTS},
        "by_kind": by_kind, "models": models, "seed": args.seed, "setup_seconds": round(made, 1),
        "seconds": round(time.monotonic() - began, 1), "cpus": os.cpu_count(),
        "cpu": platform.processor() or platform.machine(), "commit": commit.stdout.strip(), "versions": versions,
    }))  # fmt: skip
    if sum(outcomes[key] for key in FAULTS) or len(done) != args.trials:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

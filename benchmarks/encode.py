"""Encoding item text: how many items a second, next to sentence-transformers' `encode` on the same strings?

    python benchmarks/encode.py --data DIR [--items 2000] [--rounds 5] [--max-tokens 96 256]

DIR holds the set amazon-scientific (default: the environment variable GRAPHLLMREC_DATA). All contenders use the
packaged MiniLM weights, the same cleaned texts, the same token limit and the same threads, with the model already
loaded; they take turns, and the figure is the median over the rounds of the ratio within a round, because machines are
noisy.
Contenders: sentence-transformers with its defaults, ours with its defaults, ours with dtype="float32". The default
multiplies in bfloat16 where the hardware does; "float32" is what all other machines get.
The last line is one JSON object; the bar is 1.5 times the items/s at a cosine of .9999 for every text.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl
import torch

from graphllmrec.text.clean import item_texts
from graphllmrec.text.config import TextConfig
from graphllmrec.text.encoder import Encoder, encode_texts
from graphllmrec.text.loading import find_source

Contender = Callable[[list[str]], np.ndarray]


def read_texts(data: str | None, count: int, max_tokens: int) -> list[str]:
    file = Path(data or "") / "amazon-scientific" / "items.parquet"
    if not data or not file.is_file():
        sys.exit("this benchmark wants the set amazon-scientific: pass --data DIR or set GRAPHLLMREC_DATA")
    return item_texts(pl.read_parquet(file).head(count), max_tokens=max_tokens).drop_nulls().to_list()


def ours(dtype: str, max_tokens: int) -> Contender:
    config = TextConfig.model_validate({"dtype": dtype, "max_tokens": max_tokens, "device": "cpu"})
    encoder = Encoder(find_source(config.encoder), config)

    def encode(texts: list[str]) -> np.ndarray:
        out = np.zeros((len(texts), 384), dtype=np.float32)
        for part, vectors in encoder.encode(texts):
            out[part] = vectors.numpy()
        return out

    return encode


def sentence_transformers(max_tokens: int) -> Contender:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(find_source("minilm").name, device="cpu")
    model.max_seq_length = max_tokens

    def encode(texts: list[str]) -> np.ndarray:
        return np.asarray(model.encode(texts, show_progress_bar=False))

    return encode


def race(texts: list[str], max_tokens: int, rounds: int) -> dict[str, object]:
    """Seconds per contender and round, ratios within a round, and the cosine with sentence-transformers."""
    contenders: dict[str, Contender] = {
        "sentence-transformers": sentence_transformers(max_tokens),
        "ours": ours("auto", max_tokens),
        "ours-float32": ours("float32", max_tokens),
    }
    for encode in contenders.values():
        encode(texts[:64])
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    vectors: dict[str, np.ndarray] = {}
    for number in range(rounds):
        for name, encode in contenders.items():
            start = time.perf_counter()
            vectors[name] = encode(texts)
            seconds[name].append(time.perf_counter() - start)
            speed = len(texts) / seconds[name][-1]
            print(f"  {max_tokens} tokens, round {number + 1}: {name:22} {speed:7.1f} items/s", flush=True)
    theirs = seconds["sentence-transformers"]
    result: dict[str, object] = {}
    for name in contenders:
        cosine = (vectors[name] * vectors["sentence-transformers"]).sum(1)
        result[name] = {
            "items_per_s": round(len(texts) / statistics.median(seconds[name]), 1),
            "ratio": round(statistics.median(a / b for a, b in zip(theirs, seconds[name], strict=True)), 2),
            "min_cosine": round(float(cosine.min()), 6),
        }
    return result


def whole_call(texts: list[str], max_tokens: int) -> dict[str, float]:
    """Seconds of encode_texts, loading the model and keeping the vectors included; then again, from the cache."""
    config = TextConfig(max_tokens=max_tokens, device="cpu")
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            start = time.perf_counter()
            encode_texts(texts, config, cache=Path(folder))
            seconds.append(round(time.perf_counter() - start, 2))
    return {"encode_texts_s": seconds[0], "again_from_cache_s": seconds[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("GRAPHLLMREC_DATA"))
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, nargs="+", default=[96, 256])
    arguments = parser.parse_args()
    result: dict[str, object] = {"benchmark": "encode", "set": "amazon-scientific", "rounds": arguments.rounds}
    for max_tokens in arguments.max_tokens:
        texts = read_texts(arguments.data, arguments.items, max_tokens)
        result["items"] = len(texts)
        result[f"max_tokens={max_tokens}"] = race(texts, max_tokens, arguments.rounds) | whole_call(texts, max_tokens)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result |= {
        "commit": commit.stdout.strip(),
        "threads": torch.get_num_threads(),
        "cpu": torch.cpu.get_capabilities().get("cpu_name") or platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "sentence-transformers")},
        "load_average": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

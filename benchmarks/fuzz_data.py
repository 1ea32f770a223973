"""Ten thousand damaged data folders: each is read, or refused with a DataError that names the file.

    python benchmarks/fuzz_data.py [--folders 10000] [--seed 0] [--workers 2]

Every folder is a sound one (csv, tsv, JSON Lines, parquet, .gz, .zst, RecBole, MovieLens, Amazon reviews, a ready-made
split) with one to three faults: flipped bytes, cuts, swapped columns, other types, other encodings, strange headers,
nested values, compression bombs. No other exception is allowed, no folder may take over 10 s, no process over 1 GB.
Folder
N of a seed is always the same: `--only N` reads it alone and prints the traceback. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import zstandard

from graphllmrec.data import load_data
from graphllmrec.errors import DataError
from graphllmrec.rng import rng

Folder = dict[str, bytes]  # file name -> content
Draw = np.random.Generator
BATCH = 100  # folders per process
MOST_SECONDS, MOST_GB = 10.0, 1.0


def pick(draw: Draw, values: Any) -> Any:
    return values[int(draw.integers(len(values)))]


def tables(draw: Draw) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A small table of interactions and one of items."""
    rows, items = int(draw.integers(1, 60)), int(draw.integers(1, 20))
    clicks = pl.DataFrame(
        {
            "user_id": draw.integers(0, 12, rows),
            "item_id": draw.integers(0, items, rows),
            "rating": draw.integers(1, 6, rows).astype(float),
            "timestamp": draw.integers(1_500_000_000, 1_600_000_000, rows),
        }
    )
    catalogue = pl.DataFrame(
        {
            "item_id": np.arange(items),
            "title": [f"Item {number}, Ünïcode 灯" for number in range(items)],
            "price": draw.random(items),
        }
    )
    return clicks, catalogue


def write_as(frame: pl.DataFrame, kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "parquet":
        frame.write_parquet(stream, compression="uncompressed" if len(frame) % 2 else "zstd")
    elif kind == "jsonl":
        frame.write_ndjson(stream)
    else:
        frame.write_csv(stream, separator="\t" if kind == "tsv" else ",")
    return stream.getvalue()


def lines(frame: pl.DataFrame, separator: str, header: str = "") -> bytes:
    rows = (separator.join(map(str, row)) for row in frame.iter_rows())
    return (header + "".join(f"{row}\n" for row in rows)).encode()


def sound_folder(draw: Draw) -> Folder:
    """A folder that can be read."""
    clicks, items = tables(draw)
    kind = pick(
        draw, ["csv", "tsv", "jsonl", "parquet", "split", "recbole", "movielens", "100k", "1m", "amazon", "mixed"]
    )
    if kind == "recbole":
        types = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        described = lines(items, "\t", "item_id:token\ttitle:token_seq\tprice:float\n")
        if draw.random() < 0.5:
            return {"z.inter": lines(clicks, "\t", types), "z.item": described}
        return {f"z.{part}.inter": lines(clicks, "\t", types) for part in ("train", "test")} | {"z.item": described}
    if kind == "100k":
        return {"u.data": lines(clicks, "\t"), "u.item": lines(items.select("item_id", "title"), "|")}
    if kind == "1m":
        genres = items.select("item_id", "title", genres=pl.lit("Drama|War"))
        return {"ratings.dat": lines(clicks, "::"), "movies.dat": lines(genres, "::")}
    if kind == "movielens":
        names = {"user_id": "userId", "item_id": "movieId"}
        tags = clicks.select("user_id", "item_id", tag=pl.lit("slow"), timestamp=pl.lit(5)).rename(names)
        movies = items.rename({"item_id": "movieId", "price": "genres"})
        found = {"ratings": clicks.rename(names), "movies": movies, "tags": tags}
        return {f"{name}.csv": write_as(frame, "csv") for name, frame in found.items()}
    if kind == "amazon":
        reviews = clicks.select(reviewerID="user_id", asin="item_id", overall="rating", unixReviewTime="timestamp")
        meta = "".join(f"{row!r}\n" for row in items.rename({"item_id": "asin"}).to_dicts()).encode()
        return {"reviews_Z_5.json.gz": gzip.compress(write_as(reviews, "jsonl")), "meta_Z.json.gz": gzip.compress(meta)}
    if kind == "split":
        return {f"{part}.csv": write_as(clicks, "csv") for part in ("train", "valid", "test")}
    kinds = [pick(draw, ["csv", "tsv", "jsonl", "parquet"]) if kind == "mixed" else kind for _ in range(2)]
    return {
        f"{name}.{kind}": write_as(frame, kind)
        for name, frame, kind in zip(("interactions", "items"), (clicks, items), kinds, strict=True)
    }


def flip(draw: Draw, data: bytes) -> bytes:
    changed = bytearray(data)
    for place in draw.integers(0, max(len(data), 1), int(draw.integers(1, 9))):
        if changed:
            changed[int(place)] = int(draw.integers(256))
    return bytes(changed)


def cut(draw: Draw, data: bytes) -> bytes:
    return data[: int(draw.integers(0, len(data) + 1))]


def splice(draw: Draw, data: bytes) -> bytes:
    first, second = sorted(int(place) for place in draw.integers(0, len(data) + 1, 2))
    return pick(draw, [data[:first] + data[second:], data[:second] + data[first:], data + data, data[second:]])


PIECES = [
    b'"',
    b"\\",
    b"\r",
    b"\n",
    b"\n\n\n",
    b"\x00",
    b"\x1c",
    b"\xef\xbb\xbf",
    b",",
    b"\t",
    b"::",
    b"|",
    b";",
    b"'",
    b"{",
    b"[",
    b"]",
    b"}",
    b"nan",
    b"NaN",
    b"null",
    b"inf",
    b"-1",
    b"1e400",
    b"99999999999999999999999",
    b"\xff\xfe",
    b"\xe9",
    b"\xc4\xe3",
    b"\\ud800",
    b"2024-03-01",
    b"20240301",
    b"29-01-2021 07:01",
    b"4,5",
    b"=1+1",
    b"\xe2\x80\xae",
    b" ",
    b'""',
    b"True",
    b"\xed\xa0\x80",
    b"0007",
    b"x" * 5000,
    b"[" * 3000,
    b'{"a":' * 400,
    b"\x0b",
    b"\x85",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
]


def insert(draw: Draw, data: bytes) -> bytes:
    for _ in range(int(draw.integers(1, 5))):
        place = int(draw.integers(0, len(data) + 1))
        data = data[:place] + pick(draw, PIECES) + data[place:]
    return data


def replace_values(draw: Draw, data: bytes) -> bytes:
    """One value of a line of text becomes another."""
    parts = data.split(b"\n")
    place = int(draw.integers(len(parts)))
    separator = pick(draw, [b",", b"\t", b"::", b"|", b":"])
    values = parts[place].split(separator)
    values[int(draw.integers(len(values)))] = pick(draw, PIECES)
    parts[place] = separator.join(values)
    return b"\n".join(parts)


HEADERS = [
    "",
    "user_id",
    "user_id,user_id,item_id",
    ",,,",
    "user_id;item_id|rating",
    "userId,User ID,itemid,ITEM",
    "196\t242\t3",
    "\ufeffuser_id,item_id",
    '"user_id","item_id',
    "user_id:token,item_id:token_seq,x:float",
    ",".join(f"c{number}" for number in range(12_000)),
    "user_id,item_id,line,row,row0,user",
    "user_id,item_id,timestamp,position,rating,review,summary",
    "items,user_id",
    "user_id,items,target",
    "item_id,title,title:token,name",
    "Unnamed: 0,item_id,user_id",
]


def header(draw: Draw, data: bytes) -> bytes:
    return pick(draw, HEADERS).encode() + b"\n" + data.partition(b"\n")[2]


def encode(draw: Draw, data: bytes) -> bytes:
    codec = pick(
        draw,
        [
            "utf-16",
            "utf-16-le",
            "utf-32",
            "gb18030",
            "cp1252",
            "cp932",
            "big5",
            "euc_kr",
            "cp1251",
            "utf-7",
            "utf-8-sig",
        ],
    )
    return data.decode("utf-8", "replace").encode(codec, "replace")


def odd_frame(draw: Draw) -> pl.DataFrame:
    """Columns of any type: times, durations, lists, structs, bytes, decimals, categories."""
    rows = int(draw.integers(0, 20))
    numbers = pl.Series(draw.integers(-5, 2**40, rows))
    text = numbers.cast(pl.String)
    makers: list[Callable[[], pl.Series]] = [
        lambda: numbers,
        lambda: text,
        lambda: numbers.cast(pl.Float32),
        lambda: numbers.cast(pl.Datetime("us")),
        lambda: (numbers % 86400).cast(pl.Time),
        lambda: numbers.cast(pl.Duration("ms")),
        lambda: numbers % 3 == 0,
        lambda: text.cast(pl.Categorical),
        lambda: text.cast(pl.Binary),
        lambda: numbers.cast(pl.Decimal(30, 3)),
        lambda: numbers.cast(pl.Date, strict=False),
        lambda: numbers.cast(pl.Datetime("ns", "Asia/Tokyo"), strict=False),
        lambda: pl.Series([[float(value)] * 3 for value in numbers], dtype=pl.List(pl.Float64)),
        lambda: pl.Series([{"a": value} for value in numbers], dtype=pl.Struct({"a": pl.Int64})),
        lambda: pl.Series([None] * rows, dtype=pl.Null),
        lambda: numbers.cast(pl.UInt64, strict=False) * 2**20,
        lambda: text.cast(pl.Enum(text.unique())),
        lambda: pl.Series([["a", None]] * rows, dtype=pl.List(pl.String)),
        lambda: numbers.cast(pl.Int8, strict=False),
        lambda: pl.Series([float("nan")] * rows, dtype=pl.Float64),
        lambda: pl.Series([[value] * 2 for value in numbers], dtype=pl.Array(pl.Int64, 2)),
        lambda: numbers.cast(pl.Int128),
    ]
    names = pick(
        draw,
        [
            ["user_id", "item_id", "timestamp", "rating"],
            ["user_id", "item_id", "position", "review"],
            ["item_id", "title", "price", "image"],
        ],
    )
    return pl.DataFrame([pick(draw, makers)().alias(name) for name in names])


def swap_type(draw: Draw, folder: Folder) -> Folder:
    stem = pick(draw, ["interactions", "items"])
    kind = pick(draw, ["parquet", "parquet", "jsonl"])
    try:
        data = write_as(odd_frame(draw), kind)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):  # a type that this format does not know
        return folder
    return {name: rest for name, rest in folder.items() if not name.startswith(stem)} | {f"{stem}.{kind}": data}


def pack(draw: Draw, folder: Folder) -> Folder:
    name = pick(draw, list(folder))
    suffix, packed = pick(draw, [(".gz", gzip.compress), (".zst", zstandard.compress)])
    return {other: data for other, data in folder.items() if other != name} | {name + suffix: packed(folder[name])}


def bomb(draw: Draw, folder: Folder) -> Folder:
    """A few kilobytes that unpack to hundreds of megabytes."""
    if draw.random() < 0.3:
        rows, value = int(draw.integers(2_000_000, 9_000_000)), int(draw.integers(9))
        frame = pl.DataFrame({"user_id": pl.repeat(value, rows, dtype=pl.Int64, eager=True)}).with_columns(
            item_id="user_id"
        )
        return {"interactions.parquet": write_as(frame, "parquet")}
    row = pick(draw, [b"1,2\n", b"\n", b"\x00" * 64, b'"', b'{"user_id": 1, "item_id": 2}\n', b"1,2,3\n", b" " * 100])
    block = row * ((1 << 20) // len(row))
    head = b"user_id,item_id\n" if row[:1] != b"{" else b""
    count = int(draw.integers(256, 2048))
    stem = pick(draw, ["interactions", "items"])
    suffix = "jsonl" if not head else "csv"
    if draw.random() < 0.5:
        packed = zstandard.compress(head) + zstandard.compress(block) * count
        name = f"{stem}.{suffix}.zst"
    else:
        packed = gzip.compress(head) + gzip.compress(block) * count
        name = f"{stem}.{suffix}.gz"
    return {other: data for other, data in folder.items() if not other.startswith(stem)} | {name: packed}


def rename(draw: Draw, folder: Folder) -> Folder:
    name = pick(draw, list(folder))
    other = pick(
        draw,
        [
            "interactions.csv",
            "items.parquet",
            "u.item",
            "movies.dat",
            "train.tsv",
            "x.inter",
            "interactions.jsonl",
            "ratings.csv.gz",
            "items.json",
            "interactions.parquet.gz",
            "tags.csv",
        ],
    )
    return {key: data for key, data in folder.items() if key != name} | {other: folder[name]}


BYTES: list[Callable[[Draw, bytes], bytes]] = [
    flip,
    flip,
    cut,
    splice,
    insert,
    insert,
    replace_values,
    replace_values,
    header,
    encode,
]
FOLDERS: list[Callable[[Draw, Folder], Folder]] = [swap_type, pack, rename]


def unpack(data: bytes) -> bytes | None:
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error):  # damaged already
        return None


def damaged_folder(seed: int, number: int) -> Folder:
    """Folder `number` of this seed."""
    draw = rng(seed, "benchmark/fuzz-data", number)
    folder = sound_folder(draw)
    if number % 100 == 99:
        return bomb(draw, folder)
    for _ in range(int(draw.integers(1, 4))):
        if draw.random() < 0.3:
            folder = pick(draw, FOLDERS)(draw, folder)
            continue
        name = pick(draw, list(folder))
        inside = draw.random() < 0.7
        unpacked = unpack(folder[name]) if inside and name.endswith(".gz") else None
        data = pick(draw, BYTES)(draw, folder[name] if unpacked is None else unpacked)
        folder[name] = data if unpacked is None else gzip.compress(data)
    return folder


def read(folder: Folder) -> str:
    """ "loaded", "refused", or what is wrong with the answer."""
    with tempfile.TemporaryDirectory() as place:
        for name, data in folder.items():
            (Path(place) / name).write_bytes(data)
        try:
            load_data(place)
        except DataError as error:
            str(error).encode()
            return "refused" if error.file else f"no file in {error}"
    return "loaded"


def measure(seed: int, numbers: range) -> dict[str, Any]:
    """What became of these folders, the slowest of them, and the most memory of this process."""
    outcomes: Counter[str] = Counter()
    faults, slowest = [], 0.0
    for number in numbers:
        folder = damaged_folder(seed, number)
        began = time.perf_counter()
        try:
            outcome = read(folder)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome = f"{type(error).__name__}: {error}"[:300]
        seconds = time.perf_counter() - began
        slowest = max(slowest, seconds)
        if seconds > MOST_SECONDS:
            outcome = f"{seconds:.1f} s"
        if outcome not in ("loaded", "refused"):
            faults.append({"folder": number, "what": outcome})
            outcome = "fault"
        outcomes[outcome] += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    return {"outcomes": outcomes, "faults": faults, "slowest": slowest, "peak": peak}


def in_process(seed: int, first: int, last: int) -> dict[str, Any]:
    """`measure` in a process of its own; one that dies is a fault."""
    command = [sys.executable, __file__, "--seed", str(seed), "--range", f"{first}-{last}"]
    child = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    if child.returncode:
        what = f"process of folders {first} to {last} ended with {child.returncode}: {child.stderr[-300:]}"
        return {"outcomes": {"fault": 1}, "faults": [{"folder": first, "what": what}], "slowest": 0.0, "peak": 0.0}
    answer: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folders", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", type=int, help="read this folder alone, and show what happens")
    parser.add_argument("--range", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.range:
        first, last = map(int, args.range.split("-"))
        print(json.dumps(measure(args.seed, range(first, last))))
        return
    if args.only is not None:
        folder = damaged_folder(args.seed, args.only)
        print({name: data[:2000] for name, data in folder.items()})
        try:
            print(read(folder))
        except BaseException:
            traceback.print_exc()
        return
    starts = range(0, args.folders, BATCH)
    with ThreadPoolExecutor(args.workers) as pool:
        jobs = [pool.submit(in_process, args.seed, start, min(start + BATCH, args.folders)) for start in starts]
        results = [job.result() for job in jobs]
    outcomes = sum((Counter(result["outcomes"]) for result in results), Counter[str]())
    faults = [fault for result in results for fault in result["faults"]]
    for fault in faults[:20]:
        print(f"folder {fault['folder']}: {fault['what']}")
    peak, slowest = (max(result[key] for result in results) for key in ("peak", "slowest"))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    figures = {"folders": args.folders, **outcomes, "faults": len(faults), "slowest_s": round(slowest, 2)}
    versions = {"python": platform.python_version(), "polars": pl.__version__, "numpy": np.__version__}
    about = {"seed": args.seed, "versions": versions, "commit": commit.stdout.strip()}
    passed = not faults and peak <= MOST_GB
    print(json.dumps({"benchmark": "fuzz_data", **figures, "peak_rss_gb": round(peak, 2), "passed": passed, **about}))
    sys.exit(not passed)


if __name__ == "__main__":
    main()

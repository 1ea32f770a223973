"""Thousands of damaged recipes and studies: each is read, or refused with one readable message.

    python benchmarks/fuzz_recipes.py [--rounds 2000] [--studies 500] [--seed 0]

A round takes a packaged recipe, damages it (mutations of `damage`), and loads it as a TOML file, as a dict, or through
`--set` arguments; a study in the same way. What is read must come back from its own TOML as the same. What is refused
must be a RecipeError whose message is short, on printable lines, and does not hold a huge value. The last line is one
JSON object: rounds, how many were read and refused, faults, slowest round in CPU seconds, largest memory in MB. Exit
status 1 for any other exception, a message that is not readable, over 10 s of CPU time (other work on the machine does
not count), or over 1 GB more memory.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import sys
import tempfile
import time
import tomllib
import traceback
import warnings
from collections import Counter
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from graphllmrec.errors import RecipeError
from graphllmrec.models.registry import MODELS, model_class
from graphllmrec.recipe import load_recipe, parse_setting, recipe_names
from graphllmrec.rng import rng
from graphllmrec.study.loading import load_study

LONGEST_MESSAGE, LONGEST_LINE = 16_000, 900  # characters; a recipe may have twenty problems
SLOWEST, LARGEST = 10.0, 1_000  # seconds, MB above the start
STUDY = {
    "title": "t", "seeds": [0, 1], "metric": "ndcg@20", "metrics": ["recall@20"], "placebos": ["none", "shuffled"],
    "baseline": "ease", "compare": [["text-knn", "ease"]], "trials": 3, "set": {"data": {"k_core": 2}},
    "models": [
        {"recipe": "ease", "tune": {"model": {"l2": {"low": 1.0, "high": 100.0, "log": True}}}},
        {"recipe": "text-knn", "set": {"text": {"max_tokens": 9}}, "tune": {"model.decay": [0.3, 0.5]}},
    ],
}  # fmt: skip
STRANGE: list[Any] = [
    math.nan, math.inf, -math.inf, -1, 0, 2**63 - 1, 2**63, 10**30, -(10**5000), 1e308, 1e-320, True, False, "", " ",
    "tune", "none", "x" * 100_000, "ü" * 3_000, "推薦" * 50, "\u202egnp", "\x1b[31m", "\x00", "\ud800", "a\nb", "1e999",
    [], [[]], [0], ["a", 1, None], {}, {"a": {}}, {"low": 1}, {"": ""}, None, b"bytes", 1 + 2j, {1: 2}, {1, 2},
    [0] * 50_000, ["ease"] * 1_000, object(), float, np.float64(0.5), np.int64(3), np.zeros(3),
]  # fmt: skip
PIECES = ["", "\x00", "[[", "]", "=", '"""', "\u2028", "9" * 4_500, "nan", "é", "\r", "[model]\n"]  # of damaged TOML


def nested(depth: int, kind: type) -> Any:
    """A list or dict nested so deep."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


def near(name: str, draw: np.random.Generator) -> str:
    """A name close to a known one, or far from all."""
    kind = draw.integers(6)
    if kind == 0 and len(name) > 1:
        place = int(draw.integers(len(name)))
        return name[:place] + name[place + 1 :]
    if kind == 1:
        return name + str(draw.choice(["s", "_", "\u200b", " ", "\x07", ".x"]))
    if kind == 2:
        return name.upper()
    if kind == 3:
        return name * int(draw.choice([2, 1_000]))
    if kind == 4:
        return str(draw.choice(["", ".", "..", "__class__", "model_config", "model.l2", "名前", "a" * 20_000]))
    return name.replace("_", "-")


def value(draw: np.random.Generator) -> Any:
    """Something that most settings are not."""
    if draw.random() < 0.15:
        return nested(int(draw.choice([3, 30, 500, 5_000, 50_000])), list if draw.random() < 0.5 else dict)
    if draw.random() < 0.2:
        return float(draw.normal() * 10.0 ** draw.integers(-9, 9))
    return STRANGE[int(draw.integers(len(STRANGE)))]


def tables(values: Any, depth: int = 4) -> list[dict[str, Any]]:
    """The upper tables of plain values."""
    found = []
    if isinstance(values, dict) and depth:
        found = [values, *(table for entry in values.values() for table in tables(entry, depth - 1))]
    elif isinstance(values, list) and depth:
        found = [table for entry in values[:50] for table in tables(entry, depth - 1)]
    return found[:50]


def damage(values: dict[str, Any], draw: np.random.Generator) -> None:
    """One to four mutations, in place: values, keys, settings of other models, sections."""
    for _ in range(int(draw.choice([1, 1, 1, 2, 4]))):
        known = tables(values)
        table = known[int(draw.integers(len(known)))]
        kind, names = int(draw.integers(7)), list(table)
        name = names[int(draw.integers(len(names)))] if names else "l2"
        if kind == 0:
            table[name] = value(draw)
        elif kind == 1:
            table[near(str(name), draw)] = table.get(name, 1)
        elif kind == 2:
            table.pop(name, None)
        elif kind == 3:
            fields = model_class(str(draw.choice(list(MODELS)))).config_class.model_fields
            table[str(draw.choice(list(fields)))] = value(draw)
        elif kind == 4:
            values.setdefault("unordered", {})
            if isinstance(values["unordered"], dict):
                values["unordered"][name] = value(draw)
        elif kind == 5:
            for number in range(int(draw.choice([5, 2_000]))):
                table[f"{name}{number}"] = number
        else:
            table["name"] = near(str(table.get("name", "ease"))[:50], draw)


def as_text(values: dict[str, Any], draw: np.random.Generator) -> str:
    """The values as TOML, then damaged as text; or text of no kind where TOML cannot hold them."""
    try:
        text = tomli_w.dumps(values)
    except (TypeError, ValueError, RecursionError, AttributeError):
        text = "[model]\nname = 'ease'\nl2 = "
        text += str(draw.choice(["9" * 5_000, "[" * 9_000, "{a=" * 3_000, "nan", "inf", "'" * 50, "1979-05-27", "0x"]))
    for _ in range(int(draw.integers(3))):
        place = int(draw.integers(len(text) + 1))
        piece = str(
            draw.choice(["", "\x00", "[[", "]", "=", '"""', "\u2028", "9" * 4_500, "nan", "é", "\r", "[model]\n"])
        )
        text = text[:place] + piece + text[place + int(draw.integers(4)) :]
    return text


def arguments(values: dict[str, Any], draw: np.random.Generator) -> list[str]:
    """Arguments of --set."""
    keys = [f"{section}.{key}" for section, entry in values.items() if isinstance(entry, dict) for key in entry]
    out = []
    for _ in range(int(draw.integers(1, 4))):
        key = str(draw.choice(keys)) if keys else "model.l2"
        key = near(key, draw) if draw.random() < 0.4 else key
        key = key + ".a" * int(draw.choice([1, 40, 3_000])) if draw.random() < 0.1 else key
        thing = value(draw)
        text = "[" * 4_000 if isinstance(thing, list | dict) and draw.random() < 0.3 else _shown(thing)
        out.append(key + str(draw.choice(["=", "==", "", "= ", "=\n"])) + text)
    return out


def _shown(thing: Any) -> str:
    try:
        return str(thing)
    except (ValueError, RecursionError):
        return "7" * 5_000


def recipe_round(folder: Path, draw: np.random.Generator) -> None:
    """Damage a packaged recipe and load it; what is read must survive its own TOML."""
    name = str(draw.choice(recipe_names()))
    values = tomllib.loads((files("graphllmrec") / "recipes" / f"{name}.toml").read_text(encoding="utf-8"))
    way = int(draw.integers(3))
    if way == 2:
        recipe = load_recipe(name, dict(parse_setting(each) for each in arguments(values, draw)))
    else:
        damage(values, draw)
        path = folder / "recipe.toml"
        if way == 1:
            path.write_bytes(as_text(values, draw).encode("utf-8", "surrogatepass"))
        recipe = load_recipe(path if way == 1 else values)
    assert load_recipe(tomllib.loads(recipe.to_toml())) == recipe, "another recipe after writing and reading"


def study_round(folder: Path, draw: np.random.Generator) -> None:
    """The same for a study."""
    values = json.loads(json.dumps(STUDY))
    damage(values, draw)
    if draw.random() < 0.5:
        load_study(values)
        return
    path = folder / "study.toml"
    path.write_bytes(as_text(values, draw).encode("utf-8", "surrogatepass"))
    load_study(path)


def unreadable(message: str) -> str:
    """What is wrong with a message; "" for none."""
    lines = message.split("\n")
    if len(message) > LONGEST_MESSAGE or max(map(len, lines)) > LONGEST_LINE:
        return f"{len(message):,} characters, longest line {max(map(len, lines)):,}"
    return "" if all(line.isprintable() for line in lines) else "characters that are not printable"


def fuzz(rounds: int, studies: int, seed: int) -> dict[str, Any]:
    """All rounds; the figures, and up to ten faults with the round they came from."""
    counts, faults, slowest, before = Counter[str](), [], 0.0, _memory()
    warnings.simplefilter("ignore", FutureWarning)  # names of version 0.1 are among the near names
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + studies):
            what = recipe_round if number < rounds else study_round
            began = time.process_time()
            try:
                what(Path(folder), rng(seed, f"fuzz-{what.__name__}", number))
                counts["read"] += 1
            except RecipeError as error:
                counts["refused"] += 1
                if problem := unreadable(str(error)):
                    faults.append(f"round {number}: message of {problem}: {str(error)[:300]!r}")
            except Exception:
                faults.append(f"round {number}: {traceback.format_exc()[-1_500:]}")
            seconds = time.process_time() - began
            slowest = max(slowest, seconds)
            if seconds > SLOWEST:
                faults.append(f"round {number}: {seconds:.1f} s")
    memory = _memory() - before
    if memory > LARGEST:
        faults.append(f"{memory:,.0f} MB")
    return {
        "rounds": rounds, "studies": studies, "seed": seed, **counts, "faults": len(faults),
        "slowest_s": round(slowest, 2), "memory_mb": round(memory), "python": platform.python_version(),
        "versions": {name: version(name) for name in ("graphllmrec", "pydantic", "tomli-w")}, "first": faults[:10],
    }  # fmt: skip


def _memory() -> float:
    """Largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2_000)
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = fuzz(options.rounds, options.studies, options.seed)
    for fault in found.pop("first"):
        print(fault, file=sys.stderr)
    print(json.dumps(found))
    sys.exit(bool(found["faults"]))


if __name__ == "__main__":
    main()

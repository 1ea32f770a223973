"""Mutation testing of the mathematics: a fault is planted in one expression, and the tests of that file must notice it.

    python benchmarks/mutation.py --limit 300 --seed 0          # or --files evaluation/metrics.py,nn/gate.py
    python benchmarks/mutation.py --again FILE          # the survivors of an earlier run, after tests were added

A mutant changes one thing: a comparison (< to <=, == to !=, in to not in), an operator of arithmetic (+ to -, * to /),
`and` to `or`, a removed `not` or minus, a number by +1 or -1, True to False. Of all mutants of the files in TESTS,
`--limit` are drawn by the seed. Each runs in a process forked from one that has imported torch, in which Python's
loader gives the mutated code in place of the file; nothing on disk changes. Killed: a test fails, or takes more than
three times as long as without a fault. A survivor is either a missing test or an equivalent program; which one is
judged by hand in benchmarks/results/mutation.md.

Why not a package: mutmut 3 leaves out decorated functions (a third of nn/losses.py, and all under `torch.no_grad`),
cosmic-ray starts an interpreter, and so imports torch, per mutant. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.machinery
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import hypothesis  # noqa: F401  what every mutant needs is imported once
import numpy as np
import polars  # noqa: F401
import pydantic.main  # noqa: F401
import pytest
import rich.progress  # noqa: F401
import scipy.sparse.linalg  # noqa: F401
import sympy  # noqa: F401  torch's optimizers import it, and the compiler
import torch._dynamo

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "graphllmrec"
TESTS = {  # files of the mathematics, and the tests that must notice
    "data/split.py": "test_data_split test_data_properties",
    "evaluation/compare.py": "test_evaluate_compare",
    "evaluation/metrics.py": "test_evaluate_metrics",
    "evaluation/rank.py": "test_evaluate_rank test_evaluate_metrics",
    "evaluation/strata.py": "test_evaluate_model test_gate_summary",
    "models/baselines/item_knn.py": "test_models_simple test_weights",
    "models/fusion/gate_fitting.py": "test_fitting",
    "models/fusion/score_fusion.py": "test_z_sum",
    "models/scoring.py": "test_models_simple test_shared_helpers test_contract",
    "nn/align.py": "test_align",
    "nn/gate.py": "test_gate",
    "nn/histories.py": "test_models_simple test_alpharec",
    "nn/losses.py": "test_losses test_weights",
    "train/validation.py": "test_branches test_shared_helpers test_models_simple",
}
COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
SLACK = 20.0  # seconds a mutant may take beyond three times the tests' own time: the machine has other work


@dataclass(frozen=True)
class Mutant:
    """One changed expression of one file."""

    file: str  # relative to the package
    line: int
    column: int
    before: str
    after: str
    site: int  # number of the expression in the file
    change: int  # which of its changes

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.before} -> {self.after}"

    def tree(self) -> ast.Module:
        """The file with the fault in it."""
        tree = parsed(self.file)
        parent, field, place = list(sites(tree))[self.site]
        held = getattr(parent, field)
        new = list(changes(held if place is None else held[place]))[self.change]
        if place is None:
            setattr(parent, field, new)
        else:
            held[place] = new
        return ast.fix_missing_locations(tree)


def parsed(file: str) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text(encoding="utf-8"))


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """What could stand in the place of an expression."""
    new: Any = copy.copy(node)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        new.ops = [COMPARISONS[type(node.ops[0])](), *node.ops[1:]]
        yield new
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in ARITHMETIC:
        new.op = ARITHMETIC[type(node.op)]()
        yield new
    elif isinstance(node, ast.BoolOp):
        new.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield new
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield new.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.copy_location(ast.Constant(not node.value), node)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        for step in (1, -1):
            yield ast.copy_location(ast.Constant(node.value + step), node)


def sites(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
    """(parent, field, place in a list) of every expression that computes.

    Left out: annotations, messages, bounds of settings, constants of a module (block sizes, tuned values), and whether
    a selection is sorted where its order is not read.
    """
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for place, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr | ast.Raise | ast.Assert):
                continue
            if isinstance(child, ast.Call) and isinstance(child.func, ast.Name) and child.func.id == "Field":
                continue
            if isinstance(child, ast.Assign) and ast.unparse(child.targets[0]).isupper():
                continue
            if isinstance(child, ast.keyword) and child.arg == "sorted":
                continue
            yield tree, field, place
            yield from sites(child)


def mutants(file: str) -> Iterator[Mutant]:
    """All mutants of a file, in the order of its text."""
    for site, (parent, field, place) in enumerate(sites(parsed(file))):
        held = getattr(parent, field)
        node = held if place is None else held[place]
        for change, new in enumerate(changes(node)):
            yield Mutant(file, node.lineno, node.col_offset + 1, shown(node), shown(new), site, change)


def shown(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())[:90]


def run(file: str, tree: ast.Module | None, limit: float) -> str:
    """ "killed", "survived" or "timeout" of the file's tests, run in a fork that loads `tree` in place of the file."""
    child = os.fork()
    if not child:
        os.setsid()  # so that processes which a test starts end with it
        os._exit(tested(file, tree))
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "killed" if status else "survived"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


def tested(file: str, tree: ast.Module | None) -> int:
    """Exit status of the tests with the mutated code."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    target = str(PACKAGE / file)
    if tree is not None:
        load = importlib.machinery.SourceFileLoader.get_code

        def instead(loader: Any, fullname: str) -> CodeType | None:
            same = loader.path == target
            return compile(tree, target, "exec") if same else load(loader, fullname)

        importlib.machinery.SourceFileLoader.get_code = instead  # type: ignore[method-assign,assignment]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # what is loaded would cost a third of a mutant's time
    sys.path.insert(0, str(ROOT / "src"))
    names = [str(ROOT / "tests" / f"{name}.py") for name in TESTS[file].split()]
    options = ["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    return int(pytest.main([*options, *names]))


def chosen(files: list[str], limit: int, seed: int, survivors: list[str] | None) -> tuple[list[Mutant], int]:
    """The mutants to run, in the order of the files' text, and how many there are; `survivors`: these instead."""
    every = [mutant for file in files for mutant in mutants(file)]
    if survivors is None:
        drawn = np.random.default_rng(seed).permutation(len(every))[:limit]
        return [every[at] for at in sorted(drawn.tolist())], len(every)
    again = [mutant for mutant in every if str(mutant) in survivors]
    if len(again) != len(survivors):
        sys.exit("the files differ from those of the earlier run: some of its survivors are not there; run all again")
    return again, len(every)


def outcomes_of(mutants: list[Mutant]) -> dict[str, list[str]]:
    """Mutants by outcome. Interrupted by SIGINT or SIGTERM: those run so far."""
    for interrupt in (signal.SIGINT, signal.SIGTERM):
        signal.signal(interrupt, signal.default_int_handler)
    seconds: dict[str, float] = {}
    outcomes: dict[str, list[str]] = {"killed": [], "timeout": [], "survived": []}
    try:
        for number, mutant in enumerate(mutants, start=1):
            if mutant.file not in seconds:
                began = time.monotonic()
                if run(mutant.file, None, 600) != "survived":
                    tests = TESTS[mutant.file]
                    sys.exit(f"the tests of {mutant.file} fail, or take ten minutes, without a fault: {tests}")
                seconds[mutant.file] = time.monotonic() - began
                print(f"{mutant.file}: {seconds[mutant.file]:.1f} s without a fault", flush=True)
            outcome = run(mutant.file, mutant.tree(), 3 * seconds[mutant.file] + SLACK)
            outcomes[outcome].append(str(mutant))
            if outcome != "killed":
                print(f"{number}/{len(mutants)} {outcome}: {mutant}", flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", default=",".join(TESTS), help="files of the package, separated by commas")
    parser.add_argument("--limit", type=int, default=300, help="mutants to run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", type=Path, help="an earlier result: run its survivors again")
    options = parser.parse_args()
    earlier = json.loads(options.again.read_text(encoding="utf-8").splitlines()[-1]) if options.again else None
    files = earlier["files"] if earlier else options.files.split(",")
    began = time.monotonic()
    wanted, possible = chosen(files, options.limit, options.seed, earlier and earlier["survived"])
    outcomes = outcomes_of(wanted)
    left = set(map(str, wanted)).difference(*outcomes.values()) if earlier else set()  # not run again
    figures = {
        "seed": options.seed, "files": files, "possible": possible, "run": sum(map(len, outcomes.values())),
        **{name: len(outcomes[name]) for name in ("killed", "timeout")},
    }  # fmt: skip
    if earlier:
        before = {"seed": earlier["seed"], "run": earlier["run"], "survived_before_new_tests": len(wanted)}
        figures |= before | {name: earlier[name] + figures[name] for name in ("killed", "timeout")}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    print(json.dumps({
        "benchmark": "mutation", "cpu": platform.processor() or platform.machine(), "commit": commit.stdout.strip(),
        "torch": torch.__version__, **figures, "seconds": round(time.monotonic() - began),
        "survived": sorted([*outcomes["survived"], *left]),
    }))  # fmt: skip


if __name__ == "__main__":
    main()

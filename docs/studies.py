"""The pages of the published studies, docs/studies/*.md, from benchmarks/results/study-*.json.

    python docs/studies.py            # which pages are not up to date
    python docs/studies.py --write    # write them

Figures of version 0.1 have other names in their files; these are replaced by those of today.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from graphllmrec.report.study_report import study_markdown

PAGES = Path(__file__).parent / "studies"
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
OF_STUDY = {"tune_controls": "tune_placebos", "cells": "fits"}
OF_ENTRY = {"control": "placebo", "cells": "fits"}
OF_SETTINGS = {"model.dims": "model.text_dim", "model.settings.text-knn.dims": "model.settings.text-knn.text_dim"}


def page(name: str) -> str:
    """A page; `name` as in studies/fusion.md and study-fusion.json."""
    found = json.loads((RESULTS / f"study-{name}.json").read_text(encoding="utf-8"))
    return study_markdown(current(found))


def current(outcome: dict[str, Any]) -> dict[str, Any]:
    """An outcome of version 0.1 with the names of today."""
    entries = [
        renamed(entry, OF_ENTRY) | {"settings": renamed(entry["settings"], OF_SETTINGS)} for entry in outcome["entries"]
    ]
    return renamed(outcome, OF_STUDY) | {"entries": entries}


def renamed(values: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """`values` with its keys replaced."""
    return {names.get(key, key): value for key, value in values.items()}


def names() -> list[str]:
    """All published studies."""
    return sorted(path.stem.removeprefix("study-") for path in RESULTS.glob("study-*.json"))


def main() -> None:
    """Read the arguments and compare or write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    for name in names():
        path, text = PAGES / f"{name}.md", page(name)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"{path.name}: {'written' if write else 'not up to date'}")
            if write:
                path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""The first folders of the fuzz benchmark: read, or refused with a DataError that names the file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "fuzz_data.py"
SPEC = importlib.util.spec_from_file_location("fuzz_data", SCRIPT)
assert SPEC is not None
assert SPEC.loader is not None
fuzz_data = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fuzz_data)


def test_damaged_folders_are_read_or_refused() -> None:
    measured = fuzz_data.measure(1, range(250))
    assert measured["faults"] == []
    assert min(measured["outcomes"]["loaded"], measured["outcomes"]["refused"]) > 10  # it damages, and not all of it


def test_a_folder_of_a_seed_is_always_the_same() -> None:
    assert fuzz_data.damaged_folder(1, 7) == fuzz_data.damaged_folder(1, 7)
    assert fuzz_data.damaged_folder(1, 7) != fuzz_data.damaged_folder(2, 7)

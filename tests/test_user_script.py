"""The calls of a whole script. `make check` checks its types, as mypy --strict does for a user."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import graphllmrec
from front_door_world import write_world

SCRIPT = Path(__file__).parent / "user_script.py"


def test_the_package_says_that_it_is_typed():
    assert (files(graphllmrec) / "py.typed").is_file()


def test_a_users_script_runs(tmp_path):
    data = write_world(tmp_path / "books")
    command = [sys.executable, str(SCRIPT), str(data), str(tmp_path / "runs")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert result.returncode == 0, result.stderr
    assert "ease against popularity: +0." in result.stdout
    assert "unknown item 'no such item'" in result.stdout


def environment():
    """This process's, and the package found where this process found it."""
    source = str(Path(graphllmrec.__file__).parent.parent)
    return os.environ | {"PYTHONPATH": source, "MYPYPATH": source}

"""The types that the package promises to its users (py.typed), and the calls of a whole script."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

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


@pytest.mark.slow
def test_a_users_script_passes_strict_type_checking(tmp_path, pytestconfig):
    cache = pytestconfig.cache.mkdir("mypy")  # a second run takes seconds
    options = ["--strict", "--config-file=", "--follow-imports=silent", f"--cache-dir={cache}"]
    command = [sys.executable, "-m", "mypy", *options, str(SCRIPT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), cwd=tmp_path)
    assert result.returncode == 0, result.stdout


def environment():
    """This process's, and the package found where this process found it."""
    source = str(Path(graphllmrec.__file__).parent.parent)
    return os.environ | {"PYTHONPATH": source, "MYPYPATH": source}

"""SIGTERM to a running `graphllmrec fit`: nothing is lost, and what resumes cannot be told from what never stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from front_door_world import write_world
from graphllmrec.cli import app


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("data") / "books")


FIT = ["--set", "model.epochs=60", "--set", "model.patience=1000", "--set", "model.batch_size=32", "--seed", "3"]


def epochs_of(run: Path) -> list[dict[str, Any]]:
    """The epochs of a run's log, without the time of day."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key != "time"} for line in lines if line["event"] == "epoch"]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_sigterm_to_the_command_leaves_a_run_that_resumes_to_the_same_bytes(books: Path, tmp_path: Path) -> None:
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    arguments = ["fit", "lightgcn-fast", "--data", str(books), *FIT, "--out"]
    code = "from graphllmrec.cli import main; main()"
    command = [sys.executable, "-c", code, *arguments, str(broken)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        log = broken / "log.jsonl"
        wait_for(lambda: log.exists() and log.read_text().count('"epoch"') > 3, process)  # the last line may be half
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"continue with: graphllmrec fit --resume --out {broken}" in stderr
    assert "Traceback" not in stderr
    assert not (broken / "model.json").exists()
    assert (broken / "checkpoint" / "graph.safetensors").is_file()

    assert CliRunner().invoke(app, ["fit", "--resume", "--out", str(broken)]).exit_code == 0
    assert CliRunner().invoke(app, [*arguments, str(whole)]).exit_code == 0
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert epochs_of(broken) == epochs_of(whole)
    assert not (broken / "checkpoint").exists()

"""A fit that is stopped by SIGTERM or killed by SIGKILL: what resumes cannot be told from what never stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from front_door_world import write_world
from graphllmrec.cli import app
from graphllmrec.manifest import BEGUN, Manifest
from graphllmrec.models.baselines.popularity import Popularity


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("data") / "books")


FIT = ["--set", "model.epochs=60", "--set", "model.patience=1000", "--set", "model.batch_size=32", "--seed", "3"]


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
    assert (broken / "log.jsonl").read_bytes() == (whole / "log.jsonl").read_bytes()
    assert not (broken / "checkpoint").exists()


@pytest.mark.parametrize("recipe", ["lightgcn-fast", "hybrid"])
def test_a_fit_killed_anywhere_resumes_to_the_same_model_and_log(books: Path, tmp_path: Path, recipe: str) -> None:
    """At reading, while the folder is made, in every stage, in checkpoints, at the last write: each of them twice."""
    command = [sys.executable, str(Path(__file__).with_name("killing.py")), "fit", recipe, str(books), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert len(found["killed"]) > 8
    assert {name: outcome for name, outcome in found["killed"].items() if outcome != found["whole"]} == {}
    assert found["whole"]["files"] == " ".join(sorted(FILES))
    assert found["left"] == ["calls.json", "whole"]  # nothing beside the run folders


def test_a_run_is_replaced_whole_or_not_at_all_wherever_the_fit_is_killed(books: Path, tmp_path: Path) -> None:
    """Whoever loads the folder after the kill gets the old run or the new one; the fit then goes on to its end."""
    command = [sys.executable, str(Path(__file__).with_name("killing.py")), "replace", "lightgcn-fast"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*command, str(books), str(tmp_path)], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert len(found) > 12
    assert {outcome["then"] for outcome in found.values()} == {"old", "new"}
    assert {outcome["files"] for outcome in found.values()} == {" ".join(sorted(FILES))}


# what the command says after a kill


FILES = [
    "data.json", "findings.safetensors", "interactions.parquet", "items.parquet", "log.jsonl", "manifest.json",
    "model.json", "model.safetensors", "recipe.toml", "timings.jsonl", "users.parquet",
]  # fmt: skip


def call(*arguments: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return " ".join(result.stderr.split())


@pytest.fixture
def finished(books: Path, tmp_path: Path) -> Path:
    call("fit", "popularity", "--data", books, "--out", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def killed(finished: Path) -> Path:
    """A run that was killed while model.safetensors was written, and twice while a line of the timings was."""
    (finished / "model.json").unlink()
    whole = Manifest.read(finished)
    begun = {name: entry for name, entry in whole.files.items() if name in BEGUN}
    Manifest(format=whole.format, complete=False, files=begun).write(finished)
    (finished / "model.safetensors").rename(finished / ".model.safetensors.a1b2c3d4.tmp")
    (finished / "metrics-valid.json").unlink()
    whole = (finished / "timings.jsonl").read_text()
    (finished / "timings.jsonl").write_text(whole + whole[:20])
    (finished / "log.jsonl").write_text('{"event": "some')
    return finished


def test_a_killed_fit_that_is_started_again_is_told_to_resume(killed: Path, books: Path) -> None:
    said = call("fit", "popularity", "--data", books, "--out", killed, code=2)
    assert "already holds a run (interrupted); continue it with --resume, or replace it with --overwrite" in said


def test_resuming_mends_torn_lines_and_removes_half_written_files(killed: Path) -> None:
    before = (killed / "timings.jsonl").read_text().splitlines()[:-1]
    call("fit", "--resume", "--out", killed)
    after = (killed / "timings.jsonl").read_text().splitlines()
    assert after[: len(before)] == before
    assert [json.loads(line)["event"] for line in after][len(before) :][0] == "begin"
    assert (killed / "log.jsonl").read_text() == ""  # popularity has nothing to tell
    assert [path.name for path in killed.iterdir() if path.name.startswith(".")] == []


def test_a_finished_run_is_resumed_by_doing_nothing(finished: Path, books: Path) -> None:
    """As when the kill came after the last write, and a script tries `fit --resume` until it succeeds."""
    (finished / "checkpoint").mkdir()
    before = (finished / "model.safetensors").stat()
    said = call("fit", "--resume", "popularity", "--data", books, "--out", finished)
    assert (finished / "model.safetensors").stat() == before
    assert not (finished / "checkpoint").exists()
    assert "already finished" in said
    said = call("fit", "--resume", "ease", "--out", finished, code=2)
    assert "is finished, with another recipe" in said


def test_a_fit_killed_before_it_made_its_folder_is_begun_again(books: Path, tmp_path: Path) -> None:
    left = tmp_path / ".run.a1b2c3d4.tmp"
    shutil.copytree(books, left)
    said = call("fit", "--resume", "--out", tmp_path / "run", code=2)
    assert "no run folder" in said
    assert "make one with: graphllmrec fit" in said
    call("fit", "--resume", "popularity", "--data", books, "--out", tmp_path / "run")
    assert (tmp_path / "run" / "model.json").is_file()
    assert not left.exists()


def test_a_hint_to_resume_is_of_the_fit_that_was_stopped(books: Path, tmp_path: Path, monkeypatch) -> None:
    """Not of an earlier one that lies in the folder: resuming that would make another model than was asked for."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    run, hint = tmp_path / "run", "continue with: graphllmrec fit --resume"
    with monkeypatch.context() as patch:
        patch.setattr(Popularity, "fit", stop)
        assert f"{hint} --out {run}" in call("fit", "popularity", "--data", books, "--out", run, code=130)
    with monkeypatch.context() as patch:
        patch.setattr("graphllmrec.data.prepare.load_data", stop)
        said = call("fit", "ease", "--data", books, "--out", run, "--overwrite", code=130)
        assert "interrupted before training began; nothing was written" in said
        assert hint not in said
        said = call("fit", "--resume", "popularity", "--data", books, "--out", run, code=130)
        assert f"{hint} --out {run}" in said
    call("fit", "--resume", "--out", run)

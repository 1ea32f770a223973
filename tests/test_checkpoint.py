"""Checkpoints on disk: what they hold, that damage is refused, and that a kill inside the writer costs nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from graphllmrec.errors import CheckpointError, Interrupted
from graphllmrec.io import atomic_folder, discard, remove_leftovers, write_text
from graphllmrec.train import checkpoint
from graphllmrec.train.checkpoint import Checkpoints, Progress
from toy_training import CONFIG, Run, send


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """The checkpoint of a run that was stopped after two steps."""
    with pytest.raises(Interrupted):
        Run(folder=tmp_path, at_step=send(signal.SIGINT, 2)).train()
    return tmp_path / "toy.safetensors"


def test_a_checkpoint_holds_weights_best_weights_and_both_moments(interrupted: Path) -> None:
    tensors = load_file(interrupted)
    whose = ["model.weight", "model.bias", "model.seen", "best.weight", "best.bias", "best.seen"]
    assert set(whose) <= tensors.keys()
    moments = {f"optimizer.{index}.{name}" for index in (0, 1) for name in ("step", "exp_avg", "exp_avg_sq")}
    assert tensors.keys() == {*whose, *moments}
    assert float(tensors["model.seen"]) == 12
    assert float(tensors["best.seen"]) == 0


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "no-progress", "other-progress"])
def test_a_damaged_checkpoint_is_refused(interrupted: Path, damage: str) -> None:
    good = interrupted.read_bytes()
    if damage in ("no-progress", "other-progress"):
        metadata = {"progress": json.dumps({"epoch": 1, "era": 2})} if damage == "other-progress" else None
        save_file(load_file(interrupted), interrupted, metadata=metadata)
    else:
        interrupted.write_bytes({"truncated": good[:-7], "empty": b"", "text": b"weights: 1, 2, 3" * 9}[damage])
    with pytest.raises(CheckpointError, match=r"toy\.safetensors cannot be read .*delete it to train this stage again"):
        Run(folder=interrupted.parent).train()


@pytest.mark.parametrize("other", [{"seed": 1}, {"config": CONFIG.model_copy(update={"epochs": 9})}])
def test_a_checkpoint_of_other_settings_is_refused(interrupted: Path, other: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"toy\.safetensors belongs to other settings or data: delete it"):
        Run(folder=interrupted.parent, **other).train()


def test_a_failed_write_leaves_the_old_checkpoint(interrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half of")
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "save_file", disk_full)
    before = interrupted.read_bytes()
    with pytest.raises(OSError, match="no space left"):
        Checkpoints(interrupted.parent).save("toy", Progress(), {})
    assert interrupted.read_bytes() == before
    assert [path.name for path in interrupted.parent.iterdir()] == ["toy.safetensors"]


def test_a_stage_that_never_wrote_has_no_checkpoint(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "nowhere").load("toy") is None


def test_progress_goes_through_json_unchanged() -> None:
    progress = Progress(loss_sum=0.1 + 0.2, examples=3, epoch=2)
    assert Progress(**json.loads(json.dumps(vars(progress)))) == progress


def test_no_flipped_bit_and_no_missing_end_goes_unnoticed(interrupted: Path) -> None:
    good, checkpoints = interrupted.read_bytes(), Checkpoints(interrupted.parent)
    for place in range(len(good)):
        interrupted.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(CheckpointError, match="delete it to train this stage again"):
            checkpoints.load("toy")
    for length in range(0, len(good), 7):
        interrupted.write_bytes(good[:length])
        with pytest.raises(CheckpointError, match="delete it to train this stage again"):
            checkpoints.load("toy")


def test_a_kill_at_any_line_of_the_writer_leaves_a_run_that_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    """Half a file written, not synced, not renamed, the folder not synced …; with and without a checkpoint before."""
    command = [sys.executable, str(Path(__file__).with_name("killing.py")), "writer", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert len(found["killed"]) > 40
    assert "checkpoint 12, half written" in found["killed"]
    assert {name: hash_ for name, hash_ in found["killed"].items() if hash_ != found["whole"]} == {}


# leftovers


def test_what_a_killed_writer_left_is_no_checkpoint_and_goes_away(tmp_path: Path) -> None:
    left = tmp_path / ".toy.safetensors.a1b2c3d_.tmp"
    left.write_bytes(b"half of")
    assert Checkpoints(tmp_path).load("toy") is None
    for kept in (".toy.safetensors", "toy.safetensors.tmp", ".git", ".toy.safetensors.short.tmp"):
        (tmp_path / kept).touch()
    remove_leftovers(tmp_path)
    assert not left.exists()
    assert len(list(tmp_path.iterdir())) == 4


def test_leftovers_of_one_name_only(tmp_path: Path) -> None:
    for name in (".run.a1b2c3d4.tmp", ".run.a1b2c3d4.old.tmp", ".run.2.a1b2c3d4.tmp", ".runs.a1b2c3d4.tmp"):
        (tmp_path / name / "inside").mkdir(parents=True)
    remove_leftovers(tmp_path, "run")
    assert {path.name for path in tmp_path.iterdir()} == {".run.2.a1b2c3d4.tmp", ".runs.a1b2c3d4.tmp"}


def test_in_a_shared_folder_only_what_is_old_is_a_leftover(tmp_path: Path) -> None:
    old, young = tmp_path / ".graph.safetensors.aaaaaaaa.tmp", tmp_path / ".graph.safetensors.bbbbbbbb.tmp"
    old.touch()
    young.touch()
    os.utime(old, (0, 0))
    Checkpoints(tmp_path / "own", tmp_path)
    assert list(tmp_path.iterdir()) == [young]


def test_a_discarded_folder_is_gone_at_once(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "run") as folder:
        write_text(folder / "data.json", "{}")
    discard(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []

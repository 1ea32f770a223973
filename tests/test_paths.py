"""Folder names that polars would read as patterns, or a shell as something else: files are opened, never searched."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from front_door_world import write_world
from graphllmrec.data.read import load_data
from graphllmrec.grokking.lab.trajectory import CURVES, Trajectory, read_trajectories, write_trajectories
from graphllmrec.study import run_study
from graphllmrec.text.cache import VectorCache, text_key

NAMES = ["set[1]", "set*", "set?", "~set", "a=1", "{a,b}", "with space", "s3:"]
CLICKS = "user_id,item_id,timestamp\nu1,a,1\nu1,b,2\nu1,c,3\nu2,a,1\nu2,b,2\nu2,c,3\n"
OTHER = "user_id,item_id,timestamp\nx1,z,1\nx1,y,2\nx1,x,3\n"


def write(folder: Path, text: str, kind: str) -> None:
    folder.mkdir(parents=True)
    rows = pl.read_csv(text.encode())
    if kind == "parquet":
        rows.write_parquet(folder.absolute() / "interactions.parquet")
    elif kind == "jsonl":
        (folder / "interactions.jsonl").write_text(rows.write_ndjson())
    elif kind == "csv.gz":
        (folder / "interactions.csv.gz").write_bytes(gzip.compress(text.encode()))
    else:
        (folder / "interactions.csv").write_text(text)


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "jsonl", "parquet"])
@pytest.mark.parametrize("name", NAMES)
def test_a_data_folder_of_any_name_is_read_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path(name), CLICKS, kind)
    for other in ("set1", "setx", "set2", "a"):  # what the patterns would match
        write(Path(other), OTHER, kind)
    assert load_data(name).users.ids.to_list() == ["u1", "u2"]


def test_a_vector_cache_in_a_folder_of_any_name(tmp_path: Path) -> None:
    for name in NAMES:
        key, vector = text_key("gears"), np.full((1, 3), len(name), dtype=np.float32)
        with VectorCache(tmp_path / name, {"name": "toy"}) as cache:
            cache.write([key], vector)
        with VectorCache(tmp_path / name, {"name": "toy"}) as cache:
            np.testing.assert_array_equal(cache.read([key])[key], vector[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)


def test_trajectories_of_the_lab_in_a_folder_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate([*NAMES, "set1", "setx"]):
        curves = {curve: np.zeros(2) for curve in CURVES}
        trajectory = Trajectory("modular", seed, {}, np.arange(2), curves, chance_loss=1.0, chance_metric=0.0)
        write_trajectories(Path(name) / "runs.parquet", [trajectory])
    found = [read_trajectories(Path(name) / "runs.parquet")[0].seed for name in NAMES]
    assert found == list(range(len(NAMES)))


def test_a_study_in_a_folder_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_world(Path("set[1]"))
    write_world(Path("set1"), users=44)
    study = {"models": [{"recipe": "popularity"}], "baseline": "popularity"}
    found = run_study(study, [Path("set[1]")], Path("study[1]"))
    assert found["failed"] == 0
    assert [entry["users"] for entry in found["entries"]] == [40]

"""Folder names that polars would read as patterns, or a shell as something else: files are opened, never searched."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest

from graphllmrec.data.read import load_data

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

"""Lists of many users in a file: formats, parts that survive a kill, and nothing half written under the final name."""

from __future__ import annotations

import gzip
import threading

import polars as pl
import pytest
import zstandard

from front_door_world import write_world
from graphllmrec import lists_file
from graphllmrec.errors import ArgumentError, CheckpointError, UnknownIdError
from graphllmrec.fitted import Fitted
from graphllmrec.progress import RunLogger
from graphllmrec.recommender import Recommender

USERS = [f"u{n}" for n in range(40)]


@pytest.fixture(scope="module")
def ease(tmp_path_factory):
    return Recommender.from_recipe("ease").fit(write_world(tmp_path_factory.mktemp("world")))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(lists_file, "MOST_USERS", 7)  # 40 users: 6 parts


def read(path):
    """The table of any of the formats."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    if path.suffix == ".zst":
        content = zstandard.ZstdDecompressor().decompressobj().decompress(content)
    kind = path.name.split(".")[1]
    if kind == "parquet":
        return pl.read_parquet(content)
    if kind == "jsonl":
        return pl.read_ndjson(content)
    return pl.read_csv(content, separator="," if kind == "csv" else "\t")


@pytest.mark.parametrize(
    "name",
    [
        "r.parquet",
        "r.csv",
        "r.tsv",
        "r.jsonl",
        "r.csv.gz",
        "r.jsonl.gz",
        "r.tsv.zst",
        "r[1].parquet",
        "r[1].csv",
        "R.CSV",
    ],
)
def test_every_format_holds_the_lists_of_all_users(ease, tmp_path, name):
    assert ease.recommend_all(tmp_path / name, k=3) == tmp_path / name
    wanted = ease.recommend(users=ease.dataset.users.ids, k=3, as_frame="polars")
    found = read(tmp_path / name) if name != "R.CSV" else pl.read_csv(tmp_path / name)
    assert found.columns == wanted.columns
    assert found.drop("score").equals(wanted.drop("score").cast({"rank": found["rank"].dtype}))
    assert found["score"].to_list() == pytest.approx(wanted["score"].to_list(), rel=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_options_and_users_are_those_of_recommend(ease, tmp_path):
    limits = {"exclude": ["i1"], "filter": "title LIKE 'gears%'", "allow_seen": True, "unknown": "popular"}
    users = ["u3", "nobody", "u0"]
    with pytest.warns(UserWarning, match="nobody"):
        ease.recommend_all(tmp_path / "r.parquet", k=2, users=users, **limits)
    with pytest.warns(UserWarning, match="nobody"):
        wanted = ease.recommend(users=users, k=2, as_frame="polars", **limits)
    assert pl.read_parquet(tmp_path / "r.parquet").equals(wanted)


def test_no_users_make_a_table_without_rows(ease, tmp_path):
    ease.recommend_all(tmp_path / "r.csv", users=[])
    assert (tmp_path / "r.csv").read_text() == "user_id,rank,item_id,title,score\n"


@pytest.fixture
def killed(ease, tmp_path, monkeypatch):
    """A folder in which a run was stopped in its fourth part."""
    whole, calls = Fitted.for_users, []

    def stop(self, *arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Fitted, "for_users", stop)
        with pytest.raises(KeyboardInterrupt):
            ease.recommend_all(tmp_path / "r.csv", k=3)
    return tmp_path


def parts_made(recommender, path, monkeypatch, **arguments):
    """How many parts a run ranks."""
    whole, calls = Fitted.for_users, []

    def count(self, *given):
        calls.append(1)
        return whole(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Fitted, "for_users", count)
        recommender.recommend_all(path, **arguments)
    return len(calls)


def test_a_killed_run_goes_on_and_gives_the_same_file(ease, killed, tmp_path_factory, monkeypatch):
    assert sorted(path.name for path in killed.iterdir()) == ["r.csv.parts"]
    assert sorted(path.name for path in (killed / "r.csv.parts").iterdir()) == [
        "00000.parquet", "00001.parquet", "00002.parquet", "plan.json",
    ]  # fmt: skip
    (killed / "r.csv.parts" / ".00003.parquet.abcdefgh.tmp").write_bytes(b"torn")
    assert parts_made(ease, killed / "r.csv", monkeypatch, k=3) == 3
    other = tmp_path_factory.mktemp("unbroken") / "r.csv"
    ease.recommend_all(other, k=3)
    assert (killed / "r.csv").read_bytes() == other.read_bytes()
    assert [path.name for path in killed.iterdir()] == ["r.csv"]


@pytest.mark.parametrize(
    "change", [{"k": 4}, {"exclude": ["i1"]}, {"users": USERS[::-1]}, {"allow_seen": True}], ids=str
)
def test_parts_of_other_options_are_not_mixed_in(ease, killed, tmp_path_factory, monkeypatch, change):
    arguments = {"k": 3} | change
    assert parts_made(ease, killed / "r.csv", monkeypatch, **arguments) == 6
    other = tmp_path_factory.mktemp("unbroken") / "r.csv"
    ease.recommend_all(other, **arguments)
    assert (killed / "r.csv").read_bytes() == other.read_bytes()


def test_parts_of_another_model_are_not_mixed_in(ease, killed, tmp_path_factory, monkeypatch):
    other = Recommender.from_recipe("ease", model={"l2": 3.0}).fit(write_world(tmp_path_factory.mktemp("world")))
    assert parts_made(other, killed / "r.csv", monkeypatch, k=3) == 6


def test_a_failure_while_joining_leaves_no_file_and_all_parts(ease, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pl.DataFrame, "write_csv", full)
        with pytest.raises(OSError, match="no space"):
            ease.recommend_all(tmp_path / "r.csv", k=3)
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv.parts"]
    assert parts_made(ease, tmp_path / "r.csv", monkeypatch, k=3) == 0


def test_a_file_is_replaced_on_demand_only(ease, tmp_path):
    (tmp_path / "r.csv").write_text("mine")
    with pytest.raises(ArgumentError, match=r"r\.csv exists; replace it with --overwrite"):
        ease.recommend_all(tmp_path / "r.csv")
    assert (tmp_path / "r.csv").read_text() == "mine"
    ease.recommend_all(tmp_path / "r.csv", overwrite=True)
    assert (tmp_path / "r.csv").read_text().startswith("user_id,")


@pytest.mark.parametrize("name", ["r", "r.txt", "r.parquet.gz", "parquet", "r.gz", ".csv.bz2"])
def test_an_ending_without_a_format_is_refused(ease, tmp_path, name):
    with pytest.raises(ArgumentError, match=r"has no ending that says how to write it: \.parquet, \.csv"):
        ease.recommend_all(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_the_way_is_left_alone(ease, tmp_path):
    with pytest.raises(ArgumentError, match="is a folder"):
        ease.recommend_all(tmp_path)
    (tmp_path / "r.csv.parts").mkdir()
    (tmp_path / "r.csv.parts" / "thesis.tex").write_text("years of work")
    with pytest.raises(ArgumentError, match=r"r\.csv\.parts is in the way"):
        ease.recommend_all(tmp_path / "r.csv")
    assert (tmp_path / "r.csv.parts" / "thesis.tex").read_text() == "years of work"


def test_wrong_options_are_refused_before_anything_is_written(ease, tmp_path):
    for error, arguments in [
        (UnknownIdError, {"users": ["nobody"]}),
        (ArgumentError, {"k": 0}),
        (ArgumentError, {"filter": "nope = 1"}),
        (ArgumentError, {"unknown": "maybe"}),
    ]:
        with pytest.raises(error):
            ease.recommend_all(tmp_path / "r.csv", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_all_users_also_those_that_were_ready(ease, killed):
    done = []

    class Counting(RunLogger):
        def advance(self, steps=1, **values):
            done.append(steps)

    ease.recommend_all(killed / "r.csv", k=3, logger=Counting(quiet=True))
    assert sum(done) == 40


def test_a_second_process_that_writes_the_same_file_is_refused_and_harms_nothing(ease, tmp_path, monkeypatch):
    whole, started, go = Fitted.for_users, threading.Event(), threading.Event()

    def wait(self, *arguments):
        started.set()
        assert go.wait(60)
        return whole(self, *arguments)

    monkeypatch.setattr(Fitted, "for_users", wait)
    first = threading.Thread(target=ease.recommend_all, args=(tmp_path / "r.csv", 3))
    first.start()
    assert started.wait(60)
    with pytest.raises(CheckpointError, match=r"process \d+ on .* is writing to .*r\.csv\.parts; wait") as refused:
        ease.recommend_all(tmp_path / "r.csv", k=3, overwrite=True)
    assert "\n" not in str(refused.value)
    go.set()
    first.join()
    assert len(read(tmp_path / "r.csv")) == 40 * 3
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]


def test_a_lock_and_a_plan_that_a_kill_left_are_taken_over(ease, tmp_path):
    parts = tmp_path / "r.csv.parts"
    parts.mkdir()
    (parts / ".lock").write_text("")
    (parts / ".plan.json.abcdefgh.tmp").write_text('{"check')
    ease.recommend_all(tmp_path / "r.csv", k=3)
    parts.mkdir()
    (parts / "plan.json").write_text('{"check')  # damaged: nothing to go on with
    (parts / "00000.parquet").write_bytes(b"torn")
    ease.recommend_all(tmp_path / "r.csv", k=3, overwrite=True)
    assert len(read(tmp_path / "r.csv")) == 40 * 3

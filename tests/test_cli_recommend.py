"""recommend and similar on the command line: limits, many users, files, ids with commas, commands to be copied."""

from __future__ import annotations

import json
import shlex

import polars as pl
import pytest
from typer.testing import CliRunner

from front_door_world import write_world
from graphllmrec.cli import app
from graphllmrec.recommender import Recommender


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run in a folder with a space, of ids with commas, quotes and spaces."""
    data = write_world(tmp_path_factory.mktemp("my data") / "books")
    for name, columns in {"interactions.csv": ["user_id", "item_id"], "items.csv": ["item_id"]}.items():
        table = pl.read_csv(data / name).with_columns(pl.col(columns).str.replace(r"(\d+)$", ', it\'s "$1"'))
        table.write_csv(data / name)
    call("fit", "ease", "--data", data, "--out", data.parent / "a run")
    return data.parent / "a run"


def call(*arguments, code=0):
    """Run a command; its exit code must be `code`."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], terminal_width=500)
    assert result.exit_code == code, result.output
    return result


def last_json(*arguments):
    return json.loads(call(*arguments, "--json").stdout.splitlines()[-1])


def ids(entries):
    return [entry["item_id"] for entry in entries]


USER, ITEM, OTHER = 'u, it\'s "1"', 'i, it\'s "3"', 'i, it\'s "5"'
FIELD = '"i, it\'s ""3"""'  # ITEM as a field of a csv line


def test_the_command_that_is_suggested_runs(run):
    for query in (["--user", USER], ["--history", FIELD], ["--history", f"{FIELD},nope"]):
        said = call("recommend", run, *query).stdout.splitlines()[-1]
        [_, line] = said.split("Why the first one: ")
        assert "because of" in call(*shlex.split(line)[1:]).stdout


def test_limits_are_those_of_python(run):
    recommender = Recommender.load(run)
    best = [entry.item_id for entry in recommender.recommend(users=[USER], k=3)[0]]
    field = '"' + best[0].replace('"', '""') + '"'
    assert ids(last_json("recommend", run, "--user", USER, "-k", 2, "--exclude", field)["recommendations"]) == best[1:]
    found = last_json("recommend", run, "--user", USER, "--candidates", f"{field}, {FIELD}", "--allow-seen")
    assert set(ids(found["recommendations"])) == {best[0], ITEM}
    found = last_json("recommend", run, "--user", USER, "-k", 48, "--filter", "title LIKE 'gears%'")
    assert all(entry["title"].startswith("gears") for entry in found["recommendations"])
    assert len(found["recommendations"]) == 12


def test_repeated_limits_hold_together(run):
    conditions = ["--filter", "title LIKE 'gears%'", "--filter", "title LIKE '%1%'"]
    found = last_json("recommend", run, "--user", USER, "-k", 48, *conditions)["recommendations"]
    assert found
    assert all(entry["title"].startswith("gears") and "1" in entry["title"] for entry in found)
    first, second = ids(last_json("recommend", run, "--user", USER, "-k", 2)["recommendations"])
    quoted = ['"' + item.replace('"', '""') + '"' for item in (first, second)]
    limits = ["--exclude", quoted[0], "--exclude", quoted[1]]
    assert not {first, second} & set(ids(last_json("recommend", run, "--user", USER, *limits)["recommendations"]))
    limits = ["--candidates", quoted[0], "--candidates", quoted[1]]
    assert ids(last_json("recommend", run, "--user", USER, *limits)["recommendations"]) == [first, second]


def test_similar_takes_limits(run):
    assert OTHER in ids(last_json("similar", run, "--item", ITEM, "-k", 48)["similar"])
    other = '"' + OTHER.replace('"', '""') + '"'
    assert OTHER not in ids(last_json("similar", run, "--item", ITEM, "-k", 48, "--exclude", other)["similar"])
    assert ids(last_json("similar", run, "--item", ITEM, "--candidates", other)["similar"]) == [OTHER]
    found = last_json("similar", run, "--item", ITEM, "-k", 48, "--filter", "title LIKE 'gears%'")["similar"]
    assert len(found) == 11  # not the item itself
    result = call("similar", run, "--item", ITEM, "-k", 48, "--filter", "title LIKE 'tulip%'", "--json")
    assert json.loads(result.stdout.splitlines()[-1])["similar"] == []  # no clicks in common: nothing to compare by


def test_ids_from_a_file(run, tmp_path):
    (tmp_path / "ids.txt").write_text(f"\ufeff{ITEM}\n\n  {OTHER}  \n", encoding="utf-8")
    found = last_json("recommend", run, "--history", f"@{tmp_path / 'ids.txt'}")
    assert found["history"] == [ITEM, OTHER]
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("bad.txt", "absent.txt"):
        result = call("recommend", run, "--history", f"@{tmp_path / name}", code=2)
        assert "cannot read a list of ids, one per line, from this file" in result.stderr
    (tmp_path / "@home").write_text("")
    assert "found '@home'" in call("recommend", run, "--history", '"@home"', code=2).stderr


@pytest.mark.parametrize("text", ['"a"b', '"open', "a\nb"])
def test_ids_that_cannot_be_split_are_refused(run, text):
    result = call("recommend", run, "--history", text, code=2)
    assert "not ids separated by commas" in result.stderr
    assert "Traceback" not in result.output


def test_several_users(run):
    users = '"u, it\'s ""1""", nobody'
    found = last_json("recommend", run, "--users", users, "-k", 2, "--unknown", "skip")
    assert [each["user"] for each in found["users"]] == [USER, "nobody"]
    assert [len(each["recommendations"]) for each in found["users"]] == [2, 0]
    result = call("recommend", run, "--users", users, "-k", 2, "--unknown", "popular")
    assert "unknown users get the most popular items, scored by their clicks: nobody" in result.stderr
    assert result.stdout.splitlines()[-1].startswith("Lists for 2 users")
    assert "unknown='skip' or 'popular'" in call("recommend", run, "--users", users, code=2).stderr
    found = last_json("recommend", run, "--user", "nobody", "-k", 4, "--unknown", "popular")
    assert len(found["recommendations"]) == 4


def test_lists_of_all_users(run, tmp_path):
    out = tmp_path / "my recs.csv.gz"
    found = last_json("recommend", run, "--all-users", "--out", out, "-k", 3)
    assert found == {"out": str(out), "users": 40, "k": 3}
    table = pl.read_csv(out)
    assert table.shape == (120, 5)
    recommender = Recommender.load(run)
    wanted = [
        entry.item_id for each in recommender.recommend(users=recommender.dataset.users.ids, k=3) for entry in each
    ]
    assert table["item_id"].to_list() == wanted
    assert "replace it with --overwrite" in call("recommend", run, "--all-users", "--out", out, code=2).stderr
    result = call("recommend", run, "--all-users", "--out", out, "--overwrite")
    assert result.stdout.splitlines()[-1] == f"Wrote the 10 best items of 40 users into {out}."
    assert "going on" not in result.stderr


def test_lists_of_some_users(run, tmp_path):
    (tmp_path / "users.txt").write_text(f"{USER}\nnobody\n")
    found = last_json("recommend", run, "--users", f"@{tmp_path / 'users.txt'}", "--out", tmp_path / "r.parquet",
                      "--unknown", "skip")  # fmt: skip
    assert found["users"] == 2
    assert pl.read_parquet(tmp_path / "r.parquet")["user_id"].unique().to_list() == [USER]


def test_an_interrupted_run_says_that_the_same_command_continues(run, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Recommender, "recommend_all", stop)
    result = call("recommend", run, "--all-users", "--out", tmp_path / "r.csv", code=130)
    assert "r.csv is not written yet, the same command continues" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "give either --user ID, --users a,b,c, --history a,b,c, or --all-users --out FILE"),
        (["--user", USER, "--history", "x"], "give either"),
        (["--user", USER, "--all-users"], "give either"),
        (["--all-users"], "--all-users needs --out FILE"),
        (["--user", USER, "--out", "x.csv"], "--out writes the lists of --all-users or --users"),
        (["--all-users", "--out", "x.txt"], "has no ending that says how to write it"),
        (
            ["--user", USER, "--filter", "nope = 1"],
            'unable to find column "nope"; the columns of the items are item_id',
        ),
        (["--user", USER, "--unknown", "maybe"], "'maybe' is not one of"),
    ],
    ids=str,
)
def test_wrong_usage_is_one_message(run, arguments, match):
    result = call("recommend", run, *arguments, code=2)
    assert match in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.output

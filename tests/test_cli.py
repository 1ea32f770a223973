"""The command line: one JSON object as the last line, one clear sentence otherwise, errors without a traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from front_door_world import encode_first_word, write_world
from graphllmrec.cli import app
from graphllmrec.cli.demo import _text_reuse, run_demo
from graphllmrec.data.read import load_data
from graphllmrec.errors import Interrupted
from graphllmrec.models.baselines.ease import EASE


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("data") / "books")


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    """Fitted runs of ease and popularity."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("ease", "popularity"):
        call("fit", name, "--data", world, "--out", folder / name)
    return folder


def call(*arguments, code=0):
    """Run a command; its exit code must be `code`."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def last_json(*arguments):
    return json.loads(call(*arguments, "--json").stdout.splitlines()[-1])


# fit


def test_fit_ends_with_a_sentence_that_says_what_to_do_next(world, tmp_path):
    result = call("fit", "ease", "--data", world, "--out", tmp_path / "run")
    last = result.stdout.splitlines()[-1]
    assert last.startswith("Fitted ease on books in ")
    assert "validation ndcg@20 0." in last
    assert last.endswith(f"Next: graphllmrec evaluate {tmp_path / 'run'}")
    assert (tmp_path / "run" / "metrics-valid.json").is_file()


def test_fit_json_and_settings(world, tmp_path):
    settings = ["model.l2=2.5", "data.split=user-ratio", "evaluate.ks=[7]", "evaluate.metric=hr@7"]
    options = [part for setting in settings for part in ("--set", setting)]
    found = last_json("fit", "ease", "--data", world, "--out", tmp_path / "run", "--seed", 3, *options)
    assert found.keys() == {"run", "model", "data", "seed", "seconds", "valid"}
    assert (found["model"], found["data"], found["seed"]) == ("ease", "books", 3)
    assert 0 < found["valid"]["hr@7"] <= 1
    recipe = (tmp_path / "run" / "recipe.toml").read_text()
    assert "l2 = 2.5" in recipe
    assert 'split = "user-ratio"' in recipe


def test_every_problem_of_a_recipe_is_printed_without_traceback(world, tmp_path):
    result = call("fit", "ease", "--data", world, "--out", tmp_path / "run", "--set", "model.l3=2", "--set", "sed=1",
                  code=2)  # fmt: skip
    assert "ease has 2 problem(s)" in result.stderr
    assert "model.l3: unknown setting" in result.stderr
    assert "sed: unknown setting; did you mean 'seed'?" in result.stderr
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(world, tmp_path):
    result = CliRunner().invoke(app, ["--debug", "fit", "eas", "--data", str(world), "--out", str(tmp_path / "run")])
    assert type(result.exception).__name__ == "RecipeError"


def test_bad_data_leaves_no_run(tmp_path):
    data = write_world(tmp_path / "bad")
    (data / "interactions.csv").write_text("user_id,item_id,timestamp\nu1,i1,yesterday\n")
    result = call("fit", "ease", "--data", data, "--out", tmp_path / "run", code=2)
    assert "interactions.csv" in result.stderr
    assert "yesterday" in result.stderr
    assert not (tmp_path / "run").exists()


def test_fit_needs_recipe_and_data_unless_it_resumes(tmp_path):
    assert "RECIPE and --data are needed" in call("fit", "ease", "--out", tmp_path / "run", code=2).stderr
    result = call("fit", "--resume", "--overwrite", "--out", tmp_path / "run", code=2)
    assert "exclude each other" in result.stderr


def test_a_finished_run_is_kept(runs, world):
    result = call("fit", "popularity", "--data", world, "--out", runs / "ease", code=2)
    assert "replace it with --overwrite" in result.stderr


def test_an_interrupted_fit_exits_130_with_the_command_that_continues_it(world, tmp_path, monkeypatch):
    def stop(self, task):
        raise Interrupted("stopped in epoch 3")

    with monkeypatch.context() as patch:
        patch.setattr(EASE, "fit", stop)
        result = call("fit", "ease", "--data", world, "--out", tmp_path / "run", code=130)
    assert f"stopped in epoch 3; continue with: graphllmrec fit --resume --out {tmp_path / 'run'}" in result.stderr
    result = call("recommend", tmp_path / "run", "--user", "u1", code=2)
    assert "interrupted run" in result.stderr
    found = last_json("fit", "--resume", "--out", tmp_path / "run")
    assert found["model"] == "ease"
    call("recommend", tmp_path / "run", "--user", "u1")


# recommend, explain, similar


def test_recommend_prints_titles_and_how_to_ask_why(runs):
    result = call("recommend", runs / "ease", "--user", "u1", "-k", 3)
    assert "poems novel sonnet" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("3 items for user u1. Why the first one: graphllmrec explain ")


def test_recommend_json(runs):
    found = last_json("recommend", runs / "ease", "--history", "i13, nope,i15", "-k", 3)
    assert found["ignored"] == ["nope"]
    assert found["history"] == ["i13", "nope", "i15"]
    assert [entry.keys() for entry in found["recommendations"]] == [{"item_id", "title", "score"}] * 3
    assert last_json("recommend", runs / "ease", "--user", "u1")["user"] == "u1"


def test_ignored_history_items_are_named(runs):
    result = call("recommend", runs / "ease", "--history", "i13,nope")
    assert "warning: unknown items of the history are ignored: nope" in result.stderr


def test_unknown_ids_and_wrong_usage(runs):
    assert "unknown user 'u99'" in call("recommend", runs / "ease", "--user", "u99", code=2).stderr
    assert "(--history)" in call("recommend", runs / "ease", "--user", "u99", code=2).stderr
    assert "no item of the history is known" in call("recommend", runs / "ease", "--history", "x,y", code=2).stderr
    assert "either --user" in call("recommend", runs / "ease", code=2).stderr
    assert "no run folder at" in call("recommend", runs / "absent", "--user", "u1", code=2).stderr
    assert "unknown item 'i99'" in call("similar", runs / "ease", "--item", "i99", code=2).stderr


def test_explain(runs):
    result = call("explain", runs / "ease", "--user", "u1", "--item", "i13")
    assert "100% from clicks" in result.stdout
    assert "because of" in result.stdout
    found = last_json("explain", runs / "ease", "--user", "u1", "--item", "i13")
    assert {"user", "item_id", "title", "score", "shares", "gate", "context", "history"} <= found.keys()
    assert found["history"][0].keys() == {"item_id", "title", "score"}
    assert sum(found["shares"].values()) == pytest.approx(found["score"])


def test_similar(runs):
    result = call("similar", runs / "ease", "--item", "i3", "-k", 2)
    assert result.stdout.splitlines()[-1] == "2 items similar to gears pump valve 3 (item i3)."
    assert len(last_json("similar", runs / "ease", "--item", "i3", "-k", 2)["similar"]) == 2


# evaluate, compare, report, stats


def test_evaluate_keeps_its_figures_in_the_run_folder(runs):
    result = call("evaluate", runs / "ease")
    assert "all 48 items ranked" in " ".join(result.stdout.split())
    assert result.stdout.splitlines()[-1].startswith("ease reaches test ndcg@20 0.")
    found = last_json("evaluate", runs / "ease")
    assert found == json.loads((runs / "ease" / "metrics-test.json").read_text())
    assert {"recall@20", "ndcg@20", "mrr@20", "hr@20"} <= found["overall"].keys()
    assert list(found["strata"]["item_degree"]) == ["0", "1-3", "4-10", "11-50", ">50"]
    assert last_json("evaluate", runs / "ease", "--split", "valid")["protocol"]["part"] == "valid"
    assert "no branch 'text'" in call("evaluate", runs / "ease", "--branch", "text", code=2).stderr


def test_compare_names_the_winner(runs):
    result = call("compare", runs / "popularity", runs / "ease", "--metric", "ndcg@10")
    assert "ease is better than popularity: ndcg@10 +0." in result.stdout.splitlines()[-1]
    found = last_json("compare", runs / "popularity", runs / "ease")
    assert found["baseline"] == "popularity"
    assert found["comparisons"]["ease"]["difference"] > 0
    assert found["comparisons"]["ease"]["p_holm"] < 0.05


def test_compare_says_a_sentence_a_line_and_calls_equal_runs_equal(runs, tmp_path):
    copy = shutil.copytree(runs / "ease", tmp_path / "again")
    first, second = call("compare", runs / "ease", runs / "popularity", copy).stdout.splitlines()[-2:]
    assert first.startswith("popularity is worse than ease: ndcg@20 -0.")
    assert re.fullmatch(r"again and ease have the same ndcg@20, 0\.\d{4}\.", second)


def test_compare_refuses_one_run_the_same_run_and_unknown_metrics(runs):
    assert "at least two runs" in call("compare", runs / "ease", code=2).stderr
    assert "given twice" in call("compare", runs / "ease", runs / "ease", code=2).stderr
    result = call("compare", runs / "ease", runs / "popularity", "--metric", "ndcg@7", code=2)
    assert "ndcg@7" in result.stderr


def test_runs_of_different_data_are_not_compared(runs, tmp_path):
    other = write_world(tmp_path / "other", seed=1)
    call("fit", "ease", "--data", other, "--out", tmp_path / "run")
    assert "cannot be compared" in call("compare", runs / "ease", tmp_path / "run", code=2).stderr


def test_report_is_one_page(runs, tmp_path):
    result = call("report", runs / "popularity", runs / "ease", "--out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "2 recommenders on books" in page
    assert "<script" not in page
    assert result.stdout.splitlines()[-1].startswith(
        f"Wrote {tmp_path / 'report.html'} about 2 run(s); ease first with"
    )
    assert last_json("report", runs / "ease", "--out", tmp_path / "one.html")["values"].keys() == {"ease"}


def test_stats(world):
    assert "40 users, 48 items, 320 interactions" in call("stats", world).stdout.splitlines()[-1]
    found = last_json("stats", world)
    assert (found["users"], found["split"]["kind"]) == (40, "leave-last-out")


# doctor, demo


def test_doctor_names_versions_and_extras():
    found = last_json("doctor")
    checks = {check["name"]: check for check in found["checks"]}
    assert found["ok"] is True
    assert {
        "python",
        "torch",
        "polars",
        "threads",
        "gpu",
        "weights",
        "text cache",
        "write access",
        "extra llm",
    } <= checks.keys()
    assert all(check["advice"] for check in found["checks"] if not check["ok"])
    assert "graphllmrec demo" in call("doctor").stdout.splitlines()[-1]


def test_the_demo_walks_from_clicks_to_a_film_that_does_not_exist(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("graphllmrec.text.prepare.encode_items", encode_first_word)
    found = run_demo(tmp_path / "demo", data=load_data(world), recipes=("ease", "text-knn"))
    printed = capsys.readouterr().out
    assert (tmp_path / "demo" / "report.html").is_file()
    assert set(found["runs"]) == {"ease", "text-knn"}
    assert len(found["advice"]["recommendations"]) == 5
    assert found["advice"]["recommendations"][0]["shares"] == {"text": 1.0}
    assert len(found["new_film"]["similar"]) == 5
    assert found["new_film"]["people"] == 40
    assert "A film that does not exist: Lighthouse on Mars" in printed
    assert "graphllmrec recommend" in printed.splitlines()[-1]
    run_demo(tmp_path / "demo", data=load_data(world), recipes=("ease", "text-knn"))  # may be repeated


def test_damaged_lines_of_the_timings_do_not_stop_the_demo(tmp_path):
    for name, lines in {
        "torn": [
            '{"event": "te',
            "\x00\xff",
            "[]",
            "3",
            '{"name": "text"}',
            '{"event": "text", "cached": 1}',
            "[" * 9999,
        ],
        "whole": ['{"event": 5}', '{"event": "text", "different": 7, "cached": 2}'],
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "timings.jsonl").write_bytes("\n".join(lines).encode("latin-1"))
    assert _text_reuse(tmp_path, ("absent", "torn")) == "Film texts: not used."
    assert _text_reuse(tmp_path, ("torn", "whole")) == "Film texts: 5 encoded now, 2 reused from an earlier run."


def test_help_lists_every_command_and_loads_nothing_heavy():
    code = """
import sys
from graphllmrec.cli import main
sys.argv = ["graphllmrec", "--help"]
try:
    main()
except SystemExit as stopped:
    heavy = [name for name in ("torch", "polars", "numpy", "pydantic", "matplotlib") if name in sys.modules]
    print("heavy:", heavy, "code:", stopped.code)
"""
    result = python(code)
    assert "heavy: [] code: 0" in result.stdout
    for name in ("fit", "evaluate", "compare", "recommend", "explain", "similar", "report", "stats", "demo", "doctor"):
        assert f" {name} " in result.stdout


def test_a_real_process_keeps_stdout_for_the_result(runs):
    arguments = ["recommend", str(runs / "ease"), "--user", "u1", "--json"]
    code = f"import sys; from graphllmrec.cli import main; sys.argv = ['graphllmrec', *{arguments!r}]; main()"
    result = python(code)
    assert len(result.stdout.splitlines()) == 1
    assert len(json.loads(result.stdout)["recommendations"]) == 10


def python(code):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "100"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)

"""Studies on a small world: what is run, kept, run again, refused, and said."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from front_door_world import encode_first_word, write_world
from graphllmrec import Recommender
from graphllmrec import run_folder as run
from graphllmrec.cli import app
from graphllmrec.errors import CheckpointError, DataError, Interrupted
from graphllmrec.models.baselines.ease import EASE
from graphllmrec.study import plan_study, run_study
from graphllmrec.study.display import Display
from graphllmrec.study.plan import FitJob
from graphllmrec.study.runner import fits_left
from graphllmrec.text.encoder import encode_items
from graphllmrec.train import loop

STUDY = {
    "title": "Books",
    "seeds": [0, 1],
    "metric": "ndcg@10",
    "metrics": ["recall@20"],
    "placebos": ["shuffled"],
    "baseline": "popularity",
    "trials": 3,
    "models": [
        {"recipe": "popularity"},
        {"recipe": "ease", "tune": {"model.l2": {"low": 1.0, "high": 1000.0, "log": True}}},
        {"recipe": "text-knn", "tune": {"model.decay": [1.0, 0.5]}},
    ],
}
SMALL = {"metric": "ndcg@10", "models": [{"recipe": "popularity"}, {"recipe": "ease"}], "baseline": "popularity"}


@pytest.fixture(scope="module", autouse=True)
def no_language_model():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graphllmrec.text.prepare.encode_items", encode_first_word)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("data") / "books")


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """A folder with the finished study, and its outcome."""
    out = tmp_path_factory.mktemp("study") / "out"
    return out, run_study(STUDY, [world], out)


@pytest.fixture
def fits(monkeypatch):
    """The run folders of all fits that are made from here on."""
    made, fit = [], Recommender.fit

    def spy(self, data, **options):
        made.append(options["out"])
        return fit(self, data, **options)

    monkeypatch.setattr(Recommender, "fit", spy)
    return made


def untimed(value):
    """Without what may differ between two runs of the same."""
    if isinstance(value, dict):
        return {key: untimed(entry) for key, entry in value.items() if not key.endswith("seconds")}
    return [untimed(entry) for entry in value] if isinstance(value, list) else value


def study_json(out):
    return untimed(json.loads((out / "study.json").read_text()))


def entry_of(found, label):
    return next(entry for entry in found["entries"] if entry["label"] == label)


def changed(**values):
    return {**STUDY, **values}


# what is run


def test_every_model_seed_and_placebo_is_a_fit_with_both_parts_evaluated(finished):
    out, found = finished
    assert [entry["label"] for entry in found["entries"]] == ["popularity", "ease", "text-knn", "text-knn [shuffled]"]
    assert (found["fits"], found["failed"]) == (8, 0)
    for entry in found["entries"]:
        assert [fit["seed"] for fit in entry["fits"]] == [0, 1]
        for fit in entry["fits"]:
            assert {"ndcg@10", "recall@20"} <= fit["test"].keys() & fit["valid"].keys()
    for name in ("study.json", "study.md", "index.html", "study.toml"):
        assert (out / name).is_file()


def test_text_helps_and_shuffled_text_does_not(finished):
    _, found = finished
    [row] = [row for row in found["comparisons"] if row["b"] == "text-knn [shuffled]" and row["metric"] == "ndcg@10"]
    assert row["a"] == "text-knn"
    assert row["relative_ci"][0] > 0.5
    assert row["p_holm"] < 0.01


def test_tuning_looks_at_validation_alone_and_each_placebo_is_tuned_by_itself(world, tmp_path, monkeypatch):
    looked_at, evaluate = [], Recommender.evaluate

    def spy(self, split="test", **options):
        looked_at.append(split)
        return evaluate(self, split, **options)

    monkeypatch.setattr(Recommender, "evaluate", spy)
    found = run_study(changed(seeds=[0], models=STUDY["models"][1:]) | {"baseline": None}, [world], tmp_path / "out")
    # ease: three trials, one fit; text-knn and its placebo: two trials, the whole space, and one fit each
    assert "".join(part[0] for part in looked_at) == "vvvvtvvvtvvvt"
    assert [entry["trials"] for entry in found["entries"]] == [3, 2, 2]


def test_what_was_trained_before_with_the_same_settings_is_taken_over_with_its_seconds(world, tmp_path, monkeypatch):
    trained, run_epoch = [], loop._Training.run_epoch

    def spy(training, *rest):
        trained.append((training.stage.name, training.task.seed))
        time.sleep(0.05)
        return run_epoch(training, *rest)

    monkeypatch.setattr(loop._Training, "run_epoch", spy)
    tiny = {"epochs": 1, "min_steps": 0, "text_dim": 4, "hidden": 4, "negatives": 8}
    sign = {"recipe": "sign", "set": {f"model.{key}": value for key, value in tiny.items()}}
    hybrid = {"recipe": "hybrid-static", "set": {"model.settings": {"sign": tiny}}}
    models = [sign | {"tune": {"model.learning_rate": [5e-4]}}, hybrid]  # the rate that the hybrid has, too
    out = tmp_path / "out"
    found = run_study({"metric": "ndcg@10", "seeds": [0, 1], "models": models}, [world], out)
    assert trained == [("sign", 0), ("sign", 1)]
    assert all(entry["fit_seconds"] > 0.05 for entry in found["entries"])  # as if trained for it
    assert not (out / "cache" / "books").exists()


def test_data_sets_may_be_run_side_by_side_and_put_together(world, tmp_path):
    other = write_world(tmp_path / "films")
    for data in ([world], [other]):
        run_study(SMALL, data, tmp_path / "parts")
    together = run_study(SMALL, [world, other], tmp_path / "parts")
    assert untimed(together) == untimed(run_study(SMALL, [world, other], tmp_path / "whole"))


def test_the_chosen_settings_are_those_of_the_best_trial_and_every_seed_has_them(finished):
    out, found = finished
    lines = (out / "fits" / "books" / "ease" / "none" / "trials.jsonl").read_text().splitlines()
    searched, *trials = map(json.loads, lines)
    assert searched["metric"] == "ndcg@10"
    assert trials[0]["settings"] == {"model.l2": 100.0}  # the recipe as it stands
    best = max(trials, key=lambda trial: trial["value"])["settings"]
    assert entry_of(found, "ease")["settings"] == best
    for seed in (0, 1):
        folder = out / "fits" / "books" / "ease" / "none" / f"seed-{seed}" / "run"
        assert f"l2 = {best['model.l2']}" in (folder / "recipe.toml").read_text()
        assert f"seed = {seed}" in (folder / "recipe.toml").read_text()


def test_placebos_may_use_the_settings_found_without(world, tmp_path):
    found = run_study(
        changed(tune_placebos=False, models=STUDY["models"][2:], baseline=None), [world], tmp_path / "out"
    )
    assert not (tmp_path / "out" / "fits" / "books" / "text-knn" / "shuffled" / "trials.jsonl").exists()
    real, placebo = found["entries"]
    assert real["settings"] == placebo["settings"]
    recipe = (tmp_path / "out/fits/books/text-knn/shuffled/seed-0/run/recipe.toml").read_text()
    assert 'placebo = "shuffled"' in recipe


def test_fitted_models_are_deleted_unless_they_are_to_be_kept(finished, world, tmp_path):
    out, _ = finished
    kept = {path.name for path in (out / "fits/books/ease/none/seed-0/run").iterdir()}
    assert kept == {
        "recipe.toml", "log.jsonl", "timings.jsonl", "manifest.json",
        *(f"{name}-{part}.parquet" for name in ("per-user", "targets") for part in ("valid", "test")),
        "metrics-valid.json", "metrics-test.json",
    }  # fmt: skip
    assert not list(out.rglob("trial-*"))
    run_study(SMALL | {"keep_models": True}, [world], tmp_path / "out")
    Recommender.load(tmp_path / "out/fits/books/ease/none/seed-0/run").recommend(users=["u1"])


# interrupted and run again


def test_a_finished_study_is_not_run_again(finished, world, fits):
    out, found = finished
    assert untimed(run_study(STUDY, [world], out)) == untimed(found)
    assert fits == []


STOPS = {
    "before a trial": (Recommender, "fit", 2),
    "before a fit": (Recommender, "fit", 7),
    "in a fit": (run, "finish", 5),
    "between the parts": (Recommender, "evaluate", 9),
    "in the tables": (FitJob, "record", 60),
}


@pytest.mark.parametrize("stop", STOPS)
def test_a_study_that_is_stopped_anywhere_ends_as_one_that_never_was(finished, world, tmp_path, monkeypatch, stop):
    what, name, after = STOPS[stop]
    calls, original = [0], getattr(what, name)

    def counted(*arguments, **options):
        calls[0] += 1
        if calls[0] == after:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(what, name, counted)
        with pytest.raises(Interrupted, match=r"stopped; \d of 8 fits are done\. The same command goes"):
            run_study(STUDY, [world], tmp_path / "out")
    assert not (tmp_path / "out" / "study.json").exists()
    run_study(STUDY, [world], tmp_path / "out")
    assert study_json(tmp_path / "out") == study_json(finished[0])


def test_an_unfinished_fit_is_continued_and_a_finished_one_is_taken_over(world, tmp_path, fits, monkeypatch):
    resumed, resume = [], Recommender.resume.__func__

    def spy(cls, path, **options):
        resumed.append(path)
        return resume(cls, path, **options)

    monkeypatch.setattr(Recommender, "resume", classmethod(spy))
    folder = tmp_path / "out" / "fits" / "books" / "popularity" / "none" / "seed-0" / "run"
    for place, name in ((run, "finish"), (Recommender, "evaluate")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(Interrupted):
                run_study(SMALL, [world], tmp_path / "out")
        assert run.state_of(folder) == ("interrupted" if name == "finish" else "finished")
    run_study(SMALL, [world], tmp_path / "out")
    assert resumed == [folder]
    assert fits.count(folder) == 1


def test_more_models_seeds_and_data_only_add_what_is_missing(world, tmp_path, fits):
    run_study(SMALL, [world], tmp_path / "out")
    other = write_world(tmp_path / "films", seed=1)
    grown = SMALL | {"seeds": [0, 1], "models": [*SMALL["models"], {"recipe": "item-knn"}], "title": "More"}
    assert len(fits_left(plan_study(grown, [world, other], tmp_path / "out"))) == 10
    fits.clear()
    found = run_study(grown, [world, other], tmp_path / "out")
    assert len(fits) == 10
    assert list(found["data"]) == ["books", "films"]
    assert {(row["data"], row["a"]) for row in found["comparisons"]} == {
        (data, name) for data in ("books", "films") for name in ("ease", "item-knn")
    }


def test_a_changed_setting_is_refused_with_what_differs_and_only_its_fits_are_made_anew(world, tmp_path, fits):
    run_study(SMALL, [world], tmp_path / "out")
    fits.clear()
    other = SMALL | {"models": [{"recipe": "popularity"}, {"recipe": "ease", "set": {"model.l2": 5.0}}]}
    with pytest.raises(CheckpointError, match=r"books · ease · seed 0: recipe\.model\.l2: 5\.0, not 100\.0"):
        run_study(other, [world], tmp_path / "out")
    assert fits == []
    found = run_study(other, [world], tmp_path / "out", overwrite=True)
    assert [path.parts[-4] for path in fits] == ["ease"]
    assert "l2 = 5.0" in (tmp_path / "out/fits/books/ease/none/seed-0/run/recipe.toml").read_text()
    assert found["failed"] == 0


def test_changed_data_is_refused(world, tmp_path):
    data = tmp_path / "books"
    shutil.copytree(world, data)
    run_study(SMALL, [data], tmp_path / "out")
    lines = (data / "interactions.csv").read_text().splitlines()
    (data / "interactions.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(CheckpointError, match="books · popularity · seed 0: the data changed"):
        run_study(SMALL, [data], tmp_path / "out")
    assert run_study(SMALL, [data], tmp_path / "out", overwrite=True)["failed"] == 0


def test_a_larger_budget_goes_on_with_the_search(finished, world, tmp_path, fits):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    with pytest.raises(CheckpointError, match="books · ease · seed 0: trials: 4, not 3"):
        run_study(changed(trials=4), [world], out)
    found = run_study(changed(trials=4), [world], out, overwrite=True)
    assert [entry["trials"] for entry in found["entries"]] == [0, 4, 2, 2]
    assert str(fits[0]).endswith("ease/none/trial-3")


def test_a_folder_that_holds_something_else_is_left_alone(world, tmp_path):
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(CheckpointError, match="not empty and not a study folder"):
        run_study(SMALL, [world], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def as_version_0_1(out):
    """A study folder with the names that version 0.1 gave its files."""
    (out / "fits").rename(out / "cells")
    for path in out.rglob("fit.json"):
        path.rename(path.with_name("cell.json"))


def test_a_folder_of_version_0_1_gets_the_new_names_and_keeps_its_results(finished, world, tmp_path, fits, capsys):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    as_version_0_1(out)
    found = run_study(STUDY, [world], out, display=Display())
    said = " ".join(capsys.readouterr().err.split())
    assert "study folder of version 0.1: cells/ was renamed to fits/, each cell.json to fit.json" in said
    assert fits == []
    assert untimed(found) == untimed(finished[1])
    assert not (out / "cells").exists()
    assert not list(out.rglob("cell.json"))


def test_an_upgrade_that_was_stopped_goes_on(finished, world, tmp_path, fits, monkeypatch):
    out, renamed, rename = tmp_path / "out", [0], Path.rename
    shutil.copytree(finished[0], out)
    as_version_0_1(out)
    (out / "stages").mkdir()

    def stop(self, target):
        renamed[0] += 1
        if renamed[0] == 4:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stop)
        with pytest.raises(KeyboardInterrupt):
            plan_study(STUDY, [world], out)
    assert (out / "cells").exists()
    plan = plan_study(STUDY, [world], out)
    assert [job.state() for job in plan.jobs] == ["done"] * 8
    assert len(plan.notes) == 1
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["cache", "fits"]
    assert plan_study(STUDY, [world], out).notes == ()


def test_a_folder_that_is_no_study_is_not_renamed(world, tmp_path):
    (tmp_path / "out" / "cells").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="not empty and not a study folder"):
        run_study(SMALL, [world], tmp_path / "out")
    assert (tmp_path / "out" / "cells").is_dir()


# what fails


def test_a_fit_that_fails_is_recorded_does_not_stop_the_others_and_is_tried_again(world, tmp_path, fits, monkeypatch):
    def broken(self, task):
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(EASE, "fit", broken)
        found = run_study(SMALL | {"models": [{"recipe": "ease"}, {"recipe": "popularity"}]}, [world], tmp_path / "out")
    assert found["failed"] == 1
    assert entry_of(found, "ease")["fits"] == [{"seed": 0, "state": "failed", "error": "RuntimeError: out of luck"}]
    assert entry_of(found, "popularity")["fits"][0]["state"] == "done"
    assert found["missing"] == [{"data": "books", "a": "ease", "b": "popularity"}]
    assert "books · ease · seed 0: RuntimeError: out of luck" in (tmp_path / "out" / "study.md").read_text()
    assert "out of luck" in (tmp_path / "out" / "index.html").read_text()
    log = json.loads((tmp_path / "out/fits/books/ease/none/seed-0/failed.json").read_text())
    assert any("in broken" in line for line in log["traceback"])
    fits.clear()
    found = run_study(SMALL | {"models": [{"recipe": "ease"}, {"recipe": "popularity"}]}, [world], tmp_path / "out")
    assert found["failed"] == 0
    assert len(fits) == 1
    assert not (tmp_path / "out/fits/books/ease/none/seed-0/failed.json").exists()


def test_a_model_that_needs_text_fails_on_data_without(world, tmp_path, monkeypatch):
    monkeypatch.setattr("graphllmrec.text.prepare.encode_items", encode_items)
    (tmp_path / "bare").mkdir()
    shutil.copy(world / "interactions.csv", tmp_path / "bare")
    models = [{"recipe": "popularity"}, {"recipe": "text-knn", "tune": {"model.decay": [1.0, 0.5]}}]
    found = run_study(SMALL | {"models": models, "seeds": [0, 1]}, [tmp_path / "bare"], tmp_path / "out")
    assert found["failed"] == 2
    assert (
        "all 2 trials of the search failed; the first one: TextError: "
        in entry_of(found, "text-knn")["fits"][0]["error"]
    )


def test_settings_that_cannot_work_are_trials_that_failed(world, tmp_path, monkeypatch):
    fit = EASE.fit

    def picky(self, task):
        if self.config.l2 > 50:
            raise RuntimeError("l2 is too large")
        fit(self, task)

    monkeypatch.setattr(EASE, "fit", picky)
    models = [{"recipe": "ease", "tune": {"model.l2": [10.0, 100.0]}}]
    found = run_study({"models": models, "metric": "ndcg@10"}, [world], tmp_path / "out")
    [entry] = found["entries"]
    assert (entry["trials"], entry["failed_trials"], entry["settings"]) == (2, 1, {"model.l2": 10.0})
    assert "2 (1 failed)" in (tmp_path / "out" / "study.md").read_text()


def test_data_folders_must_exist_and_have_names_of_their_own(world, tmp_path):
    with pytest.raises(DataError, match="no such data folder"):
        run_study(SMALL, [tmp_path / "absent"], tmp_path / "out")
    (tmp_path / "books").mkdir()
    with pytest.raises(DataError, match="two data folders of the same name"):
        run_study(SMALL, [world, tmp_path / "books"], tmp_path / "out")
    with pytest.raises(DataError, match="at least one data folder"):
        run_study(SMALL, [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# the command


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "study.toml"
    models = '[[models]]\nrecipe = "popularity"\n[[models]]\nrecipe = "ease"\n'
    path.write_text(f'title = "Books"\nmetric = "ndcg@10"\nbaseline = "popularity"\n{models}')
    return path


def call(*arguments, code=0):
    result = CliRunner().invoke(app, ["study", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_the_command_ends_with_a_sentence_and_takes_many_data_folders(file, world, tmp_path):
    other = write_world(tmp_path / "films", seed=1)
    out = tmp_path / "out"
    assert (
        "4 fits: 0 done, 0 failed, 4 open. With the trials of the searches, 4 of 4 fits are left to make."
        in call(file, "--data", world, other, "--out", out, "--dry-run").stdout
    )
    assert not out.exists()
    result = call(file, "--data", world, other, "--out", out)
    assert "[4/4] films · ease · seed 0: validation ndcg@10 0." in result.stderr
    assert "test" not in result.stderr.replace("tests and tables", "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("books: ease is first with ndcg@10 0.")
    assert "against popularity (significant, p" in lines[0]
    assert lines[-1].startswith(f"4 fits. Tables: {out / 'index.html'}")
    dry = json.loads(call(file, "--data", world, other, "--out", out, "--dry-run", "--json").stdout.splitlines()[-1])
    assert (dry["fits"], dry["done"], dry["fits_left"], dry["changed"]) == (4, 4, 0, None)


def test_the_command_prints_one_object_and_exits_1_when_something_failed(file, world, tmp_path, monkeypatch):
    monkeypatch.setattr(EASE, "fit", lambda self, task: 1 / 0)
    result = call(file, "--data", world, "--out", tmp_path / "out", "--json", code=1)
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["fits"], found["failed"]) == (2, 1)
    assert [entry["ndcg@10"] is None for entry in found["entries"]] == [False, True]
    assert (
        "failed: books · ease · seed 0: ZeroDivisionError"
        in call(file, "--data", world, "--out", tmp_path / "out", code=1).stdout
    )


def test_the_command_says_what_is_wrong(file, world, tmp_path, monkeypatch):
    assert "no such file" in call(tmp_path / "x.toml", "--data", world, "--out", tmp_path / "out", code=2).stderr
    call(file, "--data", world, "--out", tmp_path / "out")
    file.write_text(file.read_text() + "set = { 'model.l2' = 3.0 }\n")
    result = call(file, "--data", world, "--out", tmp_path / "out", code=2)
    assert "recipe.model.l2: 3.0, not 100.0" in result.stderr
    assert "add --overwrite" in result.stderr
    assert "recipe.model.l2: 3.0" in call(file, "--data", world, "--out", tmp_path / "out", "--dry-run").stdout

    def stop(self, task):
        raise KeyboardInterrupt

    monkeypatch.setattr(EASE, "fit", stop)
    result = call(file, "--data", world, "--out", tmp_path / "out", "--overwrite", code=130)
    assert "1 of 2 fits are done. The same command goes on from here." in result.stderr


def test_the_example_study_runs(world, tmp_path):
    example = Path(__file__).parent.parent / "examples" / "studies" / "quick.toml"
    call(example, "--data", world, "--out", tmp_path / "out")
    assert pl.DataFrame(json.loads((tmp_path / "out" / "study.json").read_text())["entries"]).height == 4


@pytest.mark.parametrize("split", ["global-time", "cold-item"])
def test_a_study_with_another_split_and_decoys_says_so(tmp_path: Path, split: str) -> None:
    world = write_world(tmp_path / "books")
    settings = {"decoys": 7, "set": {"data.split": split}, "models": [{"recipe": "popularity"}, {"recipe": "item-knn"}]}
    found = run_study(settings | {"baseline": "popularity"}, [world], tmp_path / "out", display=Display())
    protocol = found["data"]["books"]["protocol"]
    assert (protocol["split"], protocol["decoys"], protocol["decoys_from"]) == (split, 7, "auto")
    assert protocol["items"] == 48 + 7
    assert found["comparisons"][0]["users"] > 0
    assert "with 7 unclicked decoys" in (tmp_path / "out" / "study.md").read_text()

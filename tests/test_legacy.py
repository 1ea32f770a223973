"""Recipes and runs of version 0.1 go on working, with a warning that says what to write instead."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from front_door_world import encode_first_word, write_world
from graphllmrec.evaluation.evaluation import Evaluation, protocol_line
from graphllmrec.recipe import load_recipe
from graphllmrec.recommender import Recommender

OLD = Path(__file__).parent / "version-0.1"  # made by version 0.1 on tests/front_door_world.py, tables kept once
EXPECTED = json.loads((OLD / "recommendations.json").read_text())


def run_folder(name: str, folder: Path) -> Path:
    """A saved run of version 0.1 as it was written."""
    shutil.copytree(OLD / name, folder / name)
    for table in (OLD / "tables").iterdir():
        shutil.copy(table, folder / name)
    return folder / name


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_saved_run_recommends_what_it_did(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphllmrec.text.prepare.encode_items", encode_first_word)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        recommender = Recommender.load(run_folder(name, tmp_path))
    assert all(issubclass(warning.category, FutureWarning) for warning in seen)
    lists = recommender.recommend(users=["u0", "u7"], k=5) + recommender.recommend(history=["i1", "i3"], k=5)
    found = [[[entry.item_id, pytest.approx(entry.score, abs=1e-5)] for entry in each] for each in lists]
    assert found == EXPECTED[name]
    recommender.save(tmp_path / "again")  # in today's format, without a warning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Recommender.load(tmp_path / "again")
    assert [[e.item_id for e in each] for each in again.recommend(users=["u0"], k=5)] == [
        [e[0] for e in EXPECTED[name][0]]
    ]


def test_an_old_evaluation_is_read(tmp_path: Path) -> None:
    evaluation = Evaluation.read(run_folder("ials", tmp_path))
    assert evaluation.name == "ials"
    assert "placebo" not in protocol_line(evaluation.protocol)


@pytest.mark.parametrize(
    ("recipe", "settings", "names"),
    [
        (
            "sign",
            {"dims": 5, "cold_share": 0.1, "watch_users": 3},
            {"text_dim": 5, "cold_dropout": 0.1, "monitor_users": 3},
        ),
        ("recmind", {"control": "late", "start": 0.3}, {"gate_schedule": "late", "init_scale": 0.3}),
        ("hybrid", {"gate": {"prior": 2.0}}, {"gate": {"l2": 2.0}}),
        ("alphafuse", {"id_dims": 7}, {"id_dim": 7}),
        ("ials", {"dim": 7}, {"embedding_dim": 7}),
    ],
)
def test_old_settings_are_read_under_their_new_names(recipe: str, settings: dict, names: dict) -> None:
    with pytest.warns(FutureWarning, match=rf"model\.\S+ is now model\.{next(iter(names))}"):
        found = load_recipe(recipe, {f"model.{key}": value for key, value in settings.items()})
    assert found == load_recipe(recipe, {f"model.{key}": value for key, value in names.items()})


def test_old_settings_of_an_expert() -> None:
    with pytest.warns(FutureWarning, match=r"model\.settings\.sign\.dims is now model\.settings\.sign\.text_dim"):
        found = load_recipe("hybrid", {"model.settings": {"sign": {"dims": 5}}})
    assert found == load_recipe("hybrid", {"model.settings": {"sign": {"text_dim": 5}}})


def test_the_old_name_of_a_placebo() -> None:
    with pytest.warns(FutureWarning, match=r"text\.control is now text\.placebo"):
        found = load_recipe("text-knn", {"text.control": "shuffled"})
    assert found.text.placebo == "shuffled"


def test_todays_recipes_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_recipe("recmind", {"model.embedding_dim": 8})


def test_the_old_import_path_of_the_metrics(tmp_path: Path) -> None:
    """In a process of its own: the import puts a module in the place of the function `evaluate`."""
    write_world(tmp_path / "books")
    script = (
        "from graphllmrec.evaluate.metrics import user_metrics\n"
        "from graphllmrec.evaluation import metrics\n"
        "from graphllmrec import Recommender, evaluate\n"
        "assert user_metrics is metrics.user_metrics\n"
        f"print(evaluate(Recommender.from_recipe('popularity').fit({str(tmp_path / 'books')!r})).name)\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert found.stdout == "popularity\n", found.stderr
    assert "FutureWarning: graphllmrec.evaluate is graphllmrec.evaluation now" in found.stderr

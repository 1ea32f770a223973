"""Refitting for production: all data, what was found before, new users and items, warm starts, interruptions."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from graphllmrec import Recommender
from graphllmrec.cli.app import app
from graphllmrec.errors import ArgumentError, CheckpointError, EvaluationError
from graphllmrec.protocol import Earlier, Findings
from graphllmrec.train.earlier import load_rows

SMALL = {"embedding_dim": 8, "epochs": 6, "batch_size": 64, "patience": 2}


def table(folder: Path, users: int = 40, new: int = 0) -> Path:
    """Users who walk along a ring of 20 items; `new` users more, who end on an item that nobody else has."""
    rows = [f"u{user},i{(user * 3 + step) % 20:02},{step}" for user in range(users) for step in range(7)]
    for user in range(new):
        rows += [f"new{user},i{(user + step) % 20:02},{step}" for step in range(5)] + [f"new{user},launch,9"]
    folder.mkdir(exist_ok=True)
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id,position", *rows, ""]))
    return folder


def found(recommender: Recommender) -> Findings:
    """What a fit found."""
    findings = recommender._get_fit().findings
    assert isinstance(findings, Findings)
    return findings


def test_the_last_clicks_are_learned_from(tmp_path: Path) -> None:
    data = table(tmp_path / "data", new=20)
    fitted = Recommender.from_recipe("transitions").fit(data)
    launch = fitted.dataset.items.ids.row("launch")
    assert fitted.split.item_degree()[launch] == 0
    refitted = fitted.refit()
    assert refitted.split.item_degree()[launch] == 20
    assert (refitted.split.kind, len(refitted.split.valid), len(refitted.split.test)) == ("none", 0, 0)
    assert refitted.recommend(history=["i01", "i02", "i03", "i04", "i05"], k=3) != fitted.recommend(
        history=["i01", "i02", "i03", "i04", "i05"], k=3
    )
    assert fitted.split.item_degree()[launch] == 0  # the earlier one is as it was


def test_nothing_is_left_to_evaluate(tmp_path: Path) -> None:
    refitted = Recommender.from_recipe("popularity").fit(table(tmp_path / "data")).refit()
    with pytest.raises(EvaluationError, match="nothing to evaluate"):
        refitted.evaluate()


@pytest.mark.parametrize(("recipe", "settings"), [("ease", {"l2": "tune"}), ("lightgcn-fast", SMALL)])
def test_findings_survive_the_run_folder(tmp_path: Path, recipe: str, settings: dict[str, object]) -> None:
    data = table(tmp_path / "data")
    fitted = Recommender.from_recipe(recipe, model=settings).fit(data, out=tmp_path / "run")
    Recommender.load(tmp_path / "run").save(tmp_path / "copy")
    loaded = Recommender.load(tmp_path / "copy")
    newer = table(tmp_path / "data", new=5)
    first, second = fitted.refit(newer, warm=0.5), loaded.refit(newer, warm=0.5)
    for name, tensor in first.model.state().items():
        assert torch.equal(tensor, second.model.state()[name])
    assert "launch" in first.dataset.items.ids
    assert "new3" in first.dataset.users
    again = first.refit(newer)  # a refit can be refitted: it hands on what it took over
    assert found(again).settings == found(fitted).settings


def test_a_warm_start_trains_fewer_epochs_from_the_earlier_weights(tmp_path: Path) -> None:
    data = table(tmp_path / "data")
    settings = SMALL | {"patience": 100, "learning_rate": 0.01}
    fitted = Recommender.from_recipe("lightgcn-paper", model=settings | {"validate_every": 1}).fit(data)
    assert found(fitted).settings["graph/epochs"] > 2
    cold, warm, idle = fitted.refit(data), fitted.refit(data, warm=0.1), fitted.refit(data, warm=1e-9)
    now = [recommender.model.state()["users"] for recommender in (fitted, warm, cold)]
    assert (now[0] - now[1]).norm() < (now[0] - now[2]).norm()
    assert idle.split.kind == "none"


def test_rows_of_users_and_items_move_to_where_they_are_now() -> None:
    module = nn.Module()
    module.users = nn.Parameter(torch.zeros(3, 2))
    module.items = nn.Parameter(torch.zeros(3, 2))
    module.map = nn.Parameter(torch.zeros(2, 2))
    module.other = nn.Parameter(torch.zeros(4))
    then = {
        "users": torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]),
        "items": torch.tensor([[4.0, 4.0], [5.0, 5.0], [6.0, 6.0]]),
        "map": torch.eye(2),
        "other": torch.ones(5),  # of another shape: stays
    }
    earlier = Earlier(Findings({}, {}, 3, 3), np.array([2, -1, 0]), np.array([-1, 0, 1]), warm=1.0)
    load_rows(module, then, earlier)
    assert module.users.tolist() == [[3, 3], [0, 0], [1, 1]]
    assert module.items.tolist() == [[0, 0], [4, 4], [5, 5]]
    assert module.map.tolist() == [[1, 0], [0, 1]]
    assert module.other.tolist() == [0, 0, 0, 0]


def test_items_added_since_the_fit_can_be_refitted(tmp_path: Path) -> None:
    fitted = Recommender.from_recipe("lightgcn-fast", model=SMALL).fit(table(tmp_path / "data"))
    fitted.add_items([{"item_id": "added"}])
    assert "added" in fitted.refit(warm=1.0).dataset.items.ids


def test_shares_of_the_parts_do_not_stand_in_the_way(tmp_path: Path) -> None:
    data = {"split": "user-ratio", "test_ratio": 0.3, "valid_ratio": 0.2}
    refitted = Recommender.from_recipe("popularity", data=data).fit(table(tmp_path)).refit(out=tmp_path / "run")
    assert len(refitted.split.train) == 280
    assert Recommender.load(tmp_path / "run").recipe == refitted.recipe


def test_the_earlier_fit_is_let_go(tmp_path: Path) -> None:
    """A process that refits every night does not keep all earlier models."""
    fitted = Recommender.from_recipe("popularity").fit(table(tmp_path))
    earlier = weakref.ref(fitted.model)
    fitted = fitted.refit()
    gc.collect()
    assert earlier() is None


def test_an_encoder_fitted_on_the_catalogue_is_fitted_again(tmp_path: Path) -> None:
    folder = table(tmp_path, new=4)
    titles = "".join(f"i{number:02},garden tool number {number}\n" for number in range(20)) + "launch,lawn spade\n"
    (folder / "items.csv").write_text("item_id,title\n" + titles)
    fitted = Recommender.from_recipe("text-knn", text={"encoder": "ngrams"}).fit(folder)
    assert fitted.refit().recommend(history=["launch"], k=3)


def test_a_fit_without_any_split_says_what_that_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from graphllmrec.progress import RunLogger

    with RunLogger() as logger:
        fitted = Recommender.from_recipe("popularity", data={"split": "none"}).fit(table(tmp_path), logger=logger)
    assert len(fitted.split.train) == 280
    assert "nothing is held out" in "".join(capsys.readouterr()).replace("\n", " ")


def test_what_cannot_be_refitted_is_refused(tmp_path: Path) -> None:
    fitted = Recommender.from_recipe("popularity").fit(table(tmp_path / "data"))
    with pytest.raises(ArgumentError, match="from 0 to 1"):
        fitted.refit(warm=2)
    with pytest.raises(CheckpointError, match="not fitted yet"):
        Recommender.from_recipe("popularity").refit()
    fitted._fit = replace(fitted._get_fit(), findings=None)  # as a run of version 0.1
    with pytest.raises(CheckpointError, match="kept no findings"):
        fitted.refit()


def test_findings_that_were_damaged_after_loading_are_refused(tmp_path: Path) -> None:
    Recommender.from_recipe("lightgcn-fast", model=SMALL).fit(table(tmp_path / "data"), out=tmp_path / "run")
    loaded, path = Recommender.load(tmp_path / "run"), tmp_path / "run" / "findings.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"findings\.safetensors is damaged"):
        loaded.refit()


def test_the_command_replaces_a_run_by_its_refit(tmp_path: Path) -> None:
    data, run, runner = table(tmp_path / "data"), str(tmp_path / "run"), CliRunner()
    Recommender.from_recipe("ease").fit(data, out=run)
    newer = str(table(tmp_path / "data", new=4))
    refused = runner.invoke(app, ["refit", run, "--data", newer, "--out", run])
    assert refused.exit_code == 2
    done = runner.invoke(app, ["refit", run, "--data", newer, "--out", run, "--overwrite", "--json"])
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout.splitlines()[-1])
    assert (values["users"], values["items"], values["interactions"]) == (44, 21, 304)
    assert Recommender.load(run).recipe.data.split == "none"


def test_an_interrupted_refit_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    from graphllmrec.errors import Interrupted
    from graphllmrec.progress import RunLogger

    data = table(tmp_path / "data")
    Recommender.from_recipe("lightgcn-fast", model=SMALL).fit(data, out=tmp_path / "run")
    loaded = Recommender.load(tmp_path / "run")
    whole = loaded.refit(data, out=tmp_path / "whole", warm=1.0)

    class Stopping(RunLogger):
        steps = 0

        def advance(self, steps: int = 1, **values: float | str) -> None:
            self.steps += steps
            if self.steps == 2:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGINT)
            super().advance(steps, **values)

    with Stopping() as logger, pytest.raises((Interrupted, KeyboardInterrupt)):
        loaded.refit(data, out=tmp_path / "half", warm=1.0, save_every=0, logger=logger)
    resumed = Recommender.resume(tmp_path / "half")
    for name, tensor in whole.model.state().items():
        assert torch.equal(tensor, resumed.model.state()[name]), name

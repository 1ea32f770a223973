"""Weights of clicks: how they are read, and which models learn more from a click of a larger weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from graphllmrec import Recommender
from graphllmrec.data import load_data
from graphllmrec.errors import DataError
from graphllmrec.models.baselines.ease import EASE, EASEConfig
from graphllmrec.models.baselines.ials import IALS, IALSConfig
from graphllmrec.models.baselines.item_knn import neighbours
from graphllmrec.nn.losses import bpr_loss, drawn_softmax_loss, in_batch_softmax_loss, softmax_loss
from graphllmrec.protocol import Task

DAY = 86_400


def table(folder: Path, header: str, *rows: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "interactions.csv").write_text("\n".join([header, *rows, ""]))
    return folder


def weights(folder: Path, **options: object) -> dict[tuple[str, str], float]:
    data = load_data(folder, **options)  # type: ignore[arg-type]
    rows = data.interactions
    assert rows.weight is not None
    pairs = zip(data.users.of(rows.user), data.items.ids.of(rows.item), strict=True)
    return dict(zip(pairs, rows.weight.tolist(), strict=True))


def test_counts_add_up_over_repeats_and_are_scaled(tmp_path: Path) -> None:
    folder = table(tmp_path, "user_id,item_id,count", "a,x,1", "a,y,4", "a,y,3", "b,x,0")
    assert weights(folder) == {("a", "x"): 1.0, ("a", "y"): 3.0}  # log2(1 + 1), log2(1 + 7)
    assert weights(folder, weights="linear") == {("a", "x"): 1.0, ("a", "y"): 7.0}
    assert "interactions.csv: 1 rows with count 0 left out" in load_data(folder).notes
    assert load_data(folder, weights="none").interactions.weight is None


def test_events_weigh_what_the_recipe_says(tmp_path: Path) -> None:
    rows = ["a,x,view,1", "a,x,buy,2", "a,y,view,1", "a,z,cart,1"]
    folder = table(tmp_path, "user_id,item_id,event_type,quantity", *rows)
    found = weights(folder, weights="linear", events={"view": 1.0, "buy": 5.0})
    assert found == {("a", "x"): 11.0, ("a", "y"): 1.0}  # 1 · 1 + 5 · 2; carts are left out
    unweighted = load_data(folder, weights="none")
    assert unweighted.interactions.weight is None
    assert "all count the same; weigh them with data.events" in unweighted.notes[0]


def test_old_clicks_fade(tmp_path: Path) -> None:
    folder = table(tmp_path, "user_id,item_id,timestamp", f"a,x,{10 * DAY}", f"a,y,{20 * DAY}", "b,y,0")
    found = weights(folder, weights="linear", half_life=10.0)
    assert found == {("a", "x"): 0.5, ("a", "y"): 1.0, ("b", "y"): 0.25}


def test_repeats_add_up_where_asked(tmp_path: Path) -> None:
    folder = table(tmp_path, "user_id,item_id", "a,x", "a,x", "a,x", "a,y")
    assert load_data(folder).interactions.weight is None
    assert weights(folder, repeats="add") == {("a", "x"): 2.0, ("a", "y"): 1.0}


def test_labels_of_0_and_below_are_no_interactions(tmp_path: Path) -> None:
    data = load_data(table(tmp_path, "user_id,item_id,label", "a,x,1", "a,y,0", "b,x,-1", "b,y,1"))
    assert len(data.interactions) == 2
    assert data.notes == ("interactions.csv: 2 rows with label 0 or less left out",)


def test_ratings_of_0_and_below_are_told(tmp_path: Path) -> None:
    folder = table(tmp_path, "user_id,item_id,rating", "a,x,1", "a,y,0", "b,x,-1", "b,y,1")
    assert "2 ratings of 0 or less count as clicks" in load_data(folder).notes[0]
    assert not load_data(folder, min_rating=1).notes


@pytest.mark.parametrize(
    ("header", "rows", "options", "message"),
    [
        ("user_id,item_id,weight", ["a,x,-1", "a,y,1"], {}, "negative weight"),
        ("user_id,item_id,count", ["a,x,many"], {}, "not a number"),
        ("user_id,item_id,count", ["a,x,0"], {}, "no row is an interaction"),
        ("user_id,item_id,label", ["a,x,0"], {}, "no row has a label above 0"),
        ("user_id,item_id,event", ["a,x,view"], {"events": {"sale": 1.0}}, "data.events names 'sale'"),
        ("user_id,item_id,event", ["a,x,view", "a,y,"], {"events": {"view": 1.0}}, "missing event"),
        ("user_id,item_id", ["a,x"], {"events": {"view": 1.0}}, "no event column"),
        ("user_id,item_id", ["a,x"], {"half_life": 3.0}, "half_life needs timestamps"),
    ],
)
def test_what_cannot_be_a_weight_is_refused(
    tmp_path: Path, header: str, rows: list[str], options: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_data(table(tmp_path, header, *rows), **options)  # type: ignore[arg-type]


@pytest.fixture
def weighted(tmp_path: Path) -> Path:
    """Users who clicked three of eight items; clicks on item 7 have a count of 200 in place of 1."""
    draw = np.random.default_rng(0)
    rows = []
    for user in range(60):
        for time, item in enumerate(draw.permutation(8)[:4]):
            rows.append(f"{user},{item},{time},{200 if item == 7 else 1}")
    return table(tmp_path / "weighted", "user_id,item_id,position,count", *rows)


QUICK = {"epochs": 8, "embedding_dim": 8, "patience": 100}


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("popularity", {}),
        ("item-knn", {}),
        ("ease", {}),
        ("ials", {"embedding_dim": 4}),
        ("lightgcn-paper", QUICK | {"validate_every": 1}),
        ("lightgcn-fast", {"epochs": 4, "embedding_dim": 8}),
        ("z-sum", {"experts": ["ease", "transitions"]}),
    ],
)
def test_weights_change_what_a_model_learns(weighted: Path, recipe: str, settings: dict[str, object]) -> None:
    scores = []
    for scale in ("none", "log", "linear"):
        fitted = Recommender.from_recipe(recipe, model=settings, data={"weights": scale}).fit(weighted)
        assert fitted.model.abilities.uses_weights
        scores.append([entry.score for row in fitted.recommend(users=["1", "2", "3"], k=4) for entry in row])
    assert scores[0] != scores[1] != scores[2]


def test_a_model_without_use_for_weights_says_so(weighted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from graphllmrec.progress import RunLogger

    with RunLogger() as logger:
        Recommender.from_recipe("transitions").fit(weighted, logger=logger)
    assert "transitions counts all clicks the same" in "".join(capsys.readouterr())


def test_weights_survive_the_run_folder(weighted: Path, tmp_path: Path) -> None:
    fitted = Recommender.from_recipe("popularity").fit(weighted, out=tmp_path / "run")
    loaded = Recommender.load(tmp_path / "run").split.train.weight
    assert loaded is not None
    assert fitted.split.train.weight is not None
    assert loaded.tolist() == fitted.split.train.weight.tolist()


def dense(weighted: Path) -> tuple[np.ndarray, Task]:  # type: ignore[type-arg]
    """Relative weights X (num_users, num_items), float64, and the task they are the training part of."""
    split = Recommender.from_recipe("popularity").fit(weighted).split
    relative = split.train.relative_weight()
    assert relative is not None
    assert relative.mean() == pytest.approx(1, abs=1e-5)
    matrix = np.zeros((split.num_users, split.num_items))
    matrix[split.train.user, split.train.item] = relative
    return matrix, Task(split)


def test_ease_solves_its_equations_of_weighted_clicks(weighted: Path) -> None:
    x, task = dense(weighted)
    model = EASE(EASEConfig(l2=10.0, decay=1.0))
    model.fit(task)
    inverse = np.linalg.inv(x.T @ x + 10 * np.eye(x.shape[1]))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(model.weights.numpy(), expected, atol=1e-4)


def test_ials_reaches_the_minimum_of_its_weighted_loss(weighted: Path) -> None:
    """At the last half sweep every item vector solves its own weighted least squares against the users' vectors."""
    x, task = dense(weighted)
    config = IALSConfig(embedding_dim=3, sweeps=300, unobserved=0.1, l2=0.05, frequency=0.0)
    model = IALS(config)
    model.fit(task)
    h = model.items.double().numpy()
    clicked = (x > 0).astype(float)

    def solve(c: np.ndarray, other: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        eye = np.eye(other.shape[1])
        gram = 0.1 * other.T @ other + 0.05 * eye
        return np.stack([np.linalg.solve((other.T * row) @ other + gram, other.T @ row) for row in c])

    again = solve(x.T, solve(x, h))  # one sweep more changes little
    np.testing.assert_allclose(again, h, atol=5e-3)
    unweighted = solve(clicked.T, solve(clicked, h))
    assert np.abs(unweighted - h).max() > 0.05


def test_neighbours_are_cosines_of_weighted_columns(weighted: Path) -> None:
    import scipy.sparse as sp

    x, _ = dense(weighted)
    found = neighbours(sp.csr_array(x.astype(np.float32)), 100, 0.0).toarray()
    norms = np.linalg.norm(x, axis=0)
    expected = x.T @ x / np.outer(norms, norms)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_weighted_losses_are_weighted_means_of_single_losses() -> None:
    torch.manual_seed(0)
    weight = torch.tensor([0.5, 1.5, 1.0, 0.1])
    positive, negative, scores = torch.randn(4), torch.randn(4), torch.randn(4, 6)
    targets, own = torch.tensor([0, 5, 2, 3]), torch.randn(4, 4)
    queries, items, bias, nodes = torch.randn(4, 3), torch.randn(6, 3), torch.randn(6), torch.tensor([0, 5, 2, 3, 1, 1])

    def drawn(rows: list[int], w: torch.Tensor | None) -> torch.Tensor:
        picked = [*rows, 4, 5]
        return drawn_softmax_loss(queries[rows], items[picked], bias[picked], nodes[picked], 9, w)

    alone = {
        "bpr": torch.stack([bpr_loss(positive[[r]], negative[[r]]) for r in range(4)]),
        "softmax": torch.stack([softmax_loss(scores[[r]], targets[[r]]) for r in range(4)]),
        "drawn": torch.stack([drawn([r], None) for r in range(4)]),
        "in-batch": torch.stack([softmax_loss(own[[r]], torch.tensor([r])) for r in range(4)]),
    }
    together = {
        "bpr": bpr_loss(positive, negative, weight),
        "softmax": softmax_loss(scores, targets, weight),
        "drawn": drawn([0, 1, 2, 3], weight),
        "in-batch": in_batch_softmax_loss(own, targets, None, weight),
    }
    for name, losses in alone.items():
        torch.testing.assert_close(together[name], (losses * weight).mean())

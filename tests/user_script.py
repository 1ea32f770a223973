"""A script as a user of the package writes it: typed, with public names only. Checked with mypy --strict, and run."""

from __future__ import annotations

import sys
from pathlib import Path

from graphllmrec import (
    Dataset,
    Evaluation,
    Explanation,
    GraphLLMRecError,
    Recipe,
    Recommendation,
    Recommender,
    compare,
    evaluate,
    load_data,
)


def best_title(found: list[Recommendation]) -> str:
    """Title of the first entry, or its id."""
    first = found[0]
    return first.title if first.title is not None else first.item_id


def main(folder: Path, out: Path) -> dict[str, float]:
    """Fit two recommenders, use them, and return the NDCG@20 of each."""
    data: Dataset = load_data(folder, min_rating=None, k_core=0)
    popular = Recommender.from_recipe("popularity").fit(data)
    ease = Recommender.from_recipe("ease", model={"l2": 10.0}, seed=3).fit(data, out=out / "ease", overwrite=True)
    recipe: Recipe = ease.recipe
    assert recipe.seed == 3

    lists: list[list[Recommendation]] = ease.recommend(users=["u0", "u1"], k=5)
    [for_history] = ease.recommend(history=["i0", "i1"], k=5)
    similar: list[Recommendation] = ease.similar("i0", k=3)
    reason: Explanation = ease.explain("u0", lists[0][0].item_id)
    print(best_title(lists[0]), best_title(for_history), best_title(similar), sum(reason.shares.values()))

    try:
        ease.similar("no such item")
    except GraphLLMRecError as error:
        print(error)

    measured: dict[str, Evaluation] = {"popularity": evaluate(popular), "ease": evaluate(ease, split="valid")}
    result = compare(ease.evaluate("test"), measured["popularity"], "ndcg@20")
    print(f"{result.a} against {result.b}: {result.difference:+.4f} (p {result.p:.3f})")
    popular.add_items([{"item_id": "new", "title": "a new book"}])
    ease.save(out / "copy", overwrite=True)
    again = Recommender.load(out / "copy")
    assert again.recommend(users=["u0"], k=5) == lists[:1]
    return {name: evaluation.overall["ndcg@20"] for name, evaluation in measured.items()}


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2])))

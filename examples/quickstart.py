"""The Python interface on MovieLens latest-small, in well under a minute: fit, evaluate, compare, recommend, explain.

python examples/quickstart.py
"""

from __future__ import annotations

from graphllmrec import Recommender, compare, evaluate
from graphllmrec.data import demo_data


def main() -> None:
    data = demo_data()
    print(f"{data.name}: {data.num_users:,} users, {data.num_items:,} films, {len(data.interactions):,} ratings")

    popular = Recommender.from_recipe("popularity").fit(data)
    neighbours = Recommender.from_recipe("item-knn").fit(data)

    measured = {"popularity": evaluate(popular), "item-knn": evaluate(neighbours)}
    for name, evaluation in measured.items():
        low, high = evaluation.overall_ci["ndcg@20"]
        print(f"{name}: test ndcg@20 {evaluation.overall['ndcg@20']:.4f} (95 % interval {low:.4f} to {high:.4f})")
    result = compare(measured["item-knn"], measured["popularity"])
    print(f"difference {result.difference:+.4f}, p {result.p:.4f}")

    print("\nFor user 1:")
    [entries] = neighbours.recommend(users=["1"], k=5)
    for entry in entries:
        print(entry)
    print(f"\nWhy the first one?\n{neighbours.explain('1', entries[0].item_id)}")

    print("\nFor an unknown user who liked Star Wars IV and VI:")
    for entry in neighbours.recommend(history=["260", "1210"], k=5)[0]:
        print(entry)


if __name__ == "__main__":
    main()

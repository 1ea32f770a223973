"""From two tables of your own to recommendations, also of an item without sales.

    python examples/own_table.py [FOLDER]

Writes the data of a small shop (interactions.csv, items.csv) into FOLDER, by
default a temporary one: 60 customers buy items of their
hobby. Then fits the hybrid of clicks and text, adds a new item and prints how many customers get it recommended. The
packaged MiniLM encodes the texts, so the extra `llm` must be installed.
"""

from __future__ import annotations

import csv
import random
import sys
import tempfile
from pathlib import Path

from graphllmrec import Recommender, load_data

HOBBIES = {
    "garden": [
        "hand trowel",
        "tulip bulbs",
        "watering can",
        "pruning shears",
        "compost bin",
        "seed tray",
        "hoe",
        "rake",
    ],
    "kitchen": ["chef's knife", "saucepan", "whisk", "rolling pin", "spice rack", "baking tray", "ladle", "colander"],
    "music": ["guitar strings", "drum sticks", "metronome", "music stand", "capo", "tuner", "piano stool", "reeds"],
}
NEW = {"item_id": "new", "title": "lawn edging spade", "description": "for neat borders of flower beds"}


def write_shop(folder: Path) -> None:
    """interactions.csv (user_id, item_id, timestamp) and items.csv (item_id, title, description)."""
    draw = random.Random(0)
    names = {hobby: [f"{hobby}-{number}" for number in range(len(titles))] for hobby, titles in HOBBIES.items()}
    with (folder / "items.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["item_id", "title", "description"])
        for hobby, titles in HOBBIES.items():
            table.writerows([item, title, f"for the {hobby}"] for item, title in zip(names[hobby], titles, strict=True))
    with (folder / "interactions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["user_id", "item_id", "timestamp"])
        for customer in range(60):
            hobby = list(HOBBIES)[customer % len(HOBBIES)]
            for step, item in enumerate(draw.sample(names[hobby], 5)):
                table.writerow([f"{hobby}-fan-{customer}", item, 1_700_000_000 + 3600 * step])


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else name)
        folder.mkdir(parents=True, exist_ok=True)
        write_shop(folder)
        data = load_data(folder, name="shop")
    shop = Recommender.from_recipe({"model": {"name": "hybrid"}}).fit(data)

    for user in ("garden-fan-0", "music-fan-2"):
        print(f"{user} gets")
        for entry in shop.recommend(users=[user], k=3)[0]:
            print(entry)

    shop.add_items([NEW])
    print(f"\nNew in the shop: {NEW['title']}. Most similar:")
    for entry in shop.similar("new", k=3):
        print(entry)
    customers = data.users.ids.to_list()
    lists = shop.recommend(users=customers, k=5)
    takers = [user for user, list_ in zip(customers, lists, strict=True) if "new" in [entry.item_id for entry in list_]]
    gardeners = sum(user.startswith("garden") for user in takers)
    print(f"Among the first five of {len(takers)} customers; {gardeners} of them garden.")


if __name__ == "__main__":
    main()

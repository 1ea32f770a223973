"""What users wrote: read in every format, kept in the run folder, and read from the train part alone."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from front_door_world import encode_first_word
from graphllmrec import run_folder as run
from graphllmrec.data import load_data, make_split
from graphllmrec.data.tables import Histories, Interactions
from graphllmrec.errors import DataError
from graphllmrec.models.baselines.text_knn import TextKNN
from graphllmrec.protocol import Abilities, Queries, Task, TextVectors
from graphllmrec.recommender import Recommender
from graphllmrec.text.config import TextConfig
from graphllmrec.text.reviews import user_text, with_reviews

WORDS = {"gears": 0, "pump": 0, "poem": 1, "sonnet": 1, "novel": 1}
ROWS = [
    {"user_id": "a", "item_id": "x", "timestamp": 1, "review": "gears"},
    {"user_id": "a", "item_id": "y", "timestamp": 2, "review": None},
    {"user_id": "b", "item_id": "x", "timestamp": 3, "review": 'a, fine "pump"'},
]


def encode_words(texts, config=None, **_):
    """Stands in for the language model: how many words of a kind, and of no kind; length 1."""
    counts = torch.zeros(len(texts), 3)
    for row, text in enumerate(texts):
        for word in text.lower().replace(".", " ").replace(",", " ").split():
            counts[row, WORDS.get(word, 2)] += 1
    return torch.nn.functional.normalize(counts, dim=1)


@pytest.fixture(autouse=True)
def no_language_model(monkeypatch):
    monkeypatch.setattr("graphllmrec.text.prepare.encode_items", encode_first_word)
    monkeypatch.setattr("graphllmrec.text.reviews.encode_texts", encode_words)


def write_readers(folder, later="novel"):
    """Sixteen readers with the same six books each; what they wrote tells engineers (even) from poets (odd).

    The reviews of the two latest books, which go to validation and test, are `later` for everybody.
    """
    folder.mkdir()
    own = (("Gears!", "My <b>pump</b>", None, "gears gears"), ("Poem", None, "a sonnet", "poem"))
    rows = [
        (f"u{user}", f"i{(step + user // 2) % 6}", 100 * user + step, own[user % 2][step] if step < 4 else later)
        for user in range(16)
        for step in range(6)
    ]
    schema = ["user_id", "item_id", "timestamp", "reviewText"]
    pl.DataFrame(rows, schema=schema, orient="row").write_csv(folder / "interactions.csv")
    pl.DataFrame({"item_id": [f"i{n}" for n in range(6)], "title": [f"book {n}" for n in range(6)]}).write_csv(
        folder / "items.csv"
    )
    return folder


@pytest.fixture
def readers(tmp_path):
    return write_readers(tmp_path / "readers")


# reading


def write(folder, kind):
    table = pl.DataFrame(ROWS)
    if kind == "csv":
        table.write_csv(folder / "interactions.csv")
    elif kind == "tsv":
        table.write_csv(folder / "interactions.tsv", separator="\t")
    elif kind == "jsonl":
        (folder / "interactions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "inter":
        names = "user_id:token\titem_id:token\ttimestamp:float\treview:token_seq\n"
        lines = ["\t".join(str("" if value is None else value) for value in row.values()) for row in ROWS]
        (folder / "toy.inter").write_text(names + "\n".join(lines) + "\n")
    else:
        table.write_parquet(folder / "interactions.parquet")


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "inter"])
def test_reviews_are_read_from_every_format(tmp_path, kind):
    write(tmp_path, kind)
    data = load_data(tmp_path)
    assert data.interactions.review.to_list() == ["gears", None, 'a, fine "pump"']
    assert any("2 reviews read from review" in note for note in data.notes)


@pytest.mark.parametrize("column", ["review", "review_text", "reviewText", "text", "comment"])
def test_names_of_reviews(tmp_path, column):
    pl.DataFrame(ROWS).rename({"review": column}).write_csv(tmp_path / "interactions.csv")
    assert load_data(tmp_path).interactions.review.to_list()[0] == "gears"


def test_a_summary_comes_before_its_review(tmp_path):
    text = "user_id,item_id,summary,reviewText\na,x,Nice.,It works\na,y,Bad,\na,z,,ok\nb,x,,\n"
    (tmp_path / "interactions.csv").write_text(text)
    assert load_data(tmp_path).interactions.review.to_list() == ["Nice. It works", "Bad", "ok", None]


@pytest.mark.parametrize("review", [[None] * 3, ["", " ", None]])
def test_no_reviews_no_column(tmp_path, review):
    pl.DataFrame(ROWS).with_columns(review=pl.Series(review, dtype=pl.String)).write_csv(tmp_path / "interactions.csv")
    assert load_data(tmp_path).interactions.review is None


def test_a_column_of_numbers_is_no_review(tmp_path):
    pl.DataFrame(ROWS).with_columns(review=pl.Series([1, 2, 3])).write_parquet(tmp_path / "interactions.parquet")
    data = load_data(tmp_path)
    assert data.interactions.review is None
    assert data.notes == ("interactions.parquet: column review holds no text, not read as a review",)


def test_a_row_cut_by_a_line_break_is_refused(tmp_path):
    (tmp_path / "interactions.csv").write_text("user_id,item_id,review\na,x,first\nand, so on\nb,y,\n")
    with pytest.raises(DataError, match="line 3: 2 values where the header names 3"):
        load_data(tmp_path)


def test_reviews_stay_with_their_rows_through_filters(tmp_path):
    rows = [
        {"user_id": user, "item_id": item, "timestamp": when, "rating": rating, "text": f"{user}{item}{when}"}
        for user, item, when, rating in [
            ("b", "y", 9, 5), ("a", "x", 5, 5), ("a", "y", 3, 5), ("b", "x", 4, 5), ("a", "x", 1, 4),
            ("b", "z", 2, 5), ("a", "q", 2, 1),
        ]
    ]  # fmt: skip
    pl.DataFrame(rows).write_csv(tmp_path / "interactions.csv")
    data = load_data(tmp_path, min_rating=2, k_core=2)
    found = [
        (user, item, text)
        for user, item, text in zip(
            data.users.of(data.interactions.user),
            data.items.ids.of(data.interactions.item),
            data.interactions.review.to_list(),
            strict=True,
        )
    ]
    assert found == [("a", "x", "ax1"), ("a", "y", "ay3"), ("b", "x", "bx4"), ("b", "y", "by9")]


def test_a_part_without_reviews_has_none(tmp_path):
    train = pl.DataFrame(ROWS)
    train.write_csv(tmp_path / "train.csv")
    pl.DataFrame([{"user_id": "b", "item_id": "y", "timestamp": 9}]).write_csv(tmp_path / "test.csv")
    data = load_data(tmp_path)
    assert data.ready["test"].review is None
    assert data.interactions.review.to_list() == ["gears", None, 'a, fine "pump"', None]


def test_tags_of_a_user_are_what_the_user_wrote(tmp_path):
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,10,5,1\n1,20,4,2\n2,10,5,3\n")
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n10,Ten,Drama\n20,Twenty,Comedy\n")
    tags = "userId,movieId,tag,timestamp\n1,10,slow,1\n1,10,sad,2\n1,10,slow,3\n2,20,funny,4\n3,10,odd,5\n"
    (tmp_path / "tags.csv").write_text(tags)
    data = load_data(tmp_path)
    assert data.interactions.review.to_list() == ["sad, slow", None, None]  # 2 did not rate 20, 3 nothing at all
    assert "tags.csv: tags serve as reviews of 1 rows of interactions" in data.notes
    assert data.items.table["tags"].to_list() == [["slow", "odd", "sad"], ["funny"]]


# run folders


def test_the_run_folder_keeps_reviews_with_their_parts(readers, tmp_path):
    fitted = Recommender.from_recipe("popularity").fit(readers, out=tmp_path / "run")
    tables = run.load_tables(tmp_path / "run")
    for part in ("train", "valid", "test"):
        assert getattr(tables.split, part).review.to_list() == getattr(fitted.split, part).review.to_list()
    assert tables.fingerprint == run.fingerprint(fitted.dataset) == run.fingerprint(tables.dataset)
    other = replace(fitted.dataset.interactions, review=fitted.dataset.interactions.review.str.to_uppercase())
    assert run.fingerprint(replace(fitted.dataset, interactions=other)) != tables.fingerprint
    assert Recommender.load(tmp_path / "run").evaluate(data=readers).overall == fitted.evaluate().overall


def test_no_review_column_where_nobody_wrote(tmp_path):
    (tmp_path / "data").mkdir()
    pl.DataFrame([(u, i, u + i) for u in range(9) for i in range(5)], schema=["user", "item", "time"],
                 orient="row").write_csv(tmp_path / "data" / "interactions.csv")  # fmt: skip
    Recommender.from_recipe("popularity").fit(tmp_path / "data", out=tmp_path / "run")
    assert "review" not in pl.read_parquet_schema(tmp_path / "run" / "interactions.parquet")
    assert run.load_tables(tmp_path / "run").split.train.review is None


# vectors


def test_a_user_is_the_mean_of_the_own_reviews(readers):
    text = user_text(make_split(load_data(readers)))
    assert text.present.all()
    # "Gears", "My pump" (the markup gone), "gears gears": (1, 0, 0) + (1, 0, 1) / sqrt 2 + (1, 0, 0), to length 1
    expected = np.array([2 + 0.5**0.5, 0, 0.5**0.5])
    np.testing.assert_allclose(text.vectors[0].numpy(), expected / np.linalg.norm(expected), atol=1e-6)
    assert text.texts[0] == "gears gears. My pump. Gears"  # newest first


def test_reviews_tell_readers_apart_whose_clicks_are_the_same(readers):
    split = make_split(load_data(readers))
    histories = split.train.histories(16)
    assert all(histories[user].tolist() == histories[user + 1].tolist() for user in range(0, 16, 2))
    likeness = user_text(split).vectors @ user_text(split).vectors.T
    kin = torch.tensor([[a % 2 == b % 2 for b in range(16)] for a in range(16)])
    assert likeness[kin].min() > likeness[~kin].max() + 0.3


def test_reviews_of_validation_and_test_are_never_read(tmp_path):
    found = []
    for number, later in enumerate(("novel", "gears pump pump")):
        split = make_split(load_data(write_readers(tmp_path / str(number), later)))
        items = TextVectors(torch.eye(6, 3), torch.ones(6, dtype=torch.bool), tuple("abcdef"))
        found.append((user_text(split), with_reviews(items, split)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.vectors, other.vectors)
        assert one.texts == other.texts


def test_who_wrote_nothing_has_no_vector(readers):
    split = make_split(load_data(readers))
    silent = split.train.review.set(pl.Series(split.train.user == 3), None).set(pl.Series(split.train.user == 4), "...")
    text = user_text(replace(split, train=replace(split.train, review=silent)))
    assert np.flatnonzero(~text.present.numpy()).tolist() == [3, 4]
    assert not text.vectors[3:5].any()
    assert text.texts[3:5] == (None, None)


@pytest.mark.parametrize("review", [None, pl.Series([None, ".", ""], dtype=pl.String)])
def test_nobody_wrote(review):
    split = make_split(load_data_of(review))
    assert user_text(split) is None
    items = TextVectors(torch.eye(3), torch.ones(3, dtype=torch.bool))
    assert with_reviews(items, split) is items


def load_data_of(review):
    """One user with five clicks, the first three of which are train."""
    from graphllmrec.data.tables import Dataset, IdMap, Items

    rows = None if review is None else review.extend_constant("later", 2)
    every = Interactions(np.zeros(5, np.int64), np.arange(5), np.arange(5), None, rows)
    ids = pl.Series([f"i{n}" for n in range(5)])
    return Dataset("toy", IdMap(["u"]), Items(IdMap(ids), pl.DataFrame({"item_id": ids})), every, order="timestamp")


def test_item_vectors_with_reviews(readers):
    split = make_split(load_data(readers))
    own = TextVectors(torch.tensor([[0.0, 0, 1]] * 5 + [[0.0, 0, 0]]), torch.arange(6) < 5, (*"abcde", None))
    found = with_reviews(own, split, TextConfig(max_tokens=8))
    train = split.train
    assert found.present.all()
    for item in range(6):
        said = [text for text, row in zip(train.review, train.item, strict=True) if row == item and text]
        clean = [text.replace("<b>", "").replace("</b>", "").strip("!") for text in said]
        mean = own.vectors[item] + encode_words(clean).mean(0)
        torch.testing.assert_close(found.vectors[item], mean / mean.norm())
    assert found.texts[0].startswith("a. ")
    assert max(map(len, found.texts)) <= 64  # eight characters a token: no model reads further


# through the front door


@pytest.fixture
def tasks(monkeypatch):
    """What text-knn is given."""
    seen, fit = [], TextKNN.fit
    monkeypatch.setattr(TextKNN, "fit", lambda self, task: (seen.append(task), fit(self, task))[1])
    return seen


def fit(data, **text):  # the stand-ins for items and reviews differ in size, so text-knn must not add them
    return Recommender.from_recipe("text-knn", model={"text_dim": 3, "decay": 1.0, "user_weight": 0.0}, text=text).fit(
        data
    )


def test_a_model_that_asks_is_given_user_text(readers, tasks, monkeypatch):
    fit(readers)
    assert torch.equal(tasks[0].user_text.vectors, user_text(tasks[0].split).vectors)
    assert tasks[0].encoder == TextConfig()
    monkeypatch.setattr(TextKNN, "abilities", Abilities(needs_text=True))
    fit(readers)
    assert tasks[1].user_text is None


@pytest.mark.parametrize("kind", ["shuffled", "random", "item2vec"])
def test_the_control_holds_for_user_text(readers, tasks, monkeypatch, kind):
    real = user_text(make_split(load_data(readers)))
    if kind != "shuffled":
        monkeypatch.setattr("graphllmrec.text.reviews.encode_texts", None)  # nothing is encoded
    fit(readers, placebo=kind)
    found = tasks[0].user_text
    assert torch.equal(found.present, real.present)
    torch.testing.assert_close(found.vectors.norm(dim=1), torch.ones(16))
    assert (found.texts is None) == (kind != "shuffled")
    if kind == "shuffled":
        assert sorted(found.vectors.tolist()) == sorted(real.vectors.tolist())
    else:
        assert found.vectors.shape == (16, 384)
    if kind == "item2vec":  # the same clicks, the same vector
        torch.testing.assert_close(found.vectors[0], found.vectors[1])


def test_reviews_join_item_text_when_asked(readers, tasks, monkeypatch):
    titles = TextVectors(torch.eye(6, 3), torch.arange(6) < 3)
    monkeypatch.setattr("graphllmrec.text.prepare.encode_items", lambda *_, **__: titles)
    fit(readers)
    fit(readers, reviews=True)
    assert torch.equal(tasks[0].text.vectors, titles.vectors)
    assert torch.equal(tasks[1].text.vectors, with_reviews(titles, tasks[1].split).vectors)
    assert tasks[1].text.present.all()
    monkeypatch.setattr("graphllmrec.text.reviews.encode_texts", None)  # nothing is encoded
    fit(readers, reviews=True, placebo="random")
    assert tasks[2].text.present.all()


def test_text_knn_adds_what_a_known_user_wrote(readers):
    data = load_data(readers)
    split, items = make_split(data), encode_first_word(data.items, TextConfig())
    written = TextVectors(torch.eye(split.num_users, items.vectors.shape[1]), torch.arange(split.num_users) > 0)
    model = TextKNN(TextKNN.config_class(decay=0.5, user_weight=2.0))
    model.fit(Task(split, items, user_text=written))
    alone = TextKNN(TextKNN.config_class(decay=0.5))
    alone.fit(Task(split, items))
    history = Histories.from_lists([[0, 1], [0, 1], [0, 1]])
    asked = Queries(np.array([1, 0, -1]), history)  # wrote something, wrote nothing, unknown
    vector = torch.nn.functional.normalize(model.whitening.apply(written)[1], dim=0)
    expected = alone.query_vectors(asked)
    expected[0] += 2.0 * vector
    torch.testing.assert_close(model.query_vectors(asked), expected)
    again = TextKNN(model.config)
    again.restore(model.state())
    assert torch.equal(again.scores(asked), model.scores(asked))
    assert "written" not in alone.state()

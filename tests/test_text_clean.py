"""Item text: what goes, what must stay, and in which order it is said."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphllmrec.errors import TextError
from graphllmrec.text.clean import item_text, item_texts


def described(description: str) -> str:
    return item_text({"description": description})


def test_structured_fields_come_first_whatever_the_column_order() -> None:
    record = {
        "item_id": "7",
        "description": "Holds hot liquids.",
        "tags": ["lab", "kitchen"],
        "categories": ["Science", "Bottles"],
        "title": "Bottle, 8 oz.",
        "brand": "Vestil",
    }
    assert item_text(record) == "Bottle, 8 oz. Vestil. Science > Bottles. Holds hot liquids. lab, kitchen"
    assert item_text(record, columns=["tags", "title"]) == "lab, kitchen. Bottle, 8 oz"


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("<p>One</p><p>two&nbsp;three</p>", "One two three"),
        ("H<sub>2</sub>O and <b>bold</b>", "H2O and bold"),
        ("&lt;br&gt;A &amp;amp; B &#39;c&#39;", "A & B 'c'"),
        ("<script>alert('x')</script>Safe<!-- hidden --> text", "Safe text"),
        ("tolerance <5 mm, a < b and c > d", "tolerance <5 mm, a < b and c > d"),
        ("tab\tnew\nline\x00 zero\u200bwidth", "tab new line zerowidth"),
        ("Cafe\u0301", "Café"),
        ("See https://shop.example/x?a=1 for it", "See for it"),
        ("AT&T cable R&D", "AT&T cable R&D"),
        ("नमस्ते 你好 \u0645\u06cc\u200c\u062e", "नमस्ते 你好 \u0645\u06cc\u200c\u062e"),
    ],
)
def test_markup_and_characters(raw: str, clean: str) -> None:
    assert described(raw) == clean


@pytest.mark.parametrize(
    "noise",
    [
        "100% satisfaction guarantee!",
        "30-Day Money Back Guarantee.",
        "FREE SHIPPING",
        "Click here for more.",
        "Buy now!",
        "Best prices guaranteed!",
        "Click Add to Cart now!",
        "100% brand new and high quality.",
        "Please feel free to contact us.",
        "If you are not satisfied, return it for a full refund.",
        "Check out our store for the latest offers.",
        "Value not found",
    ],
)
def test_shop_talk_goes(noise: str) -> None:
    assert described(f"Steel hinge. {noise} Rust free.") == "Steel hinge. Rust free"
    assert described(noise) == ""


@pytest.mark.parametrize(
    "fact",
    [
        "100% cotton",
        "100% Recycled Box, 9 Length x 6 Width x 3 Height",
        "Locks with an audible pop, giving positive feedback that it is installed",
        "Best price/performance in desktop printing",
        "5 in. x 3 in. x 3 in. high",
        "Shipping scale, free standing, weighs now up to 30 kg",
        "Approved by the customer service team in test 1410669",
        "Order form pads, 50 sheets",
    ],
)
def test_facts_stay(fact: str) -> None:
    assert described(fact) == fact


def test_a_fact_in_a_sentence_with_a_phrase_stays() -> None:
    text = described("The spool holds 1 kg, has no kinks and is backed by our 100% SATISFACTION GUARANTEE.")
    assert text == "The spool holds 1 kg, has no kinks and is"


def test_a_title_made_of_a_phrase_is_kept() -> None:
    assert item_text({"title": "Buy Now"}) == "Buy Now"
    assert item_text({"title": "None"}) == "None"
    assert item_text({"title": "Blue Lamp - Free Shipping!"}) == "Blue Lamp"
    assert item_text({"title": "Lamp", "brand": "Unknown"}) == "Lamp"


def test_repeated_long_sentences_are_said_once() -> None:
    text = described("The lamp is very bright. It is blue. THE LAMP IS VERY BRIGHT! It is blue.")
    assert text == "The lamp is very bright. It is blue. It is blue"
    assert item_text({"title": "A lamp for reading books", "description": "A lamp for reading books. Blue."}) == (
        "A lamp for reading books. Blue"
    )


def test_the_long_description_is_cut_not_what_follows_it() -> None:
    record = {"title": "Lamp", "description": "light " * 500, "material": "brass"}
    text = item_text(record, max_tokens=20)
    assert text.startswith("Lamp. light light")
    assert text.endswith("light. brass")
    assert len(text) <= 20 * 4 + 4
    whole = item_text({"title": "Lamp", "description": "light bulb socket"} | {"material": "brass"}, max_tokens=20)
    assert whole == "Lamp. light bulb socket. brass"


def test_rows_without_text_are_null_and_rows_keep_their_place() -> None:
    table = pl.DataFrame(
        {
            "item_id": ["a", "b", "c", "d"],
            "title": ["One", None, " . ", "Four"],
            "description": [None, None, "<br/>", "N/A"],
            "categories": [["X", None, "Y"], None, [], [""]],
            "price": [1.0, 2.0, 3.0, 4.0],
        }
    )
    assert item_texts(table).to_list() == ["One. X > Y", None, None, "Four"]


def test_a_table_without_text_columns_or_without_rows() -> None:
    assert item_texts(pl.DataFrame({"item_id": ["a", "b"]})).to_list() == [None, None]
    assert (
        item_texts(pl.DataFrame({"item_id": [], "title": []}, schema={"item_id": pl.String, "title": pl.String})).len()
        == 0
    )


def test_an_unknown_column_is_named() -> None:
    table = pl.DataFrame({"item_id": ["a"], "title": ["x"], "price": [1.0]})
    assert item_texts(table, ["price"]).to_list() == ["1"]
    with pytest.raises(TextError, match=r"no text column 'brand'; columns: title, price"):
        item_texts(table, ["brand"])


def test_records_that_json_may_carry() -> None:
    assert item_text({}) == ""
    assert item_text({"item_id": "1", "title": None, "price": 3.5}) == ""
    assert item_text({"title": "Lone \ud83d surrogate", "categories": ["A", 3, "B"]}) == "Lone? surrogate. A > B"


@given(st.dictionaries(st.sampled_from(["title", "brand", "description"]), st.text(max_size=80), max_size=3))
def test_any_text_is_survived_and_cleaning_is_the_same_for_one_and_for_many(record: dict[str, str]) -> None:
    text = item_text(record)
    assert text == text.strip()
    assert "\n" not in text
    if record:
        types = dict.fromkeys(("title", "brand", "description"), pl.String)
        table = pl.DataFrame([record, {"title": "Other"}], schema=types)
        assert (item_texts(table)[0] or "") == text

"""Each way in which a data folder can be wrong, and what the message says about it."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest
import zstandard

from graphllmrec.data import load_data
from graphllmrec.data.formats import read_table
from graphllmrec.errors import DataError

GOOD = "user_id,item_id\na,x\n"


def put(path: Path, name: str, content: str | bytes) -> Path:
    (path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def error_of(path: Path, **options: float) -> DataError:
    with pytest.raises(DataError) as caught:
        load_data(path, **options)  # type: ignore[arg-type]
    return caught.value


def test_all_problems_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp,rating\na,x,5,1\n,x,5,1\nb,y,soon,\nc,NaN,-3,1\nd,z,later,1\n\n"
    error = error_of(put(tmp_path, "interactions.csv", text))
    assert (error.file, error.line, error.column, error.what) == ("interactions.csv", 3, "user_id", "missing id")
    assert error.count == 4
    for part in (
        r"interactions.csv, line 3, column 'user_id': missing id [4 such problems in this file]",
        "also line 4, column 'timestamp': not a time (found 'soon'), 2 such rows",
        "also line 5, column 'item_id': missing id (found 'NaN')",
        "also line 5, column 'timestamp': negative timestamp (found '-3')",
    ):
        assert part in str(error)


def test_line_numbers_count_blank_lines_and_quoted_breaks(tmp_path: Path) -> None:
    text = '\nuser_id,item_id,note\na,x,"one\ntwo"\n\nb,,\n'
    assert error_of(put(tmp_path, "interactions.csv", text)).line == 6
    text = '{"user_id": "a", "item_id": "b"}\n\n{"user_id": null, "item_id": "b"}\n'
    (tmp_path / "interactions.csv").unlink()
    assert error_of(put(tmp_path, "interactions.jsonl", text)).line == 3


@pytest.mark.parametrize("value", ["", " ", "nan", "NaN", "null", "None"])
def test_missing_ids(tmp_path: Path, value: str) -> None:
    error = error_of(put(tmp_path, "interactions.csv", f"user_id,item_id\na,x\na,{value}\n"))
    assert (error.line, error.column, error.what) == (3, "item_id", "missing id")


def test_nan_and_infinite_ids_of_parquet(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": [1.0, float("nan"), float("inf"), None], "item_id": [1, 2, 3, 4]})
    frame.write_parquet(tmp_path / "interactions.parquet")
    error = error_of(tmp_path)
    assert (error.line, error.column, error.count) == (2, "user_id", 3)


def test_all_null_row_of_parquet_is_not_a_blank_line(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": ["a", None], "item_id": ["x", None]}).write_parquet(tmp_path / "interactions.parquet")
    assert error_of(tmp_path).line == 2


@pytest.mark.parametrize(
    ("column", "values", "what"),
    [
        ("timestamp", ["5", "-1"], "negative timestamp"),
        ("timestamp", ["5", "inf"], "not a time"),
        ("timestamp", ["5", ""], "missing value"),
        ("timestamp", ["2024-01-01", "2024-13-01"], "not a date"),
        ("timestamp", ["2024-01-01", ""], "missing value"),
        ("timestamp", ["2024-01-01", "1950-01-01"], "date before 1970"),
        ("timestamp", ["1700000000", "1700000000000"], r"in another unit than the others \(seconds\)"),
        ("position", ["0", "-1"], "negative position"),
        ("position", ["0", "1.5"], "not a whole number"),
        ("rating", ["5", "good"], "not a number"),
    ],
)
def test_values_that_cannot_be_used(tmp_path: Path, column: str, values: list[str], what: str) -> None:
    good, bad = values
    text = f"user_id,item_id,{column}\na,x,{good}\na,y,{good}\na,z,{bad}\na,w,{good}\n"
    with pytest.raises(DataError, match=what) as caught:
        load_data(put(tmp_path, "interactions.csv", text))
    assert (caught.value.line, caught.value.column) == (4, column)


def test_lists_are_no_times_and_ratings_fit_a_float(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a time"):
        load_data(put(tmp_path, "interactions.jsonl", '{"user_id": 1, "item_id": 2, "timestamp": [3]}\n'))
    (tmp_path / "interactions.jsonl").unlink()
    with pytest.raises(DataError, match="too large for a rating"):
        load_data(put(tmp_path, "interactions.csv", "user_id,item_id,rating\na,x,1e39\n"))


def test_lists_are_no_ids(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [["a"]], "item_id": ["x"]}).write_parquet(tmp_path / "interactions.parquet")
    with pytest.raises(DataError, match="not lists"):
        load_data(tmp_path)


@pytest.mark.parametrize(
    ("header", "hint"),
    [
        ("usr_id,item_id", "did you mean 'usr_id'"),
        ("when,item_id", "columns found: 'when', 'item_id'; rename one of them to one of: user_id, user,"),
        ("user_id item_id", "only one column: is the separator a comma, tab, semicolon"),
        ("196,242,3", "the first line looks like data"),
    ],
)
def test_missing_column_or_wrong_separator(tmp_path: Path, header: str, hint: str) -> None:
    error = error_of(put(tmp_path, "interactions.csv", f"{header}\na,b\n"))
    assert (error.what, error.line) == ("no column 'user_id'", 1)
    assert hint in str(error.hint)


def test_repeated_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two columns are named 'user_id'"):
        load_data(put(tmp_path, "interactions.csv", "user_id,user_id,item_id\na,b,c\n"))


@pytest.mark.parametrize("name", ["interactions.csv", "interactions.parquet", "interactions.jsonl"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="empty file"):
        load_data(put(tmp_path, name, b""))


@pytest.mark.parametrize("name", ["interactions.csv.gz", "interactions.jsonl.gz"])
def test_empty_file_within_gzip(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="empty file"):
        load_data(put(tmp_path, name, gzip.compress(b"")))


@pytest.mark.parametrize("text", ["user_id,item_id\n", "user_id,item_id", "user_id,item_id\n\n\n"])
def test_header_only(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="no rows, only column names"):
        load_data(put(tmp_path, "interactions.csv", text))


def test_only_line_breaks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'user_id'"):
        load_data(put(tmp_path, "interactions.csv", "\n\n"))
    with pytest.raises(DataError, match="not a JSON object"):
        load_data(
            put(tmp_path / "..", f"{tmp_path.name}/interactions.jsonl", "\n\n") / tmp_path.name / "interactions.jsonl"
        )


def test_row_with_too_many_values(tmp_path: Path) -> None:
    error = error_of(put(tmp_path, "interactions.csv", "user_id,item_id\na,x\na,y,1\na,b,c,d\n"))
    assert (error.what, error.line, error.value, error.count) == ("3 values where the header names 2", 3, "a,y,1", 2)


def test_quote_that_is_never_closed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a quote is never closed") as caught:
        load_data(put(tmp_path, "interactions.csv", 'user_id,item_id\na,x\na,"y\na,z\n'))
    assert caught.value.line == 3


def test_quote_in_the_middle_of_a_value(tmp_path: Path) -> None:
    error = error_of(put(tmp_path, "interactions.csv", 'user_id,item_id\na,x\na,"big" pipe\n'))
    assert (error.what, error.line) == ("a quote in the middle of a value", 3)


@pytest.mark.parametrize("columns", ["item_id,title", "title,item_id", "item_id,title,brand"])
def test_item_cut_in_two_by_a_line_break(tmp_path: Path, columns: str) -> None:
    put(tmp_path, "interactions.csv", GOOD)
    width = columns.count(",") + 1
    rows = [",".join("xyz"[:width]), "first half of a row", ",".join("abc"[:width])]
    with pytest.raises(DataError) as caught:
        load_data(put(tmp_path, "items.csv", "\n".join([columns, *rows, ""])))
    assert caught.value.line == 3
    assert caught.value.what in ("missing id", f"1 values where the header names {width}")


def test_not_utf8_names_the_byte_and_the_encoding(tmp_path: Path) -> None:
    put(tmp_path, "interactions.csv", GOOD)
    error = error_of(put(tmp_path, "items.csv", "item_id,title\nx,Ok\ny,Misérables\n".encode("cp1252")))
    assert (error.what, error.line) == ("not UTF-8 at byte 24", 3)
    assert "iconv -f cp1252 -t UTF-8 items.csv" in str(error.hint)


def test_utf16_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="iconv -f UTF-16"):
        load_data(put(tmp_path, "interactions.csv", GOOD.encode("utf-16")))


def test_utf8_character_cut_at_the_end(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not UTF-8 at byte 19"):
        load_data(put(tmp_path, "interactions.csv", (GOOD + "é").encode()[:-1].replace(b"a,x\n", b"a,x")))


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "csv.zst", "jsonl"])
def test_endless_line_stops_at_the_limit(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"interactions.{suffix}"
    endless = b"user_id,item_id\na,x\n" + b"x" * (5 << 20)
    pack = {"gz": gzip.compress, "zst": zstandard.compress}.get(suffix.split(".")[-1], bytes)
    path.write_bytes(pack(endless))
    with pytest.raises(DataError, match="a line longer than 2,097,152 bytes") as caught:
        read_table(path, lambda names: names, max_line_bytes=2 << 20)
    assert caught.value.line == 3


def test_a_gigabyte_of_nothing_fails_at_once(tmp_path: Path) -> None:
    with (tmp_path / "interactions.csv").open("wb") as sparse:
        sparse.truncate(1 << 30)  # takes no room on disk, and only the first 16 MiB are read
    with pytest.raises(DataError, match="a line longer than 16,777,216 bytes"):
        load_data(tmp_path)


@pytest.mark.parametrize(("name", "pack"), [("csv.gz", gzip.compress), ("csv.zst", zstandard.compress)])
def test_truncated_compression(tmp_path: Path, name: str, pack: object) -> None:
    rows = "user_id,item_id\n" + "".join(f"{user},{user * 7919 % 1009}\n" for user in range(5000))
    packed = pack(rows.encode())  # type: ignore[operator]
    with pytest.raises(DataError, match="damaged or cut short"):
        load_data(put(tmp_path, f"interactions.{name}", packed[: len(packed) // 2]))


@pytest.mark.parametrize("name", ["interactions.csv.gz", "interactions.csv.zst"])
def test_not_compressed_at_all(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="damaged or cut short"):
        load_data(put(tmp_path, name, GOOD))


def test_not_parquet(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a readable parquet file"):
        load_data(put(tmp_path, "interactions.parquet", b"PAR1 and then something else altogether"))


def test_bad_json_line(tmp_path: Path) -> None:
    good = '{"user_id": 1, "item_id": 2}\n'
    error = error_of(put(tmp_path, "interactions.jsonl", good + '{"user_id": 1,\n' + good + "7\n"))
    assert (error.what, error.line, error.count) == ("not a JSON object", 2, 2)


def test_json_array_and_mixed_kinds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one object per line, not one array"):
        load_data(put(tmp_path, "interactions.jsonl", '[{"user_id": 1, "item_id": 2}]'))
    mixed = '{"user_id": 1, "item_id": 2, "x": {"a": 1}}\n{"user_id": 1, "item_id": 2, "x": [2]}\n'
    with pytest.raises(DataError, match="line 2, column 'x': here a list, an object or a plain value"):
        load_data(put(tmp_path, "interactions.jsonl", mixed))
    with pytest.raises(DataError, match="NaN is not JSON: write null"):
        load_data(put(tmp_path, "interactions.jsonl", '{"user_id": 1, "item_id": 2, "rating": NaN}\n'))


def test_conflicting_items(tmp_path: Path) -> None:
    put(tmp_path, "interactions.csv", GOOD)
    error = error_of(put(tmp_path, "items.csv", "item_id,title\nx,Ex\ny,Why\nx,Other\n"))
    assert (error.what, error.line, error.value) == ("two different rows for one item", 4, "x")


def test_item_without_id(tmp_path: Path) -> None:
    put(tmp_path, "interactions.csv", GOOD)
    error = error_of(put(tmp_path, "items.csv", "item_id,title\nx,Ex\n,Lost\n"))
    assert (error.what, error.line, error.column) == ("missing id", 3, "item_id")


def test_session_sets_are_refused_with_a_reason(tmp_path: Path) -> None:
    for part in ("train", "test"):
        frame = pl.DataFrame({"session_id": [1], "items": [[1, 2]], "target": [3]})
        frame.write_parquet(tmp_path / f"{part}.parquet")
    with pytest.raises(DataError, match="session set") as caught:
        load_data(tmp_path)
    assert "session models are not part of this release" in str(caught.value.hint)


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        load_data(tmp_path / "nowhere")
    with pytest.raises(DataError, match="found nothing; expected interactions"):
        load_data(tmp_path)
    with pytest.raises(DataError, match=r"found notes\.txt; expected interactions"):
        load_data(put(tmp_path, "notes.txt", "x"))
    with pytest.raises(DataError, match="not a kind of file"):
        load_data(tmp_path / "notes.txt")
    with pytest.raises(DataError, match=r"without test\.\*"):
        load_data(put(tmp_path, "train.csv", GOOD))
    with pytest.raises(
        DataError, match=r"both interactions\.csv and train\.csv: found an unsplit table and a ready-made split"
    ):
        load_data(put(tmp_path, "interactions.csv", GOOD))


def test_two_files_for_one_table(tmp_path: Path) -> None:
    put(tmp_path, "interactions.csv", GOOD)
    with pytest.raises(DataError, match=r"two files hold the interactions: interactions\.csv and interactions\.tsv"):
        load_data(put(tmp_path, "interactions.tsv", GOOD))


def test_filters_that_cannot_be_applied(tmp_path: Path) -> None:
    put(tmp_path, "interactions.csv", GOOD)
    with pytest.raises(DataError, match="no rating column for min_rating"):
        load_data(tmp_path, min_rating=3)
    with pytest.raises(DataError, match="the 2-core is empty"):
        load_data(tmp_path, k_core=2)
    put(tmp_path, "interactions.csv", "user_id,item_id,rating\na,x,1\n")
    with pytest.raises(DataError, match="no interaction has a rating >= 3"):
        load_data(tmp_path, min_rating=3)
    (tmp_path / "interactions.csv").unlink()
    put(tmp_path, "train.csv", GOOD)
    put(tmp_path, "test.csv", "user_id,item_id\na,y\n")
    with pytest.raises(DataError, match="ready-made split cannot be k-core filtered"):
        load_data(tmp_path, k_core=2)


def test_parts_with_different_orders(tmp_path: Path) -> None:
    put(tmp_path, "train.csv", "user_id,item_id,timestamp\na,x,1\n")
    with pytest.raises(DataError, match=r"ordered differently \(train: timestamp, test: none\)"):
        load_data(put(tmp_path, "test.csv", "user_id,item_id\na,y\n"))


@pytest.mark.parametrize(
    ("codec", "name", "titles"),
    [
        ("gb18030", "GB18030", ["红色的锅", "雨伞", "无线蓝牙耳机"]),
        ("big5", "BIG5", ["紅色的鍋", "雨傘", "哈利波特"]),
        ("cp932", "CP932", ["赤い鍋", "ランプ", "吾輩は猫である"]),
        ("euc_jp", "EUC-JP", ["赤い鍋", "ランプ", "吾輩は猫である"]),
        ("cp949", "CP949", ["빨간 냄비", "우산", "무선 이어폰"]),
        ("cp1251", "cp1251", ["Красный горшок", "Война и мир"]),
        ("koi8_r", "KOI8-R", ["Красный горшок", "Война и мир"]),
        ("cp1250", "cp1250", ["Příliš žluťoučký kůň"]),
        ("cp1252", "cp1252", ["Crème brûlée", "Köln"]),
        ("utf-16", "UTF-16", ["Pot"]),
        ("utf-16-le", "UTF-16LE", ["Pot"]),
        ("utf-32", "UTF-32", ["Pot"]),
    ],
)
def test_the_advice_names_the_encoding_and_how_it_reads(
    tmp_path: Path, codec: str, name: str, titles: list[str]
) -> None:
    put(tmp_path, "interactions.csv", GOOD)
    text = "item_id,title\n" + "".join(f"{number},{title}\n" for number, title in enumerate(titles))
    error = error_of(put(tmp_path, "items.csv", text.encode(codec)))
    assert f"it looks like {name}" in str(error.hint)
    assert f"iconv -f {name} -t UTF-8 items.csv > new-items.csv" in str(error.hint)
    assert codec.startswith("utf") or titles[0][:8] in str(error.hint)


@pytest.mark.parametrize("text", ['x,"The \\"Best\\" pot",b\n', 'x,"The "Best" pot",b\n', 'x,"a"b,c\n'])
def test_a_quote_that_would_lose_text_is_refused(tmp_path: Path, text: str) -> None:
    put(tmp_path, "interactions.csv", GOOD)
    error = error_of(put(tmp_path, "items.csv", f"item_id,title,brand\nw,Pot,b\n{text}"))
    assert (error.what, error.line) == ("a quote in the middle of a value", 3)
    assert ("csv doubles them" in str(error.hint)) == ("\\" in text)


def test_quotes_that_lose_nothing_are_read(tmp_path: Path) -> None:
    text = '\ufeff"user_id","item_id"\r\n"a","x ""y"", z"\r\n"b","C:\\"\r\n'
    assert load_data(put(tmp_path, "interactions.csv", text)).items.ids.ids.to_list() == ["C:\\", 'x "y", z']


def test_decimal_commas_get_a_hint(tmp_path: Path) -> None:
    error = error_of(put(tmp_path, "interactions.csv", "user_id;item_id;rating\na;x;3\na;y;4,5\n"))
    assert (error.what, error.line, error.hint) == (
        "not a number",
        3,
        "write a decimal point instead of the comma: 4.5",
    )


def test_ratings_may_be_missing_unless_they_filter(tmp_path: Path) -> None:
    data = load_data(put(tmp_path, "interactions.csv", "user_id,item_id,rating\na,x,5\na,y,\n"))
    assert str(data.interactions.rating) == "[ 5. nan]"
    assert data.notes == ("interactions.csv: 1 of 2 rows have no rating",)
    with pytest.raises(DataError, match="missing value") as caught:
        load_data(tmp_path, min_rating=3)
    assert caught.value.line == 3
    none = load_data(put(tmp_path, "interactions.csv", "user_id,item_id,rating\na,x,\n\na,y,\n"))
    assert none.interactions.rating is None


def test_dates_that_can_be_read_in_two_ways_are_refused_with_advice(tmp_path: Path) -> None:
    for value in ("10/1/2019 3:04 PM", "29-01-2021 07:01", "01.10.2019"):
        put(tmp_path, "interactions.csv", f"user_id,item_id,timestamp\na,x,{value}\n")
        with pytest.raises(DataError, match="not a date") as caught:
            load_data(tmp_path)
        assert "is the day or the month first?" in str(caught.value.hint)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_compression_bomb_is_refused_early(tmp_path: Path, suffix: str) -> None:
    pack = {"gz": gzip.compress, "zst": zstandard.compress}[suffix]
    put(tmp_path, f"interactions.csv.{suffix}", pack(b"user_id,item_id\n") + pack(b"a,x\n" * (1 << 18)) * 100)
    error = error_of(tmp_path)
    assert "bytes of file hold more than 16,777,216 bytes of data" in error.what
    assert "data.max_bytes" in str(error.hint)


def test_the_limit_of_bytes_is_a_setting(tmp_path: Path) -> None:
    put(tmp_path, "interactions.csv", GOOD * 20)
    with pytest.raises(DataError, match="more than 100 bytes of data"):
        load_data(tmp_path, max_bytes=100)
    put(tmp_path, "interactions.csv", GOOD)
    assert load_data(tmp_path, max_bytes=100).num_items == 1


def test_a_parquet_bomb_is_refused_by_its_footer(tmp_path: Path) -> None:
    same = pl.repeat(1, 2_000_000, dtype=pl.Int64, eager=True)
    pl.DataFrame({"user_id": same, "item_id": same}).write_parquet(tmp_path / "interactions.parquet")
    with pytest.raises(DataError, match="bytes of file hold more than 16,777,216 bytes of data"):
        load_data(tmp_path)
    assert load_data(tmp_path, max_bytes=1 << 30).repeats == 1_999_999


def test_text_in_parquet_that_is_not_utf8(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": ["aaaa", "bbbb"], "item_id": ["x", "y"]})
    frame.write_parquet(tmp_path / "interactions.parquet", compression="uncompressed", statistics=False)
    path = tmp_path / "interactions.parquet"
    path.write_bytes(path.read_bytes().replace(b"aaaa", b"a\xff\xfea"))
    error = error_of(tmp_path)
    assert error.file == "interactions.parquet"


@pytest.mark.parametrize("column", ["rating", "position", "timestamp"])
def test_bytes_are_no_numbers(tmp_path: Path, column: str) -> None:
    frame = pl.DataFrame({"user_id": ["a", "b"], "item_id": ["x", "y"], column: [b"1", b"2"]})
    frame.write_parquet(tmp_path / "interactions.parquet")
    error = error_of(tmp_path)
    assert (error.file, error.column) == ("interactions.parquet", column)
    assert "not a" in str(error)


def test_a_table_separated_by_colons_that_is_no_text(tmp_path: Path) -> None:
    put(tmp_path, "ratings.dat", "1::2::3::4\n2::2::3::\t\x1f\x1e\x1d\n")
    assert "control characters" in str(error_of(tmp_path))


def test_a_first_line_longer_than_the_sample_of_the_encoding(tmp_path: Path) -> None:
    put(tmp_path, "interactions.csv", b"user_id,item_id\n" + "ä".encode("cp1252") * 200_000 + b",x\nb,\xe4\n")
    assert "UTF-8" in str(error_of(tmp_path))


def test_half_a_surrogate_pair_in_a_name(tmp_path: Path) -> None:
    put(tmp_path, "interactions.jsonl", '{"user_id": "a", "item_id": "x"}\n{"user_id": "b", "item_id": "y"}\n')
    put(tmp_path, "items.jsonl", '{"item_id": "x", "title": "Pot", "\\ud800": "red clay"}\n{"item_id": "y"}\n')
    assert "\ufffd" in load_data(tmp_path).items.table.columns


def test_half_a_surrogate_pair_in_json(tmp_path: Path) -> None:
    put(tmp_path, "interactions.jsonl", '{"user_id": "a", "item_id": "x"}\n{"user_id": "b", "item_id": "y"}\n')
    put(
        tmp_path,
        "items.jsonl",
        '{"item_id": "x", "title": "Pot \\ud83d"}\n{"item_id": "y", "title": "\\ud83d\\ude00"}\n',
    )
    data = load_data(tmp_path)
    assert data.items.titles == ["Pot \ufffd", "\U0001f600"]
    assert "items.jsonl: 1 texts have half a surrogate pair, replaced by \ufffd" in data.notes


def test_ids_of_separators_are_ids(tmp_path: Path) -> None:
    data = load_data(put(tmp_path, "interactions.csv", "user_id,item_id\n\x1c,x\n\x1d,\x1e\n"))
    assert data.users.ids.to_list() == ["\x1c", "\x1d"]


def test_lines_that_end_in_a_carriage_return_only(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lines end in a carriage return only"):
        load_data(put(tmp_path, "interactions.csv", "user_id,item_id\ra,x\r"))


def test_a_file_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "interactions.csv", GOOD)
    monkeypatch.setattr(Path, "open", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(DataError, match=r"interactions\.csv: cannot be read: Permission denied"):
        load_data(tmp_path)

"""A user's table is read by the meaning of its values, the same from each format, or refused in one line."""

import csv
import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.errors import ConfigError
from raypipe.storage import Folder
from raypipe.tables import empty_rows, read_table, read_text_columns, table_place
from raypipe.tables.column_types import iso_times

TIME = pa.timestamp("us", tz="UTC")
CSV = """video_id,title,year,rating,live,published_at,season,empty
007,NA,1962,7.5,true,2024-01-31,1,
b é,"Two
lines, one",,nan,false,2024-01-31T10:00:00.5+02:00,,
"c,d",,2020,8,,,3,
"""
# Without lone carriage returns, which only some CSV readers treat as line ends.
CSV_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=8)
KINDS = {
    "video_id": pa.string(),
    "title": pa.string(),
    "year": pa.int64(),
    "rating": pa.float64(),
    "live": pa.bool_(),
    "published_at": TIME,
    "season": pa.int64(),
    "empty": pa.string(),
}


def read(folder: Folder, name: str, content: str | bytes | pa.Table, **options: Any) -> pa.Table:  # noqa: ANN401
    if isinstance(content, pa.Table):
        pq.write_table(content, file := pa.BufferOutputStream())
        content = file.getvalue().to_pybytes()
    folder.put(name, content.encode() if isinstance(content, str) else content)
    given = {"text": ("video_id", "title"), "required": ("video_id",), "what": "catalogue"} | options
    return read_table(folder, name, **given).table


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(str(tmp_path_factory.mktemp("tables")))


def test_every_format_gives_the_same_types_and_values(folder: Folder) -> None:
    table = read(folder, "c.csv", CSV)
    assert dict(zip(table.column_names, table.schema.types, strict=True)) == KINDS
    rows = table.to_pylist()
    assert [row["video_id"] for row in rows] == ["007", "b é", "c,d"]
    assert [row["title"] for row in rows] == ["NA", "Two\nlines, one", None]
    assert [row["rating"] for row in rows] == [7.5, None, 8.0]
    assert [row["published_at"] for row in rows] == [
        datetime(2024, 1, 31, tzinfo=UTC),
        datetime(2024, 1, 31, 8, 0, 0, 500_000, tzinfo=UTC),
        None,
    ]
    plain = [
        {key: value.isoformat() if isinstance(value, datetime) else value for key, value in row.items()} for row in rows
    ]
    lines = "\n\n".join(json.dumps(row) for row in plain)
    assert read(folder, "c.jsonl", lines).equals(table)
    assert read(folder, "C.PARQUET", table).equals(table)


def test_parquet_types_become_the_one_of_their_kind(place: Folder) -> None:
    naive = datetime(2024, 5, 6, 7, 8)  # noqa: DTZ001 - a time without a zone is what is tested
    table = pa.table(
        {
            "video_id": pa.array([1, 2], pa.int16()),
            "u": pa.array([1, None], pa.uint32()),
            "half": pa.array([1.5, float("inf")], pa.float32()),
            "price": pa.array([Decimal("1.25"), None]),
            "word": pa.array(["x", "x"]).dictionary_encode(),
            "large": pa.array(["x", "2024-01-01"], pa.large_string()),
            "day": pa.array([19_000, None], pa.date32()),
            "naive": pa.array([naive, None], pa.timestamp("ms")),
            "paris": pa.array([naive, None], pa.timestamp("ns", tz="Europe/Paris")),
            "tags": pa.array([["a", "b"], None], pa.large_list(pa.large_string())),
        }
    )
    found = read(place, "c.parquet", table)
    assert [str(kind) for kind in found.schema.types] == [
        *("string", "int64", "double", "double", "string", "string"),
        *("timestamp[us, tz=UTC]", "timestamp[us, tz=UTC]", "timestamp[us, tz=UTC]", "list<item: string>"),
    ]
    first = found.to_pylist()[0]
    assert (first["video_id"], first["price"], first["tags"]) == ("1", 1.25, ["a", "b"])
    assert first["day"] == datetime(2022, 1, 8, tzinfo=UTC)
    assert first["naive"] == first["paris"] == naive.replace(tzinfo=UTC)
    assert found["half"].to_pylist() == [1.5, None]


@given(st.lists(st.none() | st.datetimes() | st.datetimes(timezones=st.just(UTC)), min_size=1, max_size=5))
def test_iso_times_are_read_back(times: list[datetime | None]) -> None:
    texts = pa.array([None if time is None else time.isoformat() for time in times], pa.string())
    found = iso_times(pa.chunked_array([texts]))
    if any(times):
        assert found.to_pylist() == [time and time.replace(tzinfo=UTC) for time in times]


@pytest.mark.parametrize("text", ["2024-13-45", "2023-02-29", "2024-01-01x", "1999", "24-01-01", "2024-01-01T25:00"])
def test_an_invalid_date_makes_the_column_text(place: Folder, text: str) -> None:
    rows = [{"video_id": "a", "when": "2024-01-01"}, {"video_id": "b", "when": text}]
    found = read(place, "c.jsonl", "\n".join(json.dumps(row) for row in rows))
    assert found["when"].to_pylist() == ["2024-01-01", text]


def test_json_values_of_several_kinds_are_text(place: Folder) -> None:
    rows = [{"video_id": 7, "x": 1, "y": {"a": 1}}, {"video_id": "b", "x": "one"}, {"video_id": "c", "x": [1]}]
    found = read(place, "c.jsonl", "\n".join(json.dumps(row) for row in rows))
    assert found.to_pydict() == {
        "video_id": ["7", "b", "c"],
        "x": ["1", "one", "[1]"],
        "y": ['{"a": 1}', None, None],
    }


@pytest.mark.parametrize(
    ("name", "content", "wrong", "more"),
    [
        ("c.csv", "id,title\na,b\n", ("video_id", 0), ["id, title"]),
        ("c.csv", "video_id,a,a\n1,2,3\n", ("a", 2), []),
        ("c.jsonl", "", ("video_id", 0), []),
        ("c.csv", "video_id,a\n1,2,3\n", None, []),
        ("c.csv", "", None, []),
        ("c.csv", b"video_id,a\nx,\xff\xfe\n", None, ["2", "UTF-8"]),
        ("c.csv", "video_id,a\n1,2\n3,4\n".encode("utf-16"), None, ["1", "UTF-8"]),
        ("c.csv", 'video_id,a\n1,2\n3,"4\n5,6\n7,8\n', None, ["3"]),  # the line where the row starts
        ("c.csv", "video_id,a\n1,2\n\n3\n", None, ["4", "1", "2"]),
        ("c.jsonl", '{"video_id": "a"}\n\n[12\n', None, ["3"]),  # the line; the parser's own error names 2:1 and 4
        ("c.jsonl", '{"video_id": "a"}\n{"video_id": "b', None, ["2"]),
        ("c.jsonl", '{"video_id": "a"}\n[]\n', None, ["2", "[]"]),
        ("c.jsonl", '{"video_id": "a"}\n{"video_id": "b", "x": 1, "x": 2}\n', None, ["2", "'x'"]),
        ("c.jsonl", '{"video_id": "a"}\n{"video_id": 1.5}\n', None, ["2", "1.5"]),
        ("c.jsonl", '{"video_id": "a"}\n{"video_id": "a", "x": "\\ud800"}\n', None, ["2"]),
        ("c.jsonl", '{"video_id": "a"}\n'.encode("utf-16"), None, ["1"]),
        ("c.parquet", b"PAR1", None, []),
        ("c.parquet", pa.table({"video_id": ["a"], "x": [{"y": 1}]}), None, ["'x'", "struct<y: int64>"]),
        ("c.parquet", pa.table({"video_id": ["a"], "x": pa.array([2**63], pa.uint64())}), None, [str(2**63)]),
    ],
)
def test_an_unreadable_table_is_one_line(
    place: Folder, name: str, content: str | bytes | pa.Table, wrong: tuple[str, int] | None, more: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(place, name, content)
    error = caught.value
    assert (error.key, error.value) == (wrong or (place.child(name), None))
    assert place.child(name) in str(error)
    for token in more:
        assert token in str(error).replace(place.child(name), "")
    assert str(error).isprintable()


def test_a_mark_blank_lines_and_spaces_in_the_header_are_accepted(place: Folder) -> None:
    plain = read(place, "plain.csv", "video_id,title,year\n 007,A title,1962\nb,,\n")
    assert plain["video_id"].to_pylist() == [" 007", "b"]
    marked = read(place, "marked.csv", "\ufeff\n\nvideo_id,title ,year\n\n 007,A title,1962\n\nb,,\n\n")
    assert marked == plain
    spaced = read(place, "spaced.csv", "video_id, title, year\n007, A title, 1962\nb, ,\n")
    assert spaced["title"].to_pylist() == ["A title", None]
    assert spaced["year"].to_pylist() == [1962, None]


@given(st.lists(st.tuples(CSV_TEXT, CSV_TEXT), min_size=1, max_size=6))
def test_what_is_written_as_csv_is_read_as_it_was(place: Folder, rows: list[tuple[str, str]]) -> None:
    file = io.StringIO(newline="")
    csv.writer(file).writerows([("video_id", "title"), *rows])
    table = read(place, "c.csv", file.getvalue())
    assert [tuple(value or "" for value in row.values()) for row in table.to_pylist()] == rows


def test_codes_of_csv_keep_their_digits(place: Folder) -> None:
    found = read(
        place, "c.csv", "video_id,zip,author,hex,at\na,02134,12345678901234567890,0x10,09:30\nb,10001,1,12,9:31\n"
    )
    assert found.drop_columns("video_id").to_pylist() == [
        {"zip": "02134", "author": "12345678901234567890", "hex": "0x10", "at": "09:30"},
        {"zip": "10001", "author": "1", "hex": "12", "at": "9:31"},
    ]


def test_a_missing_table_is_one_line(folder: Folder) -> None:
    with pytest.raises(ConfigError, match=r"^[^\n]*catalogue[^\n]*$") as caught:
        read_table(folder, "nothing.csv", text=(), required=(), what="catalogue")
    assert caught.value.key == folder.child("nothing.csv")


@pytest.mark.parametrize(
    ("name", "content", "wrong", "more"),
    [
        ("m.csv", "video_uri,video_uri\na,b\n", ("video_uri", 2), []),
        ("m.csv", 'video_uri,title\na,b\nc,"d\ne,f\n', None, ["3"]),
        ("m.jsonl", '{"video_uri": "a"}\n{"video_uri": ["b"]}\n', None, ["2", "video_uri"]),
        ("m.jsonl", '{"video_uri": "a"}\n{"video_uri": "b', None, ["2"]),
        ("m.jsonl", '{"title": "a"}\n', ("video_uri", 0), ["title"]),
        ("m.parquet", b"PAR1", None, []),
    ],
)
def test_a_table_of_texts_has_the_same_guards(
    place: Folder, name: str, content: str | bytes, wrong: tuple[str, int] | None, more: list[str]
) -> None:
    place.put(name, content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError) as caught:
        read_text_columns(place, name, ("video_id", "video_uri"), required=("video_uri",), what="manifest")
    error = caught.value
    assert (error.key, error.value) == (wrong or (place.child(name), None))
    assert all(token in str(error).replace(place.child(name), "") for token in more)


def test_columns_that_are_not_read_may_repeat(place: Folder) -> None:
    place.put("m.csv", b"video_uri,x,x\na,1,2\n")
    table = read_text_columns(place, "m.csv", ("video_uri",), required=("video_uri",), what="manifest")
    assert table.to_pydict() == {"video_uri": ["a"]}


def test_rows_without_a_text_are_numbered_from_one() -> None:
    assert empty_rows(pa.chunked_array([["a", ""], [None, "b"]])) == [2, 3]


def test_a_number_of_more_than_64_bits_is_a_float(place: Folder) -> None:
    rows = [{"video_id": "a", "x": 2**70}, {"video_id": "b", "x": 1}]
    found = read(place, "c.jsonl", "\n".join(json.dumps(row) for row in rows))
    assert found["x"].to_pylist() == [2.0**70, 1.0]


def test_the_place_of_a_table() -> None:
    assert table_place("s3://bucket/a b/c.CSV", what="catalogue") == (Folder("s3://bucket/a b"), "c.CSV")
    assert table_place("/c.parquet", what="catalogue") == (Folder("/"), "c.parquet")
    with pytest.raises(ConfigError) as caught:
        table_place("h.txt", what="history")
    assert all(ending in caught.value.remedy for ending in (".parquet", ".csv", ".jsonl"))
    assert (caught.value.key, caught.value.value) == ("history", "h.txt")

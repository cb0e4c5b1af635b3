import datetime as dt
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.errors import IndexVersionError
from raypipe.search import items as items_module
from raypipe.search.items import Items, ThumbnailWriter
from support.properties import examples

TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)


@settings(max_examples=examples(100))
@given(ids=st.lists(TEXTS, unique=True, max_size=60), others=st.lists(TEXTS, max_size=20))
def test_positions_are_those_of_a_dict(ids: list[str], others: list[str]) -> None:
    items = Items(pa.table({"video_id": pa.array(ids, pa.string())}), None)
    places = {video_id: position for position, video_id in enumerate(ids)}
    asked = [*others, *ids, *others]
    assert items.positions(asked) == [places.get(video_id) for video_id in asked]
    assert [items.position(video_id) for video_id in asked] == items.positions(asked)
    column = pa.chunked_array([pa.array([*asked, None], pa.string()), pa.array([], pa.string())])
    assert items.find(column).tolist() == [*(places.get(video_id, -1) for video_id in asked), -1]
    assert [items.video_id(position) for position in range(len(items))] == ids


def test_ids_of_equal_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        items_module, "_WEIGHTS", np.ones(1024, np.uint64)
    )  # the hash is the sum of the bytes plus the length
    ids = ["abc", "acb", "x", "bca", "cab", "bb", "ac"]
    items = Items(pa.table({"video_id": ids}), None)
    asked = ["cab", "acb", "abc", "cba", "ac", "ca"]
    assert items.positions(asked) == [4, 1, 0, None, 6, None]
    assert items.find(pa.chunked_array([asked])).tolist() == [4, 1, 0, -1, 6, -1]


def test_ids_longer_than_the_weights_and_in_several_pieces_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items_module, "_HASH_ROWS", 7)
    ids = [f"{'x' * (row * 97)}{row}" for row in range(30)]
    table = pa.concat_tables([pa.table({"video_id": ids[:11]}), pa.table({"video_id": ids[11:]})])
    assert Items(table.slice(3), None).positions(ids) == [None] * 3 + list(range(27))


def test_a_lone_surrogate_is_not_an_id() -> None:
    assert Items(pa.table({"video_id": ["a"]}), None).position("\ud800") is None


def test_row_is_json() -> None:
    table = pa.table(
        {
            "video_id": ["a", "b"],
            "score": [float("nan"), 0.5],
            "views": pa.array([2**63, 1], pa.uint64()),
            "at": pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns")),
            "local": pa.array([0, None], pa.timestamp("s", tz="Europe/Berlin")),
            "never": pa.array([2**60, None], pa.timestamp("us")),
            "day": [dt.date(2024, 5, 31), None],
            "price": pa.array(["1.50", None]).cast(pa.decimal128(9, 2)),
            "kind": pa.array(["x", None]).dictionary_encode(),
            "nothing": pa.nulls(2),
            "raw": [b"\xff", None],
            "tags": [["x", "y"], None],
            "more": [{"at": dt.time(1, 2), "n": float("inf")}, None],
        }
    )
    items = Items(table, None)
    row = items.row(0)
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert row == {
        "video_id": "a",
        "score": None,
        "views": 2.0**63,
        "at": "2023-11-14T22:13:20.123456+00:00",
        "local": "1970-01-01T00:00:00+00:00",
        "never": None,
        "day": "2024-05-31",
        "price": 1.5,
        "kind": "x",
        "nothing": None,
        "raw": "\ufffd",
        "tags": ["x", "y"],
        "more": {"at": "01:02:00", "n": None},
    }
    assert set(items.row(1)) == set(row)
    assert list(items.columns) == [
        "video_id",
        "score",
        "views",
        "at",
        "local",
        "never",
        "day",
        "price",
        "kind",
        "nothing",
    ]


def test_values_are_the_most_frequent_first() -> None:
    items = Items(pa.table({"video_id": list("abcdef"), "kind": ["y", "x", None, "x", "z", "z"], "n": range(6)}), None)
    assert items.values("kind", limit=9) == ["x", "z", "y"]
    assert items.values("kind", limit=1) == ["x"]
    assert items.values("n", limit=9) == items.values("missing", limit=9) == []


def test_codes_and_numbers() -> None:
    table = pa.table(
        {
            "video_id": list("abcd"),
            "kind": ["y", None, "x", "y"],
            "n": [1, None, 3, 1],
            "at": pa.array([1_500_000, None, 0, -1], pa.timestamp("us")),
            "day": [dt.date(1970, 1, 2), None, None, None],
            "yes": [True, None, False, True],
            "tags": [["x"], None, [], []],
        }
    )
    items = Items(table, None)
    codes = items.codes("kind")
    assert codes is not None
    assert codes.dtype == np.int32
    assert codes.tolist() == [0, -1, 1, 0]
    assert items.codes("kind") is codes
    assert items.codes("tags") is items.codes("missing") is None
    for name, expected in {
        "n": [1, np.nan, 3, 1],
        "at": [1.5, np.nan, 0, -1e-6],
        "day": [86_400, np.nan, np.nan, np.nan],
    }.items():
        numbers = items.numbers(name)
        assert numbers is not None
        np.testing.assert_array_equal(numbers, expected)
        assert items.numbers(name) is numbers
    assert all(items.numbers(name) is None for name in ("kind", "yes", "tags", "missing"))


def test_a_version_is_opened_with_its_thumbnails(tmp_path: Path) -> None:
    pictures = [None if row % 3 == 0 else b"%d" % row for row in range(2_500)]
    groups = pa.array([7 if row == 7 else None for row in range(2_500)], pa.int64())
    table = pa.table({"video_id": [str(row) for row in range(2_500)], "duplicate_group": groups})
    pq.write_table(table, tmp_path / "items.parquet", row_group_size=700)
    with ThumbnailWriter(tmp_path / "thumbnails.arrow") as writer:
        writer.add(pictures)
    items = Items.open(tmp_path)
    assert len(items) == 2_500
    assert [items.thumbnail(position) for position in range(2_500)] == pictures
    assert np.flatnonzero(items.duplicate_groups >= 0).tolist() == [7]
    assert items.duplicate_groups[7] == 7


def test_without_thumbnails_and_groups() -> None:
    items = Items(pa.table({"video_id": ["a"]}), None)
    assert items.thumbnail(0) is None
    assert items.duplicate_groups.tolist() == [-1]


@pytest.mark.parametrize("damaged", ["items.parquet", "thumbnails.arrow"])
def test_a_corrupt_file_is_one_line(tmp_path: Path, damaged: str) -> None:
    pq.write_table(pa.table({"video_id": ["a", "b"]}), tmp_path / "items.parquet")
    with ThumbnailWriter(tmp_path / "thumbnails.arrow") as writer:
        writer.add([None, b"x"])
    (tmp_path / damaged).write_bytes(b"ARROW1")
    with pytest.raises(IndexVersionError) as raised:
        Items.open(tmp_path)
    assert raised.value.key == str(tmp_path)
    assert str(raised.value).isprintable()


def test_items_of_another_number_than_thumbnails_are_refused() -> None:
    with pytest.raises(IndexVersionError) as raised:
        Items(pa.table({"video_id": ["a"]}), pa.chunked_array([[b"x", b"y"]]))
    assert (raised.value.key, raised.value.value, raised.value.expected) == ("thumbnails.arrow", 2, 1)
    with pytest.raises(IndexVersionError) as raised:
        Items(pa.table({"name": ["a"]}), None)
    assert (raised.value.key, raised.value.value) == ("video_id", ["name"])

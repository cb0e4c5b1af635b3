"""Join a catalogue and labels with the rows of an index; mismatches are counted or refused."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from raypipe.errors import ConfigError
from raypipe.jobs.index.inputs import join, read_catalogue
from raypipe.storage import Folder

ROWS = pa.table(
    {
        "video_id": ["a", "b", "c", "d"],
        "video_uri": ["s3://v/a", "s3://v/b", "s3://v/c", "s3://v/d"],
        "etag": ["e1", "e2", "e3", "e4"],
        "generation": pa.array([1, 0, 0, 0], pa.int32()),
        "duration_seconds": [1.0, None, 2.0, 3.0],
    }
)


def catalogue(folder: Folder, text: str, name: str = "catalogue.csv") -> pa.Table:
    folder.put(name, text.encode())
    return read_catalogue(folder.child(name))


def test_the_columns_of_a_catalogue_are_joined_with_the_rows(folder: Folder) -> None:
    text = "title,video_id,published_at,popularity\n1917,c,2024-01-01,3\nB,b,,7\nno such video,x,2020-01-01,1\n"
    joined = join(ROWS, catalogue=catalogue(folder, text), labels=None)
    assert joined.items.select(ROWS.column_names).equals(ROWS)
    assert joined.items.column_names[len(ROWS.column_names) :] == [
        *("label", "score", "title", "published_at", "popularity"),
    ]
    assert joined.items["title"].to_pylist() == [None, "B", "1917", None]
    assert joined.items["published_at"].to_pylist() == [None, None, datetime(2024, 1, 1, tzinfo=UTC), None]
    assert joined.items["popularity"].to_pylist() == [None, 7, 3, None]
    assert joined.items["label"].to_pylist() == [None] * 4
    assert (joined.num_uncatalogued, joined.num_not_embedded, joined.num_unlabelled) == (2, 1, None)


def test_without_a_catalogue_there_is_nothing_to_count() -> None:
    joined = join(ROWS, catalogue=None, labels=None)
    assert (joined.num_uncatalogued, joined.num_not_embedded, joined.num_unlabelled) == (None, None, None)
    assert joined.items.schema.field("score").type == pa.float32()


def test_a_label_counts_only_for_its_own_embedding() -> None:
    labels = pa.table(
        {
            "video_id": ["x", "d", "b", "a"],
            "etag": ["0-e0", "0-e4", "0-old", "1-e1"],
            "label": ["cat", None, "dog", "fish"],
            "score": pa.array([0.1, None, 0.2, 0.3], pa.float32()),
        }
    )
    joined = join(ROWS, catalogue=None, labels=labels)
    assert joined.items["label"].to_pylist() == ["fish", None, None, None]
    assert joined.items["score"].to_pylist() == [pytest.approx(0.3), None, None, None]
    assert joined.num_unlabelled == 3


@pytest.mark.parametrize(
    ("text", "key", "value", "told"),
    [
        ("id,title\na,b\n", "video_id", 0, " id, title"),
        ("video_id,label\na,b\n", "label", None, " video_uri, "),  # the reserved names
        ("video_id,duplicate_group\na,1\n", "duplicate_group", None, " video_uri, "),
        ("video_id,t\na,1\nb,1\na,2\nb,3\n", "video_id", "a", " 2 "),
        ("video_id,t\na,1\n,2\n", "video_id", "", " 1 "),
    ],
)
def test_an_invalid_catalogue_is_one_line(tmp_path: Path, text: str, key: str, value: object, told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        catalogue(Folder(str(tmp_path)), text)
    assert (raised.value.key, raised.value.value) == (key, value)
    assert str(tmp_path / "catalogue.csv") in str(raised.value)
    assert told in str(raised.value)
    assert str(raised.value).isprintable()


def test_a_catalogue_of_another_format_is_refused() -> None:
    with pytest.raises(ConfigError) as raised:
        read_catalogue("c.xlsx")
    assert (raised.value.key, raised.value.value) == ("catalogue", "c.xlsx")
    assert ".csv" in raised.value.remedy

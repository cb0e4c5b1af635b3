"""Labels are what a table or a folder says, word for word; what cannot be one is refused with its reason."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypipe.errors import ConfigError
from raypipe.storage import Folder
from raypipe.train.labels import folder_labels, read_labels


def read(folder: Folder, text: str | bytes, *, name: str = "labels.csv", split_column: str = "split") -> pa.Table:
    assert folder.put_new(name, text.encode() if isinstance(text, str) else text)
    return read_labels(folder.child(name), split_column=split_column)


def rows(table: pa.Table) -> list[tuple[str, ...]]:
    return [tuple(row.values()) for row in table.to_pylist()]


def problem(tmp_path: Path, text: str, *, name: str = "labels.csv") -> str:
    with pytest.raises(ConfigError) as caught:
        read(Folder(str(tmp_path)), text, name=name)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_a_table_is_read_as_it_is_written(folder: Folder) -> None:
    expected = [("007.mp4", "1"), ("b.mp4", "null"), ("b.mp4", "ÄÖ, ü")]
    assert rows(read(folder, 'label,video_id,more\n1,007.mp4,x\nnull,b.mp4,\n"ÄÖ, ü",b.mp4,z\n')) == expected
    lines = '{"video_id": "007.mp4", "label": 1}\n\n{"video_id": "b.mp4", "label": "null"}\n'
    lines += '{"video_id": "b.mp4", "label": "\\u00c4\\u00d6, \\u00fc"}\n'
    assert rows(read(folder, lines, name="labels.jsonl")) == expected
    ids, labels = zip(*expected, strict=True)
    pq.write_table(pa.table({"label": labels, "video_id": ids}), file := pa.BufferOutputStream())
    assert rows(read(folder, file.getvalue().to_pybytes(), name="LABELS.PARQUET")) == expected


def test_a_row_that_says_the_same_twice_counts_once(tmp_path: Path) -> None:
    found = read(Folder(str(tmp_path)), "video_id,label\na,x\nb,y\na,x\na,y\n")
    assert rows(found) == [("a", "x"), ("b", "y"), ("a", "y")]


def test_splits_go_by_several_names(tmp_path: Path) -> None:
    text = "video_id,label,fold\na,x,train\nb,x,validation\nc,x,valid\nd,x,val\ne,x,test\na,y,train\n"
    found = read(Folder(str(tmp_path)), text, split_column="fold")
    assert found.column_names == ["video_id", "label", "split"]
    assert found["split"].to_pylist() == ["train", "validation", "validation", "validation", "test", "train"]


def test_a_column_of_another_name_is_no_split(tmp_path: Path) -> None:
    assert read(Folder(str(tmp_path)), "video_id,label,fold\na,x,7\n").column_names == ["video_id", "label"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("video_id,lable\na,x\n", "has no column 'label'; its columns are video_id, lable."),
        ("id,label\na,x\n", "has no column 'video_id'; its columns are id, label."),
        ("video_id,label\n", "has no rows. Give a row for each video and label."),
        ("video_id,label\na,x\nb,\n,y\n", "1 rows lack their video_id. Every row needs a video_id and a label."),
        ("video_id,label\na,x\nb,\nc,\n", "2 rows lack their label. Every row needs a video_id and a label."),
        ("video_id,label,split\na,x,train\nb,x,\n", "1 rows lack their split. Every row needs a video_id and a label"),
        ("video_id,label,split\na,x,dev\n", "unknown split 'dev'. Choose one of train, validation, test."),
        ("video_id,label,split\na,x,train\na,x,val\n", "'a' is in several splits. Give each video one split."),
        ("video_id,label,split\na,x,train\na,y,test\n", "'a' is in several splits. Give each video one split."),
    ],
)
def test_a_table_that_says_too_little_or_too_much_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in problem(tmp_path, text)


def test_null_in_parquet_is_no_label(tmp_path: Path) -> None:
    pq.write_table(pa.table({"video_id": ["a", "b"], "label": ["x", None]}), tmp_path / "labels.parquet")
    with pytest.raises(ConfigError, match=r"labels\.parquet: 1 rows lack their label\."):
        read_labels(str(tmp_path / "labels.parquet"), split_column="split")


def test_a_file_of_another_kind_is_refused_with_the_choices(tmp_path: Path) -> None:
    assert problem(tmp_path, "", name="labels.txt").endswith(
        "labels.txt' is of no known format. Give a .parquet, .csv, .jsonl with video_id and label."
    )


def test_a_file_that_cannot_be_read_is_named(folder: Folder) -> None:
    with pytest.raises(ConfigError, match=r"^Cannot read the labels .*/none\.csv: "):
        read_labels(folder.child("none.csv"), split_column="split")
    with pytest.raises(ConfigError, match=r"^Cannot read the labels .*/broken\.parquet: "):
        read(folder, "no parquet", name="broken.parquet")


def test_the_folder_of_a_video_is_its_label() -> None:
    ids = pa.chunked_array([["train/Tennis/a.mp4", "Yo Yo/b.mp4"], ["x/y/z/c.mp4"]])
    assert folder_labels(ids).to_pydict() == {"video_id": ids.to_pylist(), "label": ["Tennis", "Yo Yo", "z"]}


@pytest.mark.parametrize("video_id", ["a.mp4", "/a.mp4"])
def test_a_video_in_no_folder_is_named(video_id: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{video_id}' lies in no folder that could be its label\. Give --labels "):
        folder_labels(pa.chunked_array([["x/b.mp4", video_id]]))
